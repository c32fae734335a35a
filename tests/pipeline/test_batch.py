import json

import numpy as np
import pytest
from faulty_server import FaultyServer, batch_answers, word_vector
from test_client import KEY, SCHEMA, client, prices, requests

from recbole_edt.errors import DataError
from recbole_edt.llm import json_answers
from recbole_edt.llm.store import AnswerStore
from recbole_edt.pipeline import batch
from recbole_edt.pipeline.batch import Imported

TEXTS = ["tea", "green tea", "pan"]


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def server():
    with FaultyServer(api_key=KEY) as running:
        yield running


@pytest.fixture
def store(tmp_path):
    with AnswerStore(tmp_path / "cache.sqlite") as opened:
        yield opened


@pytest.fixture
def asking(server, store):
    return client(server, store)


def results(tmp_path, lines, faults=None):
    """The result file of a batch."""
    (tmp_path / "results.jsonl").write_text(batch_answers(lines, faults), encoding="utf-8")
    return tmp_path / "results.jsonl"


def exported(asking, tmp_path, n=5):
    (path,) = batch.export(asking.pending(requests(n)), tmp_path / "batch.jsonl", asking.store)
    return path.read_text(encoding="utf-8")


class TestExport:
    def test_writes_a_line_per_question_as_the_batch_api_wants_it(self, asking, tmp_path):
        lines = [json.loads(line) for line in exported(asking, tmp_path).splitlines()]
        assert len({line["custom_id"] for line in lines}) == 5
        assert all(line["method"] == "POST" and line["url"] == "/v1/chat/completions" for line in lines)
        assert lines[3]["body"]["messages"] == [dict(message) for message in requests(4)[3].messages]
        assert lines[3]["body"]["response_format"]["json_schema"]["schema"] == SCHEMA
        assert KEY not in (tmp_path / "batch.jsonl").read_text()

    def test_sends_nothing(self, asking, server, tmp_path):
        exported(asking, tmp_path)
        assert server.n_calls == 0

    def test_leaves_out_what_is_answered(self, asking, tmp_path):
        asking.ask(requests(2), "asking")
        assert len(exported(asking, tmp_path).splitlines()) == 3

    def test_begins_a_new_file_where_one_is_full(self, asking, tmp_path, monkeypatch):
        monkeypatch.setattr(batch, "MOST_REQUESTS", 2)
        paths = batch.export(asking.pending(requests(5)), tmp_path / "b.jsonl", asking.store)
        assert [path.name for path in paths] == ["b-1.jsonl", "b-2.jsonl", "b-3.jsonl"]
        assert [len(path.read_text().splitlines()) for path in paths] == [2, 2, 1]
        line = len(paths[0].read_bytes()) // 2
        monkeypatch.setattr(batch, "MOST_BYTES", int(1.5 * line))
        assert len(batch.export(asking.pending(requests(3)), tmp_path / "c.jsonl", asking.store)) == 3

    def test_of_nothing_is_an_empty_file(self, asking, tmp_path):
        (path,) = batch.export([], tmp_path / "b.jsonl", asking.store)
        assert path.read_text() == ""


class TestImport:
    def test_gives_the_answers_that_asking_would_have_given_at_half_the_price(self, server, store, tmp_path):
        asking = client(server, store, prices=prices(tmp_path))
        imported = batch.import_results(asking.config, store, results(tmp_path, exported(asking, tmp_path)))
        assert imported == Imported(5) and str(imported) == "5 answers imported"
        answers = asking.ask(requests(5), "asking")
        assert server.n_calls == 0 and all(one.from_cache for one in answers)
        with AnswerStore(tmp_path / "other.sqlite") as other:
            asked = client(server, other, prices=prices(tmp_path)).ask(requests(5), "asking")
        assert [one.value for one in answers] == [one.value for one in asked]
        assert [one.cost_usd for one in answers] == [one.cost_usd / 2 for one in asked]

    def test_takes_vectors_too(self, asking, server, tmp_path):
        (path,) = batch.export(asking.pending_embedding([*TEXTS, "tea", ""]), tmp_path / "b.jsonl", asking.store)
        lines = path.read_text().splitlines()
        assert len(lines) == 3 and json.loads(lines[0])["url"] == "/v1/embeddings"
        imported = batch.import_results(asking.config, asking.store, results(tmp_path, path.read_text()))
        assert imported.answers == 3
        vectors = asking.embed(TEXTS, "embedding")
        assert np.array_equal(vectors, np.array([word_vector(text, 16) for text in TEXTS], np.float32))
        assert server.n_calls == 0

    def test_what_is_missing_or_failed_stays_to_be_asked(self, asking, server, tmp_path):
        lines = exported(asking, tmp_path, 7)
        ids = [json.loads(line)["custom_id"] for line in lines.splitlines()]
        faults = dict(zip(ids, ["missing", "expired", "500", "null", "refusal"], strict=False))
        imported = batch.import_results(asking.config, asking.store, results(tmp_path, lines, faults))
        assert imported.answers == 4 and imported.failed == {"batch_expired": 1, "status 500": 1}
        assert str(imported) == "4 answers imported; 2 lines without one: 1 batch_expired, 1 status 500"
        # The empty answer is asked for again, with a word on what was wrong; the refusal from the start.
        answers = asking.ask(requests(7), "asking")
        assert all(one.failure is None for one in answers) and server.n_calls == 5
        assert [one.n_asks for one in answers] == [1, 1, 1, 2, 1, 1, 1]

    def test_an_answer_that_does_not_fit_its_schema_is_never_given(self, asking, server, tmp_path):
        lines = exported(asking, tmp_path, 3)
        ids = [json.loads(line)["custom_id"] for line in lines.splitlines()]
        faults = dict.fromkeys(ids[1:], "wrong schema")
        batch.import_results(asking.config, asking.store, results(tmp_path, lines, faults))
        assert [one is None for one in asking.cached(requests(3))] == [False, True, True]
        answers = asking.ask(requests(3), "asking")
        assert all(json_answers.fault_of(one.value, SCHEMA) is None for one in answers)
        assert [one.n_asks for one in answers] == [1, 2, 2] and server.n_calls == 2

    def test_results_in_another_order_are_matched_by_their_id(self, asking, server, tmp_path):
        lines = exported(asking, tmp_path)
        backwards = "\n".join(reversed(batch_answers(lines).splitlines()))
        (tmp_path / "r.jsonl").write_text(backwards + "\n\n")
        assert batch.import_results(asking.config, asking.store, tmp_path / "r.jsonl").answers == 5
        expected = {line["custom_id"]: line for line in map(json.loads, batch_answers(lines).splitlines())}
        for line, answer in zip(map(json.loads, lines.splitlines()), asking.ask(requests(5), "asking"), strict=True):
            assert answer.text == expected[line["custom_id"]]["response"]["body"]["choices"][0]["message"]["content"]
        assert server.n_calls == 0

    def test_strangers_damaged_lines_and_second_copies_are_counted_and_change_nothing(self, asking, tmp_path):
        good = batch_answers(exported(asking, tmp_path, 1)).strip()
        stranger = good.replace(json.loads(good)["custom_id"], "stranger")
        damaged = ["{", "null", '{"custom_id": 7}', good[:-30]]
        broken = json.dumps({**json.loads(good), "response": {"status_code": 200, "body": {"choices": None}}})
        (tmp_path / "r.jsonl").write_text("\n".join([stranger, *damaged, broken, good, good]))
        imported = batch.import_results(asking.config, asking.store, tmp_path / "r.jsonl")
        assert imported.answers == 1
        assert imported.failed == {"unknown, or imported before": 2, "damaged": 4, "garbage": 1}
        assert asking.store.stats()[0]["answers"] == 1

    def test_what_no_cache_can_hold_costs_no_answer_and_no_terminal(self, asking, tmp_path):
        lines = [json.loads(line) for line in batch_answers(exported(asking, tmp_path, 4)).splitlines()]
        lines[0]["response"]["body"]["choices"][0]["finish_reason"] = "\ud800"
        lines[1]["response"]["body"]["usage"]["prompt_tokens"] = 10**30
        lines[2] = {"custom_id": lines[2]["custom_id"], "response": None, "error": {"code": "\x1b[31mbad\ncode"}}
        lines[3]["custom_id"] = "\ud800"
        text = "\ufeff" + "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / "r.jsonl").write_text(text, encoding="utf-8")
        imported = batch.import_results(asking.config, asking.store, tmp_path / "r.jsonl")
        assert imported == Imported(2, {r"\x1b[31mbad code": 1, "unknown, or imported before": 1})

    def test_a_second_import_of_the_same_file_adds_nothing(self, asking, tmp_path):
        path = results(tmp_path, exported(asking, tmp_path))
        batch.import_results(asking.config, asking.store, path)
        again = batch.import_results(asking.config, asking.store, path)
        assert again == Imported(0, {"unknown, or imported before": 5})
        assert asking.store.stats()[0]["answers"] == 5

    def test_a_file_that_is_none_is_a_data_error(self, asking, tmp_path):
        (tmp_path / "r.jsonl").write_text("not a batch\nat all\n")
        with pytest.raises(DataError, match="no line is a result of the Batch API"):
            batch.import_results(asking.config, asking.store, tmp_path / "r.jsonl")
        with pytest.raises(DataError, match="nowhere.jsonl: cannot be read"):
            batch.import_results(asking.config, asking.store, tmp_path / "nowhere.jsonl")
        (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(DataError, match="cannot be read"):
            batch.import_results(asking.config, asking.store, tmp_path / "b.jsonl")

    def test_an_input_file_given_by_mistake_is_named_and_changes_nothing(self, asking, tmp_path):
        exported(asking, tmp_path)
        with pytest.raises(DataError, match="looks like the exported file; give the batch's output"):
            batch.import_results(asking.config, asking.store, tmp_path / "batch.jsonl")
        assert len(asking.pending(requests(5))) == 5
