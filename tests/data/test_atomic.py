import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_edt.cleaning import sanitize
from recbole_edt.data.atomic import read, read_table, write, write_table
from recbole_edt.data.two_domains import drop_items, keep_rows
from recbole_edt.errors import DataError

# Amy: food, kitchen, food. Bob: kitchen, food. The times of Amy are out of order in the file.
INTER = """user_id:token	item_id:token	timestamp:float
bob	k1	5
amy	f2	30
amy	f1	10
bob	f1	6
amy	k1	20
"""
ITEM = """item_id:token	domain:token	title:token_seq	price:float
f1	food	Green tea	2.50
k1	kitchen	Pan	{}
f2	food	NA	3
k2	kitchen	Pot	40
""".format("")
ARRAYS = ("users", "items", "item_domain", "virtual", "user", "item", "time", "generated", "offsets")


def write_files(folder, inter=INTER, item=ITEM, encoding="utf-8"):
    folder.mkdir(exist_ok=True)
    for suffix, text in (("inter", inter), ("item", item)):
        content = text if isinstance(text, bytes) else text.encode(encoding)
        (folder / f"toy.{suffix}").write_bytes(content)
    return folder


def toy(folder, **kwargs):
    return read(write_files(folder, **kwargs), "toy")


def rows_of(data):
    """Interactions as (user, item, time) with tokens."""
    return list(zip(data.users[data.user], data.items[data.item], data.time.tolist(), strict=True))


def assert_same(one, other):
    for name in ARRAYS:
        left, right = getattr(one, name), getattr(other, name)
        assert left.dtype == right.dtype, name
        np.testing.assert_array_equal(left, right, err_msg=name)
    assert one.domains == other.domains
    assert one.item_fields.equals(other.item_fields)
    assert dict(one.item_field_types) == dict(other.item_field_types)


class TestRead:
    def test_orders_by_user_then_time(self, tmp_path):
        data = toy(tmp_path)
        assert rows_of(data) == [
            ("bob", "k1", 5.0),
            ("bob", "f1", 6.0),
            ("amy", "f1", 10.0),
            ("amy", "k1", 20.0),
            ("amy", "f2", 30.0),
        ]
        assert data.offsets.tolist() == [0, 2, 5]

    def test_numbers_users_by_first_appearance_and_items_by_the_item_file(self, tmp_path):
        data = toy(tmp_path)
        assert data.users.tolist() == ["bob", "amy"]
        assert data.items.tolist() == ["f1", "k1", "f2", "k2"]
        assert data.item.tolist() == [1, 0, 0, 1, 2]

    def test_has_the_dtypes_it_promises(self, tmp_path):
        data = toy(tmp_path)
        found = {name: getattr(data, name).dtype.name for name in ARRAYS}
        assert found == {
            "users": "object",
            "items": "object",
            "item_domain": "int8",
            "virtual": "bool",
            "user": "int64",
            "item": "int64",
            "time": "float64",
            "generated": "bool",
            "offsets": "int64",
        }

    def test_domains_come_in_order_of_the_item_file_unless_named(self, tmp_path):
        data = toy(tmp_path)
        assert data.domains == ("food", "kitchen")
        assert data.item_domain.tolist() == [0, 1, 0, 1]
        swapped = read(tmp_path, "toy", domains=["kitchen", "food"])
        assert swapped.domains == ("kitchen", "food")
        assert swapped.item_domain.tolist() == [1, 0, 1, 0]

    def test_equal_times_keep_the_order_of_the_file(self, tmp_path):
        items = ["f2", "k1", "f1", "k2", "f1"]
        inter = "".join(f"amy\t{item}\t7\n" for item in items)
        data = toy(tmp_path, inter="user_id:token\titem_id:token\ttimestamp:float\n" + inter)
        assert data.items[data.item].tolist() == items

    def test_times_that_float32_confuses_are_kept_apart(self, tmp_path):
        header = "user_id:token\titem_id:token\ttimestamp:float\n"
        data = toy(tmp_path, inter=header + "amy\tf1\t1381536001\namy\tk1\t1381536000.5\namy\tf2\t1381536000\n")
        assert data.time.tolist() == [1381536000.0, 1381536000.5, 1381536001.0]
        assert data.items[data.item].tolist() == ["f2", "k1", "f1"]

    def test_texts_stay_as_they_are(self, tmp_path):
        odd = ["NA", "None", '"quoted', "it's \\n", " 10\" pan, 'x'", "nan", "#1 &amp; <b>", ""]
        rows = "".join(f"i{i}\t{'food' if i % 2 else 'kitchen'}\t{text}\n" for i, text in enumerate(odd))
        inter = "user_id:token\titem_id:token\ttimestamp:float\nNA\ti0\t1\nNA\ti1\t2\n"
        data = toy(tmp_path, inter=inter, item="item_id:token\tdomain:token\ttitle:token_seq\n" + rows)
        assert data.item_fields["title"].tolist() == odd
        assert data.users.tolist() == ["NA"]

    def test_ids_that_look_like_numbers_stay_text(self, tmp_path):
        item = "item_id:token\tdomain:token\n007\tfood\n7\tkitchen\n"
        data = toy(tmp_path, inter="user_id:token\titem_id:token\ttimestamp:float\n01\t007\t1\n1\t7\t1\n", item=item)
        assert data.items.tolist() == ["007", "7"]
        assert data.users.tolist() == ["01", "1"]

    def test_columns_may_stand_in_any_order_beside_others(self, tmp_path):
        lines = [line.split("\t") for line in INTER.splitlines()]
        inter = "\n".join("\t".join((c, "rating:float" if i == 0 else "4", b, a)) for i, (a, b, c) in enumerate(lines))
        assert_same(toy(tmp_path / "a", inter=inter), toy(tmp_path / "b"))

    @pytest.mark.parametrize(
        "change",
        [
            lambda text: text.replace("\n", "\r\n"),
            lambda text: "\ufeff" + text,
            lambda text: text.rstrip("\n"),
            lambda text: text.replace("\n", "\r\n").rstrip("\n"),
            lambda text: text + "\n\r\n",
        ],
        ids=["windows line ends", "byte order mark", "no last line end", "half a line end", "blank lines at the end"],
    )
    def test_accepts_what_other_programs_do_to_a_file(self, tmp_path, change):
        changed = toy(tmp_path / "a", inter=change(INTER), item=change(ITEM))
        assert_same(changed, toy(tmp_path / "b"))

    def test_a_lone_carriage_return_is_no_line_end(self, tmp_path):
        assert toy(tmp_path, item=ITEM.replace("Pan", "P\ran")).item_fields["title"][1] == "P\ran"

    def test_an_empty_field_of_a_narrow_table_is_a_row(self, tmp_path):
        (tmp_path / "narrow").write_text("word:token\na\n\nb\n")
        assert read_table(tmp_path / "narrow")[0]["word"].tolist() == ["a", "", "b"]

    def test_reads_the_marks_of_generated_rows_and_virtual_items(self, tmp_path):
        item = "item_id:token\tdomain:token\tvirtual:float\nf1\tfood\t0\nk1\tkitchen\t0.0\nv\tfood\t1\n"
        inter = (
            "user_id:token\titem_id:token\ttimestamp:float\tgenerated:float\n"
            "amy\tk1\t1\t0\namy\tv\t1\t1\namy\tf1\t2\t0\n"
        )
        data = toy(tmp_path, inter=inter, item=item)
        assert data.virtual.tolist() == [False, False, True]
        assert data.generated.tolist() == [False, True, False]
        assert list(data.item_fields) == []


HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"
FAULTS = {
    "empty file": ({"inter": ""}, "toy.inter", "the file is empty"),
    "only line ends": ({"inter": "\n\n"}, "toy.inter", "the file is empty"),
    "only a byte order mark": ({"item": b"\xef\xbb\xbf"}, "toy.item", "the file is empty"),
    "header only": ({"inter": HEADER}, "toy.inter", "no row below it"),
    "plain header": ({"inter": INTER.replace(":token", "")}, "toy.inter, line 1", "'user_id'; expected"),
    "comma header": ({"item": ITEM.replace("\t", ",")}, "toy.item, line 1", "expected tab-separated"),
    "unknown type": ({"inter": INTER.replace("float", "int")}, "toy.inter, line 1", "'timestamp:int'"),
    "no column name": ({"item": ITEM.replace("title:", ":")}, "toy.item, line 1", "':token_seq'"),
    "column twice": (
        {"inter": INTER.replace("item_id", "user_id")},
        "toy.inter, line 1, column 'user_id'",
        "twice",
    ),
    "no user": ({"inter": INTER.replace("user_id", "user")}, "toy.inter", "no column 'user_id' (found: user, "),
    "no item": ({"inter": INTER.replace("item_id", "item")}, "toy.inter", "no column 'item_id'"),
    "no time": ({"inter": INTER.replace("timestamp", "time")}, "toy.inter", "no column 'timestamp'"),
    "no item in items": ({"item": ITEM.replace("item_id", "item")}, "toy.item", "no column 'item_id'"),
    "no domain": ({"item": ITEM.replace("domain", "class")}, "toy.item", "no column 'domain'"),
    "a domain called overall": (
        {"item": ITEM.replace("kitchen", "overall")},
        "toy.item, column 'domain'",
        "a domain is called 'overall', which is the name for all users",
    ),
    "too few fields": (
        {"inter": INTER.replace("f1\t10", "f1")},
        "toy.inter, line 4",
        "2 tab-separated field(s), expected 3 (user_id, item_id, timestamp)",
    ),
    "too many fields": ({"item": ITEM.replace("Pan", "P\tan")}, "toy.item, line 3", "5 tab-separated"),
    "blank line inside": ({"inter": INTER.replace("amy\tf1", "\namy\tf1")}, "toy.inter, line 4", "1 tab-sep"),
    "several bad lines": ({"inter": INTER.replace("amy\t", "amy ")}, "toy.inter, line 3", "(3 such lines)"),
    "latin-1": ({"item": ITEM.replace("Pot", "Th\xe9").encode("latin-1")}, "toy.item, line 5", "byte 0xe9"),
    "utf-16": ({"item": ITEM.encode("utf-16")}, "toy.item, line 1", "not UTF-8"),
    "NUL": ({"item": ITEM.replace("Pot", "P\0t")}, "toy.item, line 5", "NUL byte"),
    "time is NaN": (
        {"inter": INTER.replace("30", "nan").replace("20", "")},
        "toy.inter, line 3, column 'timestamp'",
        "'nan' is not a finite number (2 such rows)",
    ),
    "time is infinite": ({"inter": INTER.replace("30", "-inf")}, "line 3, column 'timestamp'", "'-inf'"),
    "time is a date": ({"inter": INTER.replace("30", "2014-01-02")}, "line 3, column 'timestamp'", "'2014-01-02'"),
    "empty user": ({"inter": INTER.replace("bob", "")}, "toy.inter, line 2, column 'user_id'", "(2 such rows)"),
    "empty item": ({"inter": INTER.replace("f2", "")}, "toy.inter, line 3, column 'item_id'", "is empty"),
    "empty item id": ({"item": ITEM.replace("f2", "")}, "toy.item, line 4, column 'item_id'", "is empty"),
    "empty domain": ({"item": ITEM.replace("f2\tfood", "f2\t")}, "toy.item, line 4, column 'domain'", "is empty"),
    "one domain": (
        {"item": ITEM.replace("kitchen", "food")},
        "toy.item, column 'domain'",
        "1 domain(s) found ('food')",
    ),
    "three domains": (
        {"item": ITEM.replace("f2\tfood", "f2\tsport")},
        "toy.item, column 'domain'",
        "3 domain(s) found ('food', 'kitchen', 'sport')",
    ),
    "idle domain": ({"inter": INTER.replace("k1", "f1")}, "toy.inter", "domain 'kitchen' has no interactions"),
    "item twice": (
        {"item": ITEM.replace("k2", "f1")},
        "toy.item, line 5, column 'item_id'",
        "item 'f1' is already on line 2",
    ),
    "unknown item": (
        {"item": ITEM.replace("f1\t", "f9\t")},
        "toy.inter, line 4, column 'item_id'",
        "item 'f1' is not in toy.item (2 row(s) with 1 such item(s))",
    ),
    "mark is a word": (
        {"item": ITEM.replace("price", "virtual").replace("2.50", "yes")},
        "toy.item, line 2, column 'virtual'",
        "'yes' is not a finite number",
    ),
    "mark is 2": (
        {"inter": "generated:float\t" + INTER.replace("\nb", "\n0\tb").replace("\na", "\n2\ta")},
        "toy.inter, line 3, column 'generated'",
        "neither 0 nor 1 (3 such rows)",
    ),
    "virtual item in a raw row": (
        {
            "item": ITEM.replace("price", "virtual")
            .replace("2.50", "0")
            .replace("Pan\t", "Pan\t1")
            .replace("40", "1")
            .replace("\t3\n", "\t0\n")
        },
        "toy.inter, line 2, column 'item_id'",
        "a raw interaction with a virtual item (2 such rows)",
    ),
}


class TestFaults:
    @pytest.mark.parametrize("fault", FAULTS)
    def test_says_what_and_where_and_what_to_do(self, tmp_path, fault):
        changed, where, what = FAULTS[fault]
        with pytest.raises(DataError) as caught:
            toy(tmp_path, **changed)
        message = str(caught.value)
        assert message.startswith(str(tmp_path))
        assert where in message
        assert what in message
        assert "; " in message  # the remedy

    @pytest.mark.parametrize("suffix", ["inter", "item"])
    def test_a_missing_file_is_named(self, tmp_path, suffix):
        write_files(tmp_path)
        (tmp_path / f"toy.{suffix}").unlink()
        with pytest.raises(DataError, match=rf"toy\.{suffix}: no such file; "):
            read(tmp_path, "toy")

    @pytest.mark.parametrize("domains", [["food"], ["food", "Kitchen"], ["food", "food"], ["a", "b", "c"]])
    def test_domains_that_are_not_in_the_file_are_refused(self, tmp_path, domains):
        with pytest.raises(DataError, match="the domains are 'food' and 'kitchen', asked for: "):
            read(write_files(tmp_path), "toy", domains=domains)

    def test_a_long_or_odd_text_is_shown_short_and_escaped(self, tmp_path):
        with pytest.raises(DataError) as caught:
            toy(tmp_path, inter=INTER.replace("30", "\x1b[31m" + 500 * "x"))
        assert "'\\x1b[31mxxx" in str(caught.value)
        assert "\x1b" not in str(caught.value)
        assert len(str(caught.value)) < 300 + len(str(tmp_path))

    @given(content=st.binary(max_size=60) | st.text("ab\t\n:token,0", max_size=60).map(str.encode))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
    def test_any_bytes_are_a_table_or_a_data_error(self, tmp_path, content):
        (tmp_path / "any").write_bytes(content)
        try:
            table, types = read_table(tmp_path / "any")
        except DataError:
            return
        assert list(table) == list(types) and len(table) > 0


FIELD = st.text(max_size=8).map(sanitize)
TOKEN = st.text(min_size=1, max_size=4).map(sanitize).filter(bool)
FINITE = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def small_files(draw):
    """Texts of an .inter and an .item file with anything that a field may hold."""
    items = draw(st.lists(TOKEN, min_size=2, max_size=6, unique=True))
    titles = draw(st.lists(FIELD, min_size=len(items), max_size=len(items)))
    domains = ["a", "b", *draw(st.lists(st.sampled_from("ab"), min_size=len(items), max_size=len(items)))]
    users = draw(st.lists(TOKEN, min_size=1, max_size=3))
    rows = draw(st.lists(st.tuples(st.sampled_from(users), st.sampled_from(items), FINITE, st.booleans()), max_size=9))
    rows = [(users[0], items[0], 1.0, False), (users[0], items[1], 0.1, False), *rows]
    item = [f"{i}\t{d}\t{t}" for i, d, t in zip(items, domains, titles, strict=False)]
    inter = [f"{u}\t{i}\t{t!r}\t{int(g)}" for u, i, t, g in rows]
    return (
        "\n".join(["user_id:token\titem_id:token\ttimestamp:float\tgenerated:float", *inter]) + "\n",
        "\n".join(["item_id:token\tdomain:token\ttitle:token_seq", *item]) + "\n",
    )


class TestWrite:
    @given(texts=small_files())
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
    def test_what_is_written_reads_back_the_same(self, tmp_path, texts):
        data = toy(tmp_path, inter=texts[0], item=texts[1])
        write(data, tmp_path, "again")
        assert_same(read(tmp_path, "again"), data)

    def test_prints_numbers_exactly_and_keeps_types(self, tmp_path):
        header = "user_id:token\titem_id:token\ttimestamp:float\n"
        inter = header + "amy\tf1\t1381536000.0\namy\tk1\t1381536000.1\namy\tf2\t1e17\namy\tf2\t-5\n"
        write(toy(tmp_path, inter=inter), tmp_path, "out")
        expected = "amy\tf2\t-5\namy\tf1\t1381536000\namy\tk1\t1381536000.1\namy\tf2\t100000000000000000\n"
        assert (tmp_path / "out.inter").read_text() == header + expected
        assert (tmp_path / "out.item").read_text() == ITEM

    def test_virtual_items_come_last(self, tmp_path):
        item = "item_id:token\tdomain:token\tvirtual:float\nv\tfood\t1\nf1\tfood\t0\nk1\tkitchen\t0\n"
        inter = (
            "user_id:token\titem_id:token\ttimestamp:float\tgenerated:float\n"
            "amy\tk1\t1\t0\namy\tv\t1\t1\namy\tf1\t2\t0\n"
        )
        data = toy(tmp_path, inter=inter, item=item)
        write(data, tmp_path, "out")
        again = read(tmp_path, "out")
        assert again.items.tolist() == ["f1", "k1", "v"]
        assert again.virtual.tolist() == [False, False, True]
        assert rows_of(again) == rows_of(data)
        assert (tmp_path / "out.inter").read_text() == inter

    def test_texts_are_made_to_fit_their_field(self, tmp_path):
        data = toy(tmp_path)
        titles = ["a\tb\nc", " x ", "", "\ud83d broken"]
        fields = data.item_fields.assign(title=pd.Series(titles, dtype=object))
        write(replace(data, item_fields=fields), tmp_path, "out")
        assert read(tmp_path, "out").item_fields["title"].tolist() == ["a b c", "x", "", "broken"]

    @pytest.mark.parametrize("token", ["a\tb", "a\nb", "a\r", "", "\ud83d"])
    @pytest.mark.parametrize("column", ["users", "items"])
    def test_an_id_that_does_not_fit_is_refused(self, tmp_path, column, token):
        data = toy(tmp_path)
        tokens = getattr(data, column).copy()
        tokens[1] = token
        with pytest.raises(DataError, match="cannot be written"):
            write(replace(data, **{column: tokens}), tmp_path, "out")
        assert not (tmp_path / "out.inter").exists()

    @pytest.mark.parametrize("text", ["a\tb", "a\nb"])
    def test_a_table_with_an_unfit_text_is_refused(self, tmp_path, text):
        with pytest.raises(DataError, match="sanitize"):
            write_table(tmp_path / "t.user", {"user_id:token": ["a"], "profile:token_seq": [text]})

    def test_a_table_reads_back(self, tmp_path):
        write_table(tmp_path / "t.user", {"user_id:token": ["a", "b"], "profile:token_seq": ['"x', ""]})
        table, types = read_table(tmp_path / "t.user")
        assert types == {"user_id": "token", "profile": "token_seq"}
        assert table.to_numpy().tolist() == [["a", '"x'], ["b", ""]]


class TestSanitize:
    @given(st.text())
    def test_gives_one_clean_line_and_is_done_after_once(self, text):
        clean = sanitize(text)
        assert sanitize(clean) == clean
        assert len(clean.splitlines()) <= 1
        assert "\t" not in clean
        clean.encode("utf-8")

    @pytest.mark.parametrize("end", ["\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
    def test_joins_whatever_a_program_may_take_for_lines(self, end):
        assert sanitize(f"{end}a{end}{end}b{end}") == "a b"

    def test_leaves_ordinary_text_alone(self):
        assert sanitize('Crème  "brûlée" — 10% \U0001f355') == 'Crème  "brûlée" — 10% \U0001f355'


class TestSelection:
    def test_keeping_rows_leaves_users_and_items_alone(self, tmp_path):
        data = toy(tmp_path)
        kept = keep_rows(data, np.array([False, False, True, False, True]))
        assert rows_of(kept) == [("amy", "f1", 10.0), ("amy", "f2", 30.0)]
        assert kept.offsets.tolist() == [0, 0, 2]
        assert kept.users is data.users and kept.items is data.items

    def test_dropped_items_leave_as_if_they_had_never_been(self, tmp_path):
        data = toy(tmp_path, inter=INTER + "cat\tf1\t1\n")
        left = drop_items(data, data.items == "f1")
        assert rows_of(left) == [("bob", "k1", 5.0), ("amy", "k1", 20.0), ("amy", "f2", 30.0)]
        assert left.users.tolist() == ["bob", "amy"]
        assert left.items.tolist() == ["k1", "f2", "k2"]
        assert left.item_domain.tolist() == [1, 0, 1]
        assert left.item_fields["title"].tolist() == ["Pan", "NA", "Pot"]
        assert left.offsets.tolist() == [0, 1, 3]
        write(left, tmp_path, "out")
        assert_same(read(tmp_path, "out", domains=data.domains), left)

    def test_dropping_nothing_changes_nothing(self, tmp_path):
        data = toy(tmp_path)
        assert_same(drop_items(data, np.zeros(4, dtype=bool)), data)

    def test_dropping_a_whole_domain_is_refused(self, tmp_path):
        data = toy(tmp_path)
        with pytest.raises(DataError, match="domain 'kitchen' has no interactions after dropping items"):
            drop_items(data, data.items == "k1")


def core(folder, rows, k, items=("f1", "f2", "k1", "k2"), virtual=()):
    """k-core of rows given as 'user item' or 'user item generated'."""
    fields = [(row.split() + ["0"])[:3] for row in rows]
    inter = "".join(f"{user}\t{item}\t{time}\t{generated}\n" for time, (user, item, generated) in enumerate(fields))
    item = "".join(f"{item}\t{item[0]}\t{int(item in virtual)}\n" for item in items)
    header = "user_id:token\titem_id:token\ttimestamp:float\tgenerated:float\n"
    write_files(folder, header + inter, "item_id:token\tdomain:token\tvirtual:float\n" + item)
    return read(folder, "toy", k_core=k)


def pairs(data):
    return [(user, item) for user, item, _ in rows_of(data)]


class TestCore:
    def test_items_and_parts_of_users_that_are_too_small_go(self, tmp_path):
        # u3's kitchen part is one row: only that part goes. k2 has one row: it goes.
        rows = ["u1 f1", "u1 f2", "u2 f1", "u2 f2", "u1 k1", "u1 k1", "u3 f1", "u3 f2", "u3 k1", "u2 k2"]
        data = core(tmp_path, rows, 2)
        assert data.items.tolist() == ["f1", "f2", "k1"]
        assert pairs(data) == [
            ("u1", "f1"), ("u1", "f2"), ("u1", "k1"), ("u1", "k1"),
            ("u2", "f1"), ("u2", "f2"),
            ("u3", "f1"), ("u3", "f2"),
        ]  # fmt: skip

    def test_of_one_drops_only_items_without_interactions(self, tmp_path):
        assert core(tmp_path, ["u1 f1", "u1 k1"], 1).items.tolist() == ["f1", "k1"]
        assert core(tmp_path, ["u1 f1", "u1 k1"], 0).items.tolist() == ["f1", "f2", "k1", "k2"]

    def test_goes_on_until_nothing_is_too_small(self, tmp_path):
        # k2 has two rows until u3's kitchen part (one row) goes; then u2's kitchen part is k1 alone, and goes.
        rows = ["u1 f1", "u1 f1", "u1 k1", "u1 k1", "u2 k1", "u2 k2", "u3 k2", "u3 f1", "u3 f1"]
        data = core(tmp_path, rows, 2)
        assert data.users.tolist() == ["u1", "u3"]
        assert data.items.tolist() == ["f1", "k1"]
        assert len(data.user) == 6

    def test_every_count_left_is_large_enough(self, tmp_path):
        rng = np.random.default_rng(1)
        items = [f"{domain}{i}" for domain in "fk" for i in range(12)]
        rows = [f"u{rng.integers(20)} {items[rng.integers(24)]}" for _ in range(300)]
        data = core(tmp_path, rows, 5, items)
        assert 0 < len(data.user) < 300
        assert np.bincount(data.item, minlength=len(data.items)).min() >= 5
        part = 2 * data.user + data.item_domain[data.item]
        assert np.bincount(part)[np.unique(part)].min() >= 5

    def test_generated_rows_never_count(self, tmp_path):
        rows = ["u1 f1", "u1 f1", "u1 k1", "u1 k1", "u1 f2", "u1 f2 1", "u1 f2 1"]
        assert core(tmp_path, rows, 2).items.tolist() == ["f1", "k1"]

    def test_generated_rows_stay_with_their_user_and_item(self, tmp_path):
        rows = ["u1 f1", "u1 f1", "u1 k1", "u1 k1", "u1 fv 1", "u1 k1 1", "u1 f2 1", "u2 f1 1", "u2 f2"]
        data = core(tmp_path, rows, 2, items=("f1", "f2", "k1", "fv"), virtual=("fv",))
        generated = [pair for pair, mark in zip(pairs(data), data.generated, strict=True) if mark]
        assert generated == [("u1", "fv"), ("u1", "k1")]
        assert data.items.tolist() == ["f1", "k1", "fv"]

    def test_a_filter_that_empties_a_domain_is_refused(self, tmp_path):
        with pytest.raises(DataError, match="domain 'f' has no interactions after the filter k_core=3"):
            core(tmp_path, ["u1 f1", "u1 k1", "u1 k1", "u1 k1"], 3)


REAL = os.environ.get("RECBOLE_EDT_DATA", "")


@pytest.mark.skipif(not REAL, reason="RECBOLE_EDT_DATA is not set")
class TestRealData:
    @pytest.mark.parametrize(
        ("name", "n_users", "n_items", "n_rows"),
        [("amazon-fk-overlap", 7_144, 23_357, 165_229), ("amazon-fk-full", 53_061, 36_298, 436_127)],
    )
    def test_reads_in_seconds_and_writes_the_same_items(self, tmp_path, name, n_users, n_items, n_rows):
        start = time.perf_counter()
        data = read(Path(REAL) / name, name)
        assert time.perf_counter() - start < 5  # half a second on an idle machine
        assert (len(data.users), len(data.items), len(data.user)) == (n_users, n_items, n_rows)
        assert data.domains == (("food", "kitchen") if name.endswith("overlap") else ("kitchen", "food"))
        write(data, tmp_path, name)
        assert (tmp_path / f"{name}.item").read_bytes() == (Path(REAL) / name / f"{name}.item").read_bytes()
        assert_same(read(tmp_path, name), data)
