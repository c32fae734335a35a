"""Raw files in the formats they are published in, whole and damaged."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_edt.data import raw_files
from recbole_edt.data.raw_files import Tally, blocks, plain_labels, plain_text, seconds
from recbole_edt.errors import DataError

REVIEWS = [
    {"reviewerID": "A1", "asin": "B1", "unixReviewTime": 1400000000, "overall": 5.0, "reviewText": "fine"},
    {"reviewerID": "A2", "asin": "B2", "overall": 3.0},
]
COLUMNS = ("reviewerID", "asin", "unixReviewTime")
ROWS = [("A1", "B1", 1400000000), ("A2", "B2", None)]


def read(path, columns=COLUMNS, share=0.0, wanted=None, optional=()):
    tally = Tally(path, share)
    parts = blocks(tally, columns, wanted, optional)
    return [pair for numbers, rows in parts for pair in zip(numbers, rows, strict=True)], tally


def rows(path, columns=COLUMNS, **more):
    return [row for _, row in read(path, columns, **more)[0]]


def json_lines(records):
    return "".join(json.dumps(one) + "\n" for one in records).encode()


class TestJsonLines:
    def test_gives_the_fields_asked_for_and_none_where_one_is_missing(self, tmp_path):
        path = tmp_path / "reviews.json"
        path.write_bytes(json_lines(REVIEWS))
        assert rows(path) == ROWS

    @pytest.mark.parametrize("name", ["reviews.json.gz", "reviews.json"])
    def test_gzip_is_told_by_its_content(self, tmp_path, name):
        path = tmp_path / name
        path.write_bytes(gzip.compress(json_lines(REVIEWS)))
        assert rows(path) == ROWS

    def test_python_literals_of_2014_are_read_without_evaluating_them(self, tmp_path):
        path = tmp_path / "meta.json"
        bad = b"__import__('os').mkdir('hacked')\n"
        path.write_bytes(b"{'asin': 'B1', 'title': \"O'Neill\", 'categories': [['A', 'B']]}\n" + bad)
        found, tally = read(path, ("asin", "title", "categories"), share=0.5)
        assert found == [(1, ("B1", "O'Neill", [["A", "B"]]))]
        assert (tally.lines, tally.bad) == (2, 1)
        assert tally.first.startswith("line 2: neither JSON nor a Python literal")
        assert not list(tmp_path.glob("hacked"))

    def test_the_first_bad_line_is_shown_with_its_number(self, tmp_path):
        path = tmp_path / "reviews.jsonl"
        path.write_bytes(json_lines(REVIEWS) + b'{"reviewerID": "A3", "as\n[1, 2]\n')
        with pytest.raises(
            DataError, match=r"2 of the 4 lines read are unusable.*line 3: neither JSON.*A3.*right file"
        ):
            read(path)
        found, tally = read(path, share=0.5)
        assert len(found) == 2 and tally.bad == 2

    def test_too_many_bad_lines_stop_the_reading_before_the_end(self, tmp_path, monkeypatch):
        path = tmp_path / "reviews.jsonl"
        path.write_bytes(b"no JSON\n" * 1000)
        monkeypatch.setattr(raw_files, "MANY", 10)
        monkeypatch.setattr(raw_files, "_CHUNK_BYTES", 160)
        with pytest.raises(DataError, match="20 of the 20 lines read"):
            read(path, share=0.01)

    def test_bad_lines_at_the_head_of_a_good_file_do_not_stop_the_reading(self, tmp_path, monkeypatch):
        path = tmp_path / "reviews.jsonl"
        path.write_bytes(b"no JSON\n" * 4 + json_lines(REVIEWS[:1]) * 1000)
        monkeypatch.setattr(raw_files, "MANY", 10)
        monkeypatch.setattr(raw_files, "_CHUNK_BYTES", 1200)
        assert read(path, share=0.01)[1].bad == 4
        with pytest.raises(DataError, match="4 of the 1,004 lines read are unusable, more than the share 0.001"):
            read(path, share=0.001)

    def test_lines_keep_their_numbers_across_chunks_and_blank_ones_do_not_matter(self, tmp_path, monkeypatch):
        path = tmp_path / "reviews.jsonl"
        records = [{"reviewerID": f"A{n}", "asin": "B", "unixReviewTime": n} for n in range(1, 40)]
        path.write_bytes(b"\n" + json_lines(records).rstrip(b"\n"))
        monkeypatch.setattr(raw_files, "_CHUNK_BYTES", 7)
        found, tally = read(path)
        assert [number for number, _ in found] == list(range(2, 41))
        assert [row[2] for _, row in found] == list(range(1, 40))
        assert tally.bad == 0

    def test_windows_line_ends_and_characters_outside_ascii_are_read(self, tmp_path):
        path = tmp_path / "meta.jsonl"
        path.write_bytes('{"asin": "B1", "title": "Crème brûlée"}\r\n'.encode())
        assert rows(path, ("asin", "title")) == [("B1", "Crème brûlée")]

    def test_bytes_that_are_not_utf8_and_nesting_without_end_are_bad_lines(self, tmp_path):
        path = tmp_path / "meta.json"
        path.write_bytes(b'{"asin": "\xff"}\n' + b"[" * 100_000 + b'\n{"asin": "B1"}\n')
        found, tally = read(path, ("asin",), share=0.9)
        assert [row for _, row in found] == [("B1",)]
        assert tally.bad == 2

    def test_of_alternatives_the_first_that_holds_something_counts(self, tmp_path):
        path = tmp_path / "meta.jsonl"
        empty = [{"description": one, "features": ["warm"]} for one in ([], [""], "<br>", None)]
        path.write_bytes(json_lines([*empty, {"description": "d", "features": "f"}]))
        assert rows(path, (("description", "features"),)) == [(["warm"],)] * 4 + [("d",)]

    def test_lines_that_are_not_wanted_are_not_parsed(self, tmp_path):
        path = tmp_path / "meta.jsonl"
        path.write_bytes(b"never looked at\n" + json_lines(REVIEWS))
        assert rows(path, wanted=lambda line: b"A2" in line, optional=COLUMNS) == [ROWS[1]]

    def test_a_column_that_no_line_has_is_named_even_if_hardly_a_line_is_wanted(self, tmp_path):
        path = tmp_path / "meta.jsonl"
        path.write_bytes(json_lines([{"asin": "B1", "titel": "Tea"}, {"asin": "B2", "brand": "Acme"}]))
        named = r"meta.jsonl: no line has 'title' or 'name', 'price'; correct prepare.columns or prepare.item_columns"
        columns = ("asin", "brand", ("title", "name"), "price")
        with pytest.raises(DataError, match=named):
            read(path, columns, wanted=lambda line: b"B1" in line)
        found = rows(path, columns, optional=columns[2:], wanted=lambda line: b"B1" in line)
        assert found == [("B1", None, None, None)]  # only the other line has a brand

    def test_numbers_keep_every_digit_and_what_only_python_reads_is_read(self, tmp_path):
        path = tmp_path / "reviews.jsonl"
        path.write_text('{"id": 12345678901234567890123}\n{"id": NaN}\n{"id": "\\ud800"}\n')
        assert rows(path, ("id",))[0] == (12345678901234567890123,)
        assert rows(path, ("id",))[2] == ("\ud800",)
        path.write_text('{"id": 12345678901234567890123}\n')
        assert rows(path, ("id",)) == [(12345678901234567890123,)]

    def test_a_byte_order_mark_does_not_cost_the_first_record(self, tmp_path):
        path = tmp_path / "reviews.jsonl"
        path.write_bytes(b"\xef\xbb\xbf" + json_lines(REVIEWS))
        assert rows(path) == ROWS

    @pytest.mark.parametrize("line", ["{{'asin': 'B2'}}", "{'asin': 0x" + "f" * 5000 + "}"])
    def test_literals_that_python_itself_cannot_make_or_write_are_bad_lines(self, tmp_path, line):
        path = tmp_path / "meta.json"
        path.write_text("{'asin': 'B1'}\n" + line + "\n")
        found, tally = read(path, ("asin",), share=0.5)
        assert found == [(1, ("B1",))] and tally.bad == 1

    def test_a_file_without_line_ends_is_refused(self, tmp_path, monkeypatch):
        path = tmp_path / "all.json"
        path.write_bytes(b"[" + b"1, " * 1000)
        monkeypatch.setattr(raw_files, "_CHUNK_BYTES", 100)
        monkeypatch.setattr(raw_files, "MAX_LINE_BYTES", 500)
        with pytest.raises(DataError, match="a line of more than 500 bytes; expected one record a line"):
            read(path)

    def test_a_gzip_file_that_is_cut_off_is_refused(self, tmp_path):
        path = tmp_path / "reviews.json.gz"
        path.write_bytes(gzip.compress(json_lines(REVIEWS * 100))[:-20])
        with pytest.raises(DataError, match="reviews.json.gz: the gzip file is cut off or damaged.*fetch it again"):
            read(path)

    def test_a_gzip_file_with_flipped_bytes_is_refused(self, tmp_path):
        content = bytearray(gzip.compress(json_lines(REVIEWS * 100)))
        content[30] ^= 0xFF
        path = tmp_path / "reviews.json.gz"
        path.write_bytes(bytes(content))
        with pytest.raises(DataError):
            read(path, share=1.0)

    def test_a_missing_file_and_an_unknown_ending_are_named(self, tmp_path):
        with pytest.raises(DataError, match="none.json: no such file"):
            read(tmp_path / "none.json")
        with pytest.raises(DataError, match="sheet.xlsx: the ending says no format; known are .json"):
            read(tmp_path / "sheet.xlsx")

    @given(st.lists(st.binary(max_size=60), max_size=20))
    def test_whatever_the_lines_hold_each_is_read_or_counted(self, tmp_path_factory, lines):
        lines = [line.replace(b"\n", b"") for line in lines]
        path = tmp_path_factory.mktemp("any") / "any.json"
        path.write_bytes(b"x" + b"\n".join(lines))  # never mistaken for gzip
        found, tally = read(path, ("a",), share=1.0, optional=("a",))
        blank = sum(not line.strip() for line in lines[1:])
        assert len(found) + tally.bad + blank == max(len(lines), 1)


class TestDelimited:
    @pytest.mark.parametrize(("name", "sep"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t"), ("a.txt", "\t")])
    def test_the_header_shows_the_separator(self, tmp_path, name, sep):
        path = tmp_path / name
        path.write_text(sep.join(["user", "note", "item"]) + "\n" + sep.join(["u1", '"a, b; ""c"""', "i1"]) + "\n")
        assert rows(path, ("item", "user", "note")) == [("i1", "u1", 'a, b; "c"')]

    def test_quoted_line_ends_gzip_and_a_byte_order_mark_are_read(self, tmp_path):
        path = tmp_path / "a.csv.gz"
        path.write_bytes(gzip.compress('\ufeffuser,"item"\r\nu1,"i\n1"\r\n\r\nu2,i2\r\n'.encode()))
        assert read(path, ("user", "item"))[0] == [(2, ("u1", "i\n1")), (5, ("u2", "i2"))]

    def test_a_missing_column_is_named_beside_those_there_are(self, tmp_path):
        path = tmp_path / "a.csv"
        path.write_text("customer,sku\nu,i\n")
        with pytest.raises(
            DataError, match=r"no column 'user', 'x' or 'y' \(found: 'customer', 'sku'\); correct prepare"
        ):
            read(path, ("user", ("x", "y"), "sku"))

    def test_rows_with_another_number_of_fields_are_counted(self, tmp_path):
        path = tmp_path / "a.csv"
        path.write_text("user,item\nu1,i1\nu2\nu3,i3,more\nu4,i4\n")
        found, tally = read(path, ("user",), share=0.5)
        assert [row for _, row in found] == [("u1",), ("u4",)]
        assert (tally.bad, tally.lines) == (2, 5)
        assert tally.first == "line 3: 1 fields where the header has 2: ['u2']"

    @pytest.mark.parametrize(
        ("after", "lost"),
        [
            (["u6\ti6"] * 994, 995),  # to the end of the file
            (["u6\ti6"] * 30_000, 21_845),  # to the end of the longest field there is, of 131,072 characters
            (['u6\t"ok"', "u7\ti7"], 2),  # to the next quotation mark
        ],
    )
    def test_a_quote_that_is_never_closed_costs_lines_that_are_counted(self, tmp_path, after, lost):
        path = tmp_path / "a.tsv"
        lines = [f"u{n}\ti{n}" for n in range(5)] + ['u5\t"12 inch pan', *after]
        path.write_text("\n".join(["user\titem", *lines]) + "\n")
        found, tally = read(path, ("user",), share=1.0)
        assert len(found) + tally.bad == tally.rows == len(lines)
        assert tally.bad == lost
        assert tally.first.startswith("line 7: ") and "is a quotation mark opened there and not closed?" in tally.first

    @pytest.mark.parametrize(
        ("opened", "closed", "told"),
        [
            ('u5\t"12 inch pan\t1', 'u9\tRuler 12"\t1', "line 7: a field of 5 lines that look like rows; is a quot"),
            ('"u5\tpan\t1', 'u9\tRuler\t1"', "line 7: 1 fields where the header has 3; is a quotation mark opened"),
            ('u5\t"pan\t1', 'u9\tRuler\t1"', "line 7: 2 fields where the header has 3; is a quotation mark opened"),
        ],
    )
    def test_a_quote_that_another_line_closes_costs_the_lines_between(self, tmp_path, opened, closed, told):
        path = tmp_path / "a.tsv"
        lines = [f"u{n}\ti{n}\t1" for n in range(12)]
        lines[5], lines[9] = opened, closed
        path.write_text("\n".join(["user\titem\tcount", *lines]) + "\n")
        found, tally = read(path, ("user",), share=1.0)
        assert [row for _, row in found] == [(f"u{n}",) for n in (0, 1, 2, 3, 4, 10, 11)]
        assert (tally.bad, tally.rows) == (5, 12) and tally.first.startswith(told)

    @pytest.mark.parametrize(
        "text",
        ["Good, cheap\nRed, or blue\nLasts, too", "1,5 inch\nno comma\n2,5 inch", "a,b\n\nc,d", "x,y\nz,w", "\n\n\n"],
    )
    def test_texts_of_several_lines_are_read(self, tmp_path, text):
        path = tmp_path / "a.csv"
        path.write_text(f'item,text\ni1,"{text}"\ni2,"{text}"\n')
        assert rows(path, ("item", "text")) == [("i1", text), ("i2", text)]

    def test_a_line_without_end_is_refused_before_it_is_in_memory(self, tmp_path, monkeypatch):
        monkeypatch.setattr(raw_files, "MAX_LINE_BYTES", 50)
        for name, content in (("a.csv", "0" * 100), ("b.csv", "user\nu1\n" + "0" * 100)):
            (tmp_path / name).write_text(content)
            with pytest.raises(DataError, match=f"{name}: a line of more than 50 bytes; expected one record a line"):
                read(tmp_path / name, ("user",))

    def test_a_column_named_twice_is_refused_where_it_is_needed(self, tmp_path):
        path = tmp_path / "a.csv"
        path.write_text("user,item,item\nu,i,j\n")
        assert rows(path, ("user",)) == [("u",)]
        with pytest.raises(DataError, match="a.csv: the header names 'item' twice; rename or remove one"):
            read(path, ("user", "item"))

    def test_lines_that_are_not_utf8_are_counted_and_never_changed(self, tmp_path):
        path = tmp_path / "a.csv"
        path.write_bytes("user,item\nu1,Tee\nu2,Müsli\nu3,Crème\n".encode("latin-1"))
        with pytest.raises(DataError, match=r"a.csv: 2 of .*line 3: not UTF-8; save the file as UTF-8: 'u2 M�sli'"):
            read(path, ("user", "item"))
        found, tally = read(path, ("user", "item"), share=0.9)
        assert ([row for _, row in found], tally.bad) == ([("u1", "Tee")], 2)
        path.write_text("user,item\nu2,Müsli 🥣\n", encoding="utf-8")
        assert rows(path, ("user", "item")) == [("u2", "Müsli 🥣")]

    @pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
    def test_a_header_that_is_not_utf8_is_refused(self, tmp_path, encoding):
        (tmp_path / "a.csv").write_bytes("user,größe\nu1,1\n".encode(encoding))
        with pytest.raises(DataError, match=r"a.csv, line 1: not UTF-8; save the file as UTF-8: '"):
            read(tmp_path / "a.csv", ("user",))

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            ("", "a.csv: the file is empty"),
            ("\ufeff", "a.csv: the file is empty"),
            ("\nuser,item\n", "a.csv: the first line is empty; expected the names of columns"),
            ("user item\nu1 i1\n", "a.csv: the first line has no tab, comma, semicolon or bar .*: 'user item'"),
        ],
    )
    def test_a_file_without_a_header_that_can_be_split_is_told(self, tmp_path, content, told):
        (tmp_path / "a.csv").write_text(content, encoding="utf-8")
        with pytest.raises(DataError, match=told):
            read(tmp_path / "a.csv", ("user", "item"))

    def test_a_table_may_have_one_column(self, tmp_path):
        (tmp_path / "a.csv").write_text("user\nu1\n")
        assert rows(tmp_path / "a.csv", ("user",)) == [("u1",)]


def test_json_lines_that_are_not_utf8_are_told_as_such(tmp_path):
    (tmp_path / "a.json").write_bytes('{"a": "Müsli"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match=r"line 1: not UTF-8; save the file as UTF-8: .*M�sli"):
        read(tmp_path / "a.json", ("a",))


class TestParquet:
    def test_gives_columns_by_name(self, tmp_path):
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"item": [7, 8], "user": ["u1", None], "more": [1.5, 2.5]}), path)
        assert read(path, ("user", "item"))[0] == [(1, ("u1", 7)), (2, (None, 8))]
        with pytest.raises(DataError, match="no column 'sku' .found: 'item', 'user', 'more'"):
            read(path, ("sku",))

    def test_a_column_named_twice_is_refused_where_it_is_needed(self, tmp_path):
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        table = pa.Table.from_arrays([pa.array([one]) for one in "uij"], names=["user", "item", "item"])
        pq.write_table(table, tmp_path / "a.parquet")
        assert rows(tmp_path / "a.parquet", ("user",)) == [("u",)]
        with pytest.raises(DataError, match="a.parquet: the header names 'item' twice; rename or remove one"):
            read(tmp_path / "a.parquet", ("user", "item"))

    def test_a_time_that_python_has_no_date_for_is_refused(self, tmp_path):
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"when": pa.array([2**62], pa.timestamp("us"))}), tmp_path / "a.parquet")
        with pytest.raises(DataError, match="a.parquet: no readable Parquet file"):
            read(tmp_path / "a.parquet", ("when",))

    def test_a_file_that_is_none_is_refused(self, tmp_path):
        pytest.importorskip("pyarrow")
        (tmp_path / "a.parquet").write_text("user,item\n")
        with pytest.raises(DataError, match="no readable Parquet file"):
            read(tmp_path / "a.parquet", ("user",))


class TestSeconds:
    def test_numbers_are_in_the_unit_and_dates_are_utc(self):
        texts = [
            "1588687728923",
            "2020-05-05",
            "2020-05-05T14:08:48.923+02:00",
            "2020-05-05 12:08:48",
            "soon",
            None,
            "",
        ]
        expected = [1588687728.923, 1588636800, 1588680528.923, 1588680528, np.nan, np.nan, np.nan]
        np.testing.assert_allclose(seconds(texts, "ms"), expected, rtol=0, atol=1e-6)

    def test_plain_numbers_keep_every_digit(self):
        np.testing.assert_array_equal(seconds([1588687728923, 1.5, None], "ms"), [1588687728.923, 0.0015, np.nan])
        np.testing.assert_array_equal(seconds([float("inf"), float("nan"), "12"]), [np.nan, np.nan, 12])

    @pytest.mark.parametrize("rest", [10**9, "1970-01-01T00:00:01Z"])
    def test_the_number_that_pandas_writes_for_no_time_is_none(self, rest):
        np.testing.assert_array_equal(seconds([-(2**63), rest], "ns"), [np.nan, 1])

    @pytest.mark.parametrize("zone", ["T10+02:00", "T10+02", "T100000+0200", " 10-02", "T10:00:00 +02:00", "T10Z"])
    def test_a_zone_is_that_of_its_own_text_alone(self, zone):
        ten = "2024-03-01T10:00:00"
        of_zone = {"+": -7200, "-": 7200, "Z": 0}[next(sign for sign in "+-Z" if sign in zone)]
        found = seconds([ten, f"2024-03-01{zone}", ten]) - 1709287200
        assert found.tolist() == [0, of_zone, 0]
        assert seconds([f"2024-03-01{zone}", " 2024-03-01"])[1] == 1709251200

    @pytest.mark.parametrize("date", ["9999-12-31", "0001-01-01T00:00:00", "1600-01-01T00:00:00Z"])
    def test_dates_that_nanoseconds_cannot_count_are_none(self, date):
        np.testing.assert_array_equal(seconds([date]), [np.nan])
        np.testing.assert_array_equal(seconds([date, "1970-01-02", "1970-01-01T00:00:01Z"]), [np.nan, 86400, 1])

    @pytest.mark.parametrize("values", [[[2024, 3, 1]] * 2, [[2024, 3], [2024]], [{"y": 1}, ["2024-03-01"]]])
    def test_lists_and_objects_are_no_times(self, values):
        np.testing.assert_array_equal(seconds(values), [np.nan, np.nan])

    def test_dates_of_parquet_are_read(self):
        from datetime import date, datetime, timezone

        moment = datetime(2020, 5, 5, 12, tzinfo=timezone.utc)
        np.testing.assert_array_equal(seconds([moment, date(2020, 5, 5)]), [1588680000, 1588636800])


class TestTexts:
    @pytest.mark.parametrize(
        ("raw", "clean"),
        [
            ("Salt &amp; Pepper", "Salt & Pepper"),
            ("Salt &amp;amp; Pepper", "Salt & Pepper"),
            ("<b>Big</b><br/>pan", "Big pan"),
            ("&lt;b&gt;Big&lt;/b&gt; pan", "Big pan"),
            ("a < b and c > d", "a < b and c > d"),
            ("x<script>alert('1')</script>y<!-- no -->z", "x y z"),
            (" many\t\n  blanks\u2028here ", "many blanks here"),
            (["One.", "Two.", "One.", None, {"a": 1}], "One. Two."),
            (None, ""),
            (True, ""),
            (12, "12"),
            (float("nan"), ""),
        ],
    )
    def test_are_plain_lines(self, raw, clean):
        assert plain_text(raw) == clean

    @pytest.mark.parametrize(
        ("raw", "clean"),
        [
            ([["Sports", "Cycling"], ["Toys"]], "Sports, Cycling"),
            (["Gift Cards", "Gift Cards"], "Gift Cards"),
            ("Drama|War", "Drama|War"),
            (None, ""),
        ],
    )
    def test_labels_are_those_of_the_first_path(self, raw, clean):
        assert plain_labels(raw) == clean

    @given(st.text())
    def test_have_no_line_ends_tabs_or_outer_blanks_whatever_they_held(self, raw):
        clean = plain_text(raw)
        assert "\n" not in clean and "\t" not in clean and clean == clean.strip()

    def test_hostile_markup_takes_no_time(self):
        assert plain_text("<script" * 10**6) and plain_text("<!--" * 10**6)
