"""What a language model writes for a user, from the request to items in the sequence."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from toy import LetterEmbedder, ScriptedWriter, dataset, sequences, table_of

from recbole_edt.augment import proposals
from recbole_edt.augment.augment import augment, generation_requests
from recbole_edt.augment.proposals import add_virtual_items, nearest_items
from recbole_edt.augment.settings import AugmentConfig
from recbole_edt.augment.trace import read_trace, write_trace
from recbole_edt.cleaning import clean
from recbole_edt.data import atomic
from recbole_edt.data.split import TRAIN, leave_one_out, training_rows
from recbole_edt.data.two_domains import keep_rows
from recbole_edt.errors import ConfigError, DataError
from recbole_edt.text.item_text import item_text

# Vectors count the letters a to d.
TITLES = {"f1": "a", "f2": "b", "f3": "bc", "k1": "ab", "k2": "cd", "k3": "abc"}
LLM = AugmentConfig(generator="llm", tau=0.9, k=2, n_clusters=6)
TO_KITCHEN = "food to kitchen"


def data_of(*rows):
    return dataset(rows, items=TITLES, titles=TITLES)


def vectors_of(data):
    return LetterEmbedder().embed(item_text(data.item_fields))


def items(*titles):
    return {"items": [{"title": title} for title in titles]}


def by_direction(answers, default="refused"):
    """Answers by the tag ``user: direction``, or by the direction alone."""
    return lambda request: answers.get(request.tag, answers.get(request.tag.partition(": ")[2], default))


def run(data, answers, config=LLM, default="refused", **settings):
    writer = ScriptedWriter(by_direction(answers, default), LetterEmbedder())
    config = replace(config, **settings)
    return augment(data, table_of(data, vectors_of(data)), config, writer), writer


def fates(trace, *columns):
    return [tuple(row) for row in trace[["title", "fate", *columns]].itertuples(index=False)]


class TestVirtualItems:
    data = dataset(["f1 k1 k2"], titles={"f1": "Green Tea", "k1": "Tea Pot", "k2": "Pan"})

    def add(self, *titles, domain=1):
        return add_virtual_items(self.data, pd.DataFrame({"title": titles}), domain)

    def test_a_text_of_the_catalogue_is_that_item_whatever_its_case_and_spaces(self):
        data, item = self.add("tea  POT", "Pan", "pan ")
        assert item.tolist() == [1, 2, 2]
        assert len(data.items) == 3

    def test_another_text_becomes_one_virtual_item_however_often_it_comes(self):
        data, item = self.add("Kettle", "Wok", "kettle")
        assert item.tolist() == [3, 4, 3]
        assert data.virtual.tolist() == [False] * 3 + [True] * 2
        assert data.item_domain.tolist() == [0, 1, 1, 1, 1]
        assert data.item_fields["title"].tolist() == ["Green Tea", "Tea Pot", "Pan", "Kettle", "Wok"]
        assert data.items[3].startswith("edt-virtual-") and data.items[3] != data.items[4]

    def test_a_text_of_the_other_domain_is_a_virtual_item(self):
        data, item = self.add("Green Tea")
        assert item.tolist() == [3] and data.virtual[3]

    def test_its_token_depends_on_text_and_domain_alone(self):
        token = self.add("Kettle")[0].items[3]
        assert self.add("Wok", " KETTLE")[0].items[4] == token
        assert self.add("Kettle", domain=0)[0].items[3] != token

    def test_a_record_without_text_is_no_item(self):
        data, item = self.add("", " ", "Wok")
        assert item.tolist() == [-1, -1, 3]

    def test_columns_may_differ_and_values_may_miss(self):
        fields = pd.DataFrame({"title": ["Kettle", None], "brand": [None, "Acme"]})
        data, item = add_virtual_items(self.data, fields, 1)
        assert item.tolist() == [3, 4]
        assert data.item_fields.to_dict("list") == {
            "title": ["Green Tea", "Tea Pot", "Pan", "Kettle", ""],
            "brand": ["", "", "", "", "Acme"],
        }

    @pytest.mark.parametrize(
        "brand, found", [("", "k1"), ("ACME", "k1"), ("Bolt", "k2"), ("Other", "k3"), ("new", "k3")]
    )
    def test_a_title_of_the_catalogue_is_its_first_item_whose_brand_does_not_contradict(self, brand, found):
        fields = {"title": ["Tea", "Pot", "Pot", "Pot"], "brand": ["", "Acme", "Bolt", ""], "category": ["x"] * 4}
        data = replace(dataset(["f1 k1 k2 k3"]), item_fields=pd.DataFrame(fields, dtype=object))
        record = pd.DataFrame({"title": ["pot"], "brand": [brand], "category": ["y"]})
        same, item = add_virtual_items(data, record, 1)
        assert data.items[item].tolist() == [found] and len(same.items) == 4

    def test_a_contradicting_brand_makes_another_item(self):
        fields = {"title": ["Tea", "Pot"], "brand": ["", "Acme"]}
        data = replace(dataset(["f1 k1"]), item_fields=pd.DataFrame(fields, dtype=object))
        more, item = add_virtual_items(data, pd.DataFrame({"title": ["Pot"], "brand": ["Bolt"]}), 1)
        assert more.virtual[item].all()

    def test_no_records_change_nothing(self):
        data, item = add_virtual_items(self.data, pd.DataFrame({"title": []}, dtype=object), 1)
        assert len(item) == 0 and data.items.tolist() == self.data.items.tolist()


class TestRequests:
    def requests(self, data, config=LLM):
        writer = ScriptedWriter(None)
        asked = generation_requests(data, table_of(data, vectors_of(data)), config, writer)
        assert not writer.asked
        return asked

    def test_each_direction_tells_the_representatives_of_its_source_in_time_order(self):
        asked = self.requests(data_of("f3 k1 f1 k2 f2 f2", "k2 k1 f1 f1"))
        assert [request.tag for request in asked.requests] == [
            f"u0: {TO_KITCHEN}",
            "u0: kitchen to food",
            "u1: kitchen to food",
        ]
        assert asked.user.tolist() == [0, 0, 1] and asked.source.tolist() == [0, 1, 1]
        listed = [request.messages[1]["content"].split(":\n")[2].split("\n\n")[0] for request in asked.requests]
        assert listed == ['- "bc"\n- "a"', '- "ab"\n- "cd"', '- "cd"\n- "ab"']
        assert '10 items of the domain "kitchen"' in asked.requests[0].messages[1]["content"]

    def test_one_item_per_cluster_speaks(self):
        asked = self.requests(data_of("f1 f2 f3 f1 f1"), replace(LLM, n_clusters=1))
        assert asked.requests[0].messages[1]["content"].count('\n- "') == 1

    def test_users_with_fewer_than_three_rows_and_held_out_items_are_not_told(self):
        asked = self.requests(data_of("f1 k1", "f1 k2 k1"))
        assert [request.tag for request in asked.requests] == [f"u1: {TO_KITCHEN}"]
        assert '"ab"' not in str(asked.requests[0].messages) and '"cd"' not in str(asked.requests[0].messages)

    def test_minority_asks_only_towards_the_weaker_domain(self):
        asked = self.requests(data_of("f1 f2 k1 f1 f1"), replace(LLM, directions="minority"))
        assert [request.tag for request in asked.requests] == [f"u0: {TO_KITCHEN}"]

    def test_items_without_text_are_not_told_and_a_user_of_such_items_is_not_asked(self):
        data = dataset(["f1 f2 f2 f2", "f1 f1 f1"], titles={"f1": "", "f2": "tea"}, items=["k1"])
        table = table_of(data, np.eye(3))  # vectors of one's own, whatever the text
        asked = generation_requests(data, table, LLM, ScriptedWriter(None))
        assert [request.tag for request in asked.requests] == [f"u0: {TO_KITCHEN}"]
        assert asked.requests[0].messages[1]["content"].count('\n- "') == 1

    def test_the_parts_asked_for_are_those_of_the_target_domain(self):
        columns = {
            "name": ["a", "b", "c", "d"],
            "brand": ["x", "", "", ""],
            "class": ["", "", "pots", "pots"],
            "description": ["", "", "round", ""],
        }
        data = replace(dataset(["f1 f2 f1 f1", "k1 k2 k1 k1"]), item_fields=pd.DataFrame(columns, dtype=object))
        table = table_of(data, np.eye(4))
        writer = ScriptedWriter(lambda r: {"items": [dict.fromkeys(_fields(r), "zz")]}, LetterEmbedder())

        def _fields(request):
            return request.schema["properties"]["items"]["items"]["required"]

        asked = generation_requests(data, table, LLM, writer)
        assert [_fields(request) for request in asked.requests] == [
            ["title", "category", "description"],
            ["title", "brand"],
        ]
        found = augment(data, table_of(data, np.eye(4)), replace(LLM, tau=-1.0, filter=False), writer)
        rows = found.data.item_fields[found.data.virtual]
        assert list(found.data.item_fields) == list(columns)  # no column is added beside the catalogue's own
        assert rows.to_dict("list") == {"name": [], "brand": [], "class": [], "description": []}  # no vector: "zz"

    def test_nothing_is_asked_offline_or_without_insertion(self):
        data = data_of("f1 f2 f1 f1")
        assert self.requests(data, replace(LLM, generator="offline")).requests == []
        assert self.requests(data, replace(LLM, insertion="none")).requests == []
        assert run(data, {}, insertion="none")[1].asked == []

    def test_one_users_requests_are_the_same_alone_as_among_all(self):
        data = data_of("f3 k1 f1 k2 f2 f2", "k2 k1 f1 f1", "f2 f2 k1 f3 f1")
        for user in range(3):
            alone, among = self.requests(keep_rows(data, data.user == user)), self.requests(data)
            assert alone.requests == [each for u, each in zip(among.user, among.requests, strict=True) if u == user]

    def test_augment_asks_just_these_in_one_wave(self):
        data = data_of("f3 k1 f1 k2 f2 f2", "k2 k1 f1 f1")
        _, writer = run(data, {})
        assert writer.asked == self.requests(data).requests and writer.waves == [3]


class TestFates:
    """u0 knows f1 (a) and k1 (ab) in training."""

    data = data_of("f1 k1 f3 f3", "f2 f2 f2 f2")
    written = items("aab", "AB", "A", "cd", " CD", "...", "zz", "abb", "k")

    def test_every_proposal_has_a_fate_with_its_scores_and_place(self):
        found, _ = run(self.data, {f"u0: {TO_KITCHEN}": self.written, "u0: kitchen to food": items("b")})
        trace = found.trace[(found.trace["user"] == "u0") & (found.trace["source"] == "food")]
        assert fates(trace) == [
            ("aab", "kept"),
            ("AB", "own item"),  # k1
            ("A", "own item"),  # the input again
            ("cd", "rank"),
            ("CD", "duplicate"),
            ("...", "no text"),
            ("zz", "no vector"),
            ("abb", "kept"),
            ("k", "no vector"),
        ]
        scores = trace[["source_score", "target_score"]].to_numpy()
        cosines = [[2 / 5**0.5, 3 / 10**0.5], [0, 0], [1 / 5**0.5, 3 / 10**0.5]]
        assert scores[[0, 3, 7]] == pytest.approx(np.array(cosines))
        assert np.isnan(scores[[1, 2, 4, 5, 6, 8]]).all()
        assert trace["rank"].tolist() == [1, 0, 0, 3, 0, 0, 0, 2, 0]
        assert trace["place"].tolist() == [1, 0, 0, 0, 0, 0, 0, 1, 0]
        assert trace["after"].tolist() == ["f1", "", "", "", "", "", "", "f1", ""]
        assert trace["item"].tolist()[1] == "k1" and trace["item"].tolist()[5] == ""

    def test_what_is_kept_stands_after_its_source_best_first(self):
        found, _ = run(self.data, {f"u0: {TO_KITCHEN}": self.written})
        new = found.data.items[found.data.virtual]
        titles = dict(zip(found.data.items, found.data.item_fields["title"], strict=True))
        assert [titles[token] for token in new] == ["aab", "abb"]
        assert sequences(found.data)[0] == f"f1 *{new[0]} *{new[1]} k1 f3 f3"

    def test_virtual_items_that_nobody_was_given_are_not_in_the_catalogue(self):
        found, _ = run(self.data, {f"u0: {TO_KITCHEN}": self.written})
        assert found.data.virtual.sum() == 2
        assert found.data.items[: len(self.data.items)].tolist() == self.data.items.tolist()

    def test_below_tau_is_told_apart_from_rank(self):
        found, _ = run(self.data, {f"u0: {TO_KITCHEN}": self.written}, k=3)
        trace = found.trace[found.trace["user"] == "u0"].reset_index(drop=True)
        assert trace["fate"][3] == "tau" and trace["rank"][3] == 3

    def test_without_the_filter_all_that_are_items_go_in(self):
        found, _ = run(self.data, {f"u0: {TO_KITCHEN}": self.written}, filter=False)
        assert found.counts["fates_food_to_kitchen"] == {
            "kept": 3,
            "own item": 2,
            "duplicate": 1,
            "no text": 1,
            "no vector": 2,
            "refused": 1,
        }

    def test_a_user_without_history_in_the_target_domain_is_compared_with_its_catalogue(self):
        found, _ = run(self.data, {f"u1: {TO_KITCHEN}": items("bbc", "ab", "bd")}, k=3)
        trace = found.trace[found.trace["user"] == "u1"]
        # the catalogue: ab, cd, abc; what exists needs no likeness
        likeness = [3 / (5 * 3) ** 0.5, 1, 1 / 2]
        assert trace["target_score"].tolist() == pytest.approx(likeness)
        assert trace["fate"].tolist() == ["tau", "kept", "tau"]

    def test_a_failed_request_fails_alone_and_is_counted_by_kind(self):
        answers = {f"u0: {TO_KITCHEN}": items("aab"), "u0: kitchen to food": "cut off", f"u1: {TO_KITCHEN}": "timeout"}
        found, _ = run(self.data, answers)
        assert found.counts["asked"] == 3 and found.counts["failed"] == {"cut off": 1, "timeout": 1}
        assert fates(found.trace, "user") == [("aab", "kept", "u0"), ("", "timeout", "u1"), ("", "cut off", "u0")]
        assert found.counts["users_answered_food_to_kitchen"] == 1
        assert found.counts["users_asked_food_to_kitchen"] == 2 and found.counts["users_not_asked_food_to_kitchen"] == 0
        assert found.counts["users_asked_kitchen_to_food"] == 1 and found.counts["users_not_asked_kitchen_to_food"] == 1

    def test_if_all_fail_the_data_stay_as_they_are(self):
        found, writer = run(self.data, {})
        assert sequences(found.data) == sequences(self.data) and not found.data.virtual.any()
        assert found.counts["failed"] == {"refused": 3} and found.counts["inserted"] == 0

    def test_the_same_title_again_is_a_duplicate_whatever_else_is_said_of_it(self):
        fields = pd.DataFrame({"title": list("abcd"), "category": list("abcd")}, dtype=object)
        data = replace(dataset(["f1 f2 k1 k2", "k2"]), item_fields=fields)
        records = [{"title": "Ab", "category": "x"}, {"title": "ab", "category": "y"}, {"title": "ac", "category": "x"}]
        writer = ScriptedWriter(lambda request: {"items": records}, LetterEmbedder())
        found = augment(data, table_of(data, vectors_of(data)), replace(LLM, tau=-1.0, k=9), writer)
        assert found.trace["fate"].tolist() == ["kept", "duplicate", "kept"]

    def test_a_title_of_both_catalogues_is_the_target_domains_item(self):
        data = dataset(["f1 f2 k2 k2", "k1"], titles={"f1": "Dune", "k1": "dune", "k2": "ab", "f2": "b"})
        writer = ScriptedWriter(lambda request: items("DUNE", "B"), LetterEmbedder())
        found = augment(data, table_of(data, vectors_of(data)), replace(LLM, tau=-1.0), writer)
        assert fates(found.trace, "item")[0] == ("DUNE", "kept", "k1")
        assert fates(found.trace)[1] == ("B", "own item")  # the kitchen has no b: it is the input again

    @pytest.mark.parametrize("title, brand", [("tea", "Bolt"), ("TEA. Acme", ""), ("Tea", "acme")])
    def test_an_input_is_known_again_by_its_text_and_by_its_title(self, title, brand):
        fields = pd.DataFrame({"title": ["Tea", "b", "ab"], "brand": ["Acme", "", "Bolt"]}, dtype=object)
        data = replace(dataset(["f1 f2 k1 k1"]), item_fields=fields)
        writer = ScriptedWriter(lambda r: {"items": [{"title": title, "brand": brand}]}, LetterEmbedder())
        found = augment(data, table_of(data, vectors_of(data)), LLM, writer)
        assert found.trace["fate"].tolist() == ["own item"]

    def test_an_item_that_is_held_out_may_be_proposed(self):
        data = data_of("f1 f2 k1 k3")
        found, _ = run(data, {TO_KITCHEN: items("abc")}, tau=-1.0)
        assert sequences(found.data) == ["f1 f2 *k3 k1 k3"]  # as like f1 as f2, which is the later

    def test_only_new_texts_that_are_still_in_are_embedded_each_once(self):
        embedder = LetterEmbedder()
        data = data_of("f1 k1 f3 f3", "f1 f2 f2 f2")
        writer = ScriptedWriter(
            by_direction({TO_KITCHEN: items("aab", "aab", "ab", "a", "..."), "kitchen to food": "x"}), embedder
        )
        augment(data, table_of(data, vectors_of(data)), LLM, writer)
        assert embedder.asked == ["aab"]

    def test_vectors_of_another_length_are_an_error(self):
        data = data_of("f1 k1 f3 f3")
        table = table_of(data, np.ones((6, 3)))
        with pytest.raises(DataError, match="shape \\(1, 4\\).*have 3 numbers"):
            augment(data, table, LLM, ScriptedWriter(lambda request: items("aab"), LetterEmbedder()))

    def test_a_vector_that_could_not_be_had_puts_its_item_out(self):
        class Broken(LetterEmbedder):
            def embed(self, texts):
                return np.where(np.array([[text == "aab"] for text in texts]), np.nan, super().embed(texts))

        writer = ScriptedWriter(lambda request: items("aab", "abb"), Broken())
        data = data_of("f1 k1 f3 f3")
        found = augment(data, table_of(data, vectors_of(data)), LLM, writer)
        assert found.trace["fate"].tolist()[:2] == ["no vector", "kept"]

    def test_a_language_model_is_needed(self):
        data = data_of("f1 k1 f3 f3")
        with pytest.raises(ConfigError, match="augment.generator: 'llm' needs"):
            augment(data, table_of(data, vectors_of(data)), LLM)


class TestCatalogue:
    """``generated_items: catalog``: u0 knows k1 (ab); the kitchen has cd and abc besides."""

    def fates(self, *titles, rows=("f1 k1 f3 f3",), **settings):
        options = {"generated_items": "catalog", "tau": -1.0, "k": 9} | settings
        found, _ = run(data_of(*rows), {TO_KITCHEN: items(*titles)}, **options)
        assert not found.data.virtual.any()
        return fates(found.trace[found.trace["source"] == "food"], "item")

    def test_a_text_stands_for_the_nearest_item_that_the_user_does_not_have(self):
        assert self.fates("aab", "dd") == [("aab", "kept", "k3"), ("dd", "kept", "k2")]

    def test_what_one_user_has_another_may_be_given(self):
        assert self.fates("aab", rows=("f1 k1 f3 f3", "f1 k3 f3 f3")) == [("aab", "kept", "k3"), ("aab", "kept", "k1")]

    def test_so_does_the_name_of_an_item_that_the_user_has(self):
        assert self.fates("ab") == [("ab", "kept", "k3")]

    def test_two_texts_with_one_nearest_item_are_duplicates(self):
        assert self.fates("aab", "abb") == [("aab", "kept", "k3"), ("abb", "duplicate", "k3")]

    def test_the_input_again_is_still_out(self):
        assert self.fates("A") == [("A", "own item", self.fates("A")[0][2])]

    def test_who_has_everything_is_given_nothing(self):
        rows = ("f1 k1 k2 k3 f3 f3",)
        assert self.fates("aab", rows=rows) == [("aab", "own item", "")]

    def test_what_is_inserted_is_judged_not_what_was_written(self):
        trace = self.fates("aab", tau=0.81)  # abc and ab: 2 / sqrt(6) = .816; aab and ab would have .949
        assert trace == [("aab", "kept", "k3")]
        assert self.fates("aab", tau=0.82) == [("aab", "tau", "k3")]


class TestNearestItems:
    def test_the_most_similar_is_found_ties_to_the_first(self):
        offered = np.array([[0, 1], [1, 0], [1, 0]], np.float32)
        index, cosine = nearest_items(np.array([[1, 0], [0.6, 0.8]], np.float32), offered)
        assert index.tolist() == [1, 0] and cosine == pytest.approx([1, 0.8])

    def test_nothing_to_take_is_minus_one(self):
        index, cosine = nearest_items(np.ones((2, 3), np.float32), np.zeros((0, 3), np.float32))
        assert index.tolist() == [-1, -1] and np.isneginf(cosine).all()

    def test_the_block_size_does_not_matter(self, monkeypatch):
        rng = np.random.default_rng(0)
        arguments = rng.normal(size=(20, 3)), rng.normal(size=(9, 3))
        barred = sp.csr_matrix(rng.random((20, 9)) < 0.4)
        whole = nearest_items(*arguments, barred)
        monkeypatch.setattr(proposals, "_BLOCK", 3)
        parts = nearest_items(*arguments, barred)
        assert [part.tolist() for part in whole] == [part.tolist() for part in parts]
        assert not barred[np.arange(20), whole[0]].any()


class TestTrace:
    def test_it_reads_back_to_six_decimals_for_one_user_or_all(self, tmp_path):
        data = data_of("f1 k1 f3 f3", "f2 f2 f2 f2")
        found, _ = run(data, {TO_KITCHEN: items("aab", "", 'x|y\u2028z "q" <b>', "cd"), "kitchen to food": "timeout"})
        write_trace(found.trace, tmp_path / "trace.jsonl")
        whole, one = read_trace(tmp_path / "trace.jsonl"), read_trace(tmp_path / "trace.jsonl", "u1")
        expected = found.trace.round({"source_score": 6, "target_score": 6})
        pd.testing.assert_frame_equal(whole, expected, check_dtype=False)
        assert one["user"].unique().tolist() == ["u1"] and len(one) == 4
        assert (tmp_path / "trace.jsonl").read_text(encoding="utf-8").count("\n") == len(whole)

    def test_an_empty_one_reads_back(self, tmp_path):
        write_trace(read_trace(_file(tmp_path, "")), tmp_path / "empty.jsonl")
        assert read_trace(tmp_path / "empty.jsonl").equals(read_trace(_file(tmp_path, "")))

    @pytest.mark.parametrize("line", ["{", "5", "null", '"text"'])
    def test_a_damaged_line_is_named(self, tmp_path, line):
        with pytest.raises(DataError, match="line 2: no row of a trace"):
            read_trace(_file(tmp_path, f'{{"user": "u0"}}\n{line}\n'))

    def test_the_offline_proposals_are_traced_too(self):
        data = dataset(["f1 f2 f5 f5", "f1 k1 k2 f5 f5", "f1 k1 k2 f5 f5", "f2 k2 f5 f5"])
        found = augment(data, table_of(data, np.eye(len(data.items))), AugmentConfig(tau=-1.0, k=1))
        mine = found.trace[found.trace["user"] == "u0"]
        assert set(mine["item"]) == {"k1", "k2"} and set(mine["fate"]) == {"kept", "rank"}
        assert (found.trace["fate"] == "kept").sum() == found.data.generated.sum()


def _file(folder, text):
    (folder / "given.jsonl").write_text(text, encoding="utf-8")
    return folder / "given.jsonl"


# ---- promises over anything a model may write --------------------------------------------------------------------

letters = st.text("abcd AB.", max_size=5)
anything = st.text(max_size=12)
records = st.lists(st.one_of(letters, anything), max_size=6)
failures = st.sampled_from(["refused", "timeout"])
histories = st.lists(st.lists(st.sampled_from(sorted(TITLES)), min_size=1, max_size=7), min_size=1, max_size=4)


class Script:
    """Draws each answer from hypothesis once, so that the same request has the same answer."""

    def __init__(self, draw):
        self.draw, self.given = draw, {}

    def __call__(self, request):
        key = str(request.messages)
        if key not in self.given:
            self.given[key] = self.draw()
        titles = self.given[key]
        return titles if isinstance(titles, str) else items(*titles)


def drawn(data):
    return Script(lambda: data.draw(st.one_of(records, failures)))


class TestPromises:
    def augmented(self, data, script, **settings):
        writer = ScriptedWriter(script, LetterEmbedder())
        return augment(data, table_of(data, vectors_of(data)), replace(LLM, **settings), writer)

    @settings(max_examples=60)
    @given(histories, st.data(), st.sampled_from(["virtual", "catalog"]), st.booleans())
    def test_whatever_is_written_the_original_comes_back_and_all_is_accounted_for(self, rows, draw, kind, filtered):
        data = data_of(*[" ".join(row) for row in rows])
        script = drawn(draw)
        found = self.augmented(data, script, generated_items=kind, filter=filtered, tau=0.3)
        result, trace = found.data, found.trace
        original = keep_rows(result, ~result.generated)
        assert sequences(original) == sequences(data)
        assert (leave_one_out(result)[result.generated] == TRAIN).all()
        # every user and request
        for way, source in ((TO_KITCHEN, "food"), ("kitchen to food", "kitchen")):
            key = way.replace(" ", "_")
            assert found.counts[f"users_asked_{key}"] + found.counts[f"users_not_asked_{key}"] == len(data.users)
            part = trace[trace["source"] == source]
            assert found.counts[f"users_asked_{key}"] == part["user"].nunique()
            assert sum(found.counts[f"fates_{key}"].values()) == len(part)
            assert found.counts[f"kept_{key}"] == (part["fate"] == "kept").sum()
        # what was inserted: new to the user, once, of the other domain, after the item named
        new = np.flatnonzero(result.generated)
        assert len(new) == (trace["fate"] == "kept").sum() == found.counts["inserted"]
        train = training_rows(data)
        had = {(data.users[u], TITLES[data.items[i]]) for u, i in zip(train.user, train.item, strict=True)}
        texts = [" ".join(text.casefold().split()) for text in item_text(result.item_fields)]
        given_to = [(result.users[result.user[row]], texts[result.item[row]]) for row in new]
        assert not had & set(given_to)
        domains = result.item_domain[result.item[new]].tolist()
        assert len(set(zip(given_to, domains, strict=True))) == len(new)
        # no item that nobody has, none twice
        assert set(np.flatnonzero(result.virtual)) <= set(result.item[new].tolist())
        assert len(set(result.items.tolist())) == len(result.items)
        assert kind == "virtual" or not result.virtual.any()
        again = self.augmented(data, script, generated_items=kind, filter=filtered, tau=0.3)
        assert sequences(again.data) == sequences(result) and again.counts == found.counts

    @settings(max_examples=40)
    @given(histories, st.data(), st.randoms(use_true_random=False))
    def test_held_out_rows_change_no_request_and_no_inserted_row(self, rows, draw, random):
        data = data_of(*[" ".join(row) for row in rows])
        held_out = leave_one_out(data) != TRAIN
        assume(held_out.any())
        swapped = replace(data, item=data.item.copy())
        swapped.item[held_out] = [random.randrange(len(TITLES)) for _ in range(held_out.sum())]
        table, script = table_of(data, vectors_of(data)), drawn(draw)
        one, other = (generation_requests(each, table, LLM, ScriptedWriter(None)) for each in (data, swapped))
        assert one.requests == other.requests
        for kind in ("virtual", "catalog"):
            first, second = (self.augmented(each, script, generated_items=kind, tau="q0.2") for each in (data, swapped))
            assert first.counts == second.counts and first.trace.equals(second.trace)
            assert first.data.items.tolist() == second.data.items.tolist()
            assert sequences(training_rows(first.data)) == sequences(training_rows(second.data))

    @settings(max_examples=40)
    @given(histories, st.data())
    def test_the_atomic_files_read_back_to_the_same_items_and_texts(self, rows, draw):
        data = data_of(*[" ".join(row) for row in rows])
        assume(len(set(data.item_domain[data.item].tolist())) == 2)
        result = self.augmented(data, drawn(draw), filter=False).data
        with tempfile.TemporaryDirectory() as folder:
            atomic.write(result, Path(folder), "toy")
            back = atomic.read(folder, "toy", data.domains)
        assert sequences(back) == sequences(result)
        texts = [dict(zip(each.items, item_text(each.item_fields), strict=True)) for each in (result, back)]
        assert texts[0] == texts[1]
        assert all(text == clean(text) for text in result.item_fields["title"])
