import base64
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest

from recbole_edt.errors import ConfigError, DataError
from recbole_edt.llm.store import Answer, AnswerStore, Exported


def answer(key="k", text="said", **changes):
    whole = Answer(key, "http://e/v1", "m", "chat", "generate@1", 10, 5, 0.25, '{"a":1}', text, "stop")
    return replace(whole, **changes)


@pytest.fixture
def store(tmp_path):
    with AnswerStore(tmp_path / "new" / "cache.sqlite") as opened:
        yield opened


class TestAnswers:
    def test_come_back_by_their_key_and_only_those_asked_for(self, store):
        store.put([answer("a", "one"), answer("b", "two"), answer("c", "three")])
        found = store.get(["c", "a", "nobody"])
        assert {key: one.text for key, one in found.items()} == {"a": "one", "c": "three"}
        assert (found["a"].prompt_tokens, found["a"].completion_tokens, found["a"].cost_usd) == (10, 5, 0.25)
        assert found["a"].finish_reason == "stop" and found["a"].vector is None and not found["a"].rejected

    def test_a_vector_comes_back_to_the_last_bit(self, store):
        vector = np.array([0.1, -3e38, 1e-45], np.float32)
        store.put([answer(kind="embedding", text=None, vector=vector)])
        found = store.get(["k"])["k"].vector
        assert found.dtype == np.float32 and found.tobytes() == vector.tobytes()

    def test_thousands_of_keys_are_found_in_one_call(self, store):
        keys = [f"k{n}" for n in range(1700)]
        store.put(answer(key, key) for key in keys)
        assert {key: one.text for key, one in store.get(keys).items()} == {key: key for key in keys}

    def test_a_rejected_answer_is_as_if_not_there_unless_asked_for(self, store):
        store.put([answer("a", "bad")])
        store.reject(["a"])
        assert store.get(["a"]) == {}
        assert store.get(["a"], rejected=True)["a"].text == "bad" and store.get(["a"], rejected=True)["a"].rejected

    def test_a_good_answer_is_given_before_a_rejected_one_and_a_new_one_before_an_old_one(self, store):
        store.put([answer("a", "old good"), answer("a", "new good")])
        assert store.get(["a"], rejected=True)["a"].text == "new good"
        store.reject(["a"])
        store.put([answer("a", "good after all"), answer("b", "old bad"), answer("b", "new bad")])
        store.reject(["b"])
        found = store.get(["a", "b"], rejected=True)
        assert (found["a"].text, found["b"].text) == ("good after all", "new bad")

    def test_no_row_is_overwritten_so_that_every_paid_call_counts(self, store):
        store.put([answer("a"), answer("a", "again")])
        store.reject(["a"])
        store.put([answer("a", "third", cost_usd=None)])
        (row,) = store.stats()
        assert (row["answers"], row["rejected"], row["cost_usd"], row["without_price"]) == (3, 2, 0.5, 1)
        assert (row["prompt_tokens"], row["completion_tokens"]) == (30, 15)

    def test_text_of_any_kind_comes_back_as_it_was(self, store):
        text = "a\x00b '\"; DROP TABLE answers; -- \u2028 \U0001f355"
        store.put([answer("a", text, request=json.dumps({"m": text}))])
        assert store.get(["a"])["a"].text == text

    def test_a_second_opening_finds_what_the_first_one_put(self, tmp_path):
        with AnswerStore(tmp_path / "c.sqlite") as first:
            first.put([answer("a")])
        with AnswerStore(tmp_path / "c.sqlite") as second:
            assert second.get(["a"])["a"].text == "said"

    def test_what_was_put_is_on_the_disk_before_put_returns(self, store):
        with sqlite3.connect(store.path) as other:
            assert other.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert store._db.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL: fsync at every commit

    def test_stats_tell_endpoints_models_kinds_and_templates_apart(self, store):
        store.put(
            [answer("a"), answer("b", model="n"), answer("c", template="analyze@1"), answer("d", kind="embedding")]
        )
        store.put([answer("e"), answer("f", endpoint="http://f/v1")])
        rows = [(row["endpoint"], row["model"], row["kind"], row["template"], row["answers"]) for row in store.stats()]
        assert rows == [
            ("http://e/v1", "m", "chat", "analyze@1", 1),
            ("http://e/v1", "m", "chat", "generate@1", 2),
            ("http://e/v1", "m", "embedding", "generate@1", 1),
            ("http://e/v1", "n", "chat", "generate@1", 1),
            ("http://f/v1", "m", "chat", "generate@1", 1),
        ]

    def test_recent_gives_the_newest_of_one_endpoint_first(self, store):
        store.put(
            [answer("a", request="1"), answer("b", request="2"), answer("c", model="n"), answer("d", request="3")]
        )
        assert store.recent("http://e/v1", "m", "chat", 2) == [("generate@1", "3", 10, 5), ("generate@1", "2", 10, 5)]


class TestFacts:
    def test_are_kept_by_endpoint_model_and_name(self, store):
        store.remember("e", "m", "dialect", {"mode": "text", "without": ["seed"]})
        store.remember("e", "m", "dialect", {"mode": "json_object"})
        assert store.fact("e", "m", "dialect") == {"mode": "json_object"}
        assert store.fact("e", "n", "dialect") is None and store.fact("e", "m", "length") is None

    def test_go_with_the_last_answer_of_their_model_and_not_before(self, store):
        store.put([answer("a", model="m"), answer("b", model="m", template="generate@2"), answer("c", model="n")])
        for model in "mn":
            store.remember("http://e/v1", model, "length", 16)
        store.prune(model="m", template="generate@2")
        assert store.fact("http://e/v1", "m", "length") == 16
        store.prune(model="m")
        assert store.fact("http://e/v1", "m", "length") is None
        assert store.fact("http://e/v1", "n", "length") == 16


class TestExported:
    def test_requests_are_known_until_their_answers_are_imported(self, store):
        requests = [Exported(key, "e", "m", "chat", "generate@1", "{}") for key in "abc"]
        store.note_export(requests)
        store.note_export(requests[:1])
        assert store.exported(["a", "c", "x"]) == {"a": requests[0], "c": requests[2]}
        store.put([answer("a")], imported=True)
        assert list(store.exported(["a", "b", "c"])) == ["b", "c"]
        store.put([answer("b")])
        assert list(store.exported(["b"])) == ["b"]


class TestExport:
    def test_holds_every_row_as_a_line_of_json_oldest_first(self, store, tmp_path):
        vector = np.array([1.5, -2], np.float32)
        store.put([answer(f"k{n}") for n in range(700)])
        store.put([answer("v", text=None, kind="embedding", vector=vector, request='"tea"')])
        store.reject(["k3"])
        assert store.export(tmp_path / "out.jsonl") == 701
        rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [row["key"] for row in rows] == [*(f"k{n}" for n in range(700)), "v"]
        assert rows[0]["request"] == {"a": 1} and rows[0]["text"] == "said" and rows[0]["cost_usd"] == 0.25
        assert rows[3]["rejected"] == 1 and rows[4]["rejected"] == 0
        assert np.frombuffer(base64.b64decode(rows[-1]["vector"]), "<f4").tolist() == [1.5, -2]


class TestPrune:
    def keys(self, store):
        return sorted(store.get(list("abcdef"), rejected=True))

    def test_deletes_what_fits_every_criterion(self, store):
        store.put([answer("a"), answer("b", model="n"), answer("c", template="generate@2"), answer("d")])
        store.reject(["d"])
        assert store.prune(model="m", template="generate@1", rejected=True) == 1
        assert self.keys(store) == ["a", "b", "c"]
        assert store.prune(model="m", template="generate@1") == 1
        assert self.keys(store) == ["b", "c"]

    def test_a_template_without_a_version_means_all_its_versions_and_no_other(self, store):
        store.put([answer("a"), answer("b", template="generate@2"), answer("c", template="generate_x@1")])
        assert store.prune(template="generate") == 2
        assert self.keys(store) == ["c"]

    def test_deletes_by_age(self, store):
        store.put([answer("a"), answer("b")])
        old = (datetime.now(timezone.utc) - timedelta(days=3, minutes=1)).isoformat(timespec="seconds")
        store._db.execute("UPDATE answers SET created = ? WHERE key = 'a'", [old])
        assert store.prune(older_than_days=4) == 0
        assert store.prune(older_than_days=3) == 1
        assert self.keys(store) == ["b"]

    def test_without_a_criterion_nothing_is_deleted(self, store):
        store.put([answer("a")])
        with pytest.raises(ConfigError, match="cache prune"):
            store.prune()
        assert self.keys(store) == ["a"]

    def test_gives_the_space_back(self, store):
        store.put(answer(f"k{n}", "x" * 5000) for n in range(400))
        store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        before = store.path.stat().st_size
        store.prune(model="m")
        store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert store.path.stat().st_size < before / 10


class TestFile:
    def test_a_file_that_is_no_database_is_a_data_error_that_names_it(self, tmp_path):
        (tmp_path / "c.sqlite").write_bytes(b"this is not a database, but long enough to look like one" * 10)
        with pytest.raises(DataError, match=r"c\.sqlite: the cache of answers cannot be used"):
            AnswerStore(tmp_path / "c.sqlite")

    def test_a_folder_in_its_place_is_a_data_error(self, tmp_path):
        with pytest.raises(DataError, match="cannot be used"):
            AnswerStore(tmp_path)

    def test_a_file_in_the_place_of_its_folder_is_a_data_error(self, tmp_path):
        (tmp_path / "a").write_text("a file")
        with pytest.raises(DataError, match="cannot be used"):
            AnswerStore(tmp_path / "a" / "c.sqlite")

    def test_a_file_of_another_version_is_refused_and_left_alone(self, tmp_path):
        AnswerStore(tmp_path / "c.sqlite").close()
        with sqlite3.connect(tmp_path / "c.sqlite") as db:
            db.execute("PRAGMA user_version = 99")
        db.close()
        with pytest.raises(DataError, match="format 99, this is 1"):
            AnswerStore(tmp_path / "c.sqlite")

    def test_a_failed_write_leaves_the_store_usable(self, store):
        with pytest.raises(DataError):
            store.put([answer("a"), answer("b", template=None)])
        assert store.get(["a"]) == {}
        store.put([answer("a")])
        assert list(store.get(["a"])) == ["a"]


class TestSharing:
    WRITER = """
import sys
from recbole_edt.llm.store import Answer, AnswerStore
path, name, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
with AnswerStore(path) as store:
    for i in range(n):
        key = f"{name}{i}"
        store.put([Answer(key, "e", "m", "chat", "t@1", 1, 1, 1.0, "{}", key * 500, "stop")])
        print(key, flush=True)
"""

    def start(self, path, name, n):
        command = [sys.executable, "-c", self.WRITER, str(path), name, str(n)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def test_two_processes_write_into_one_new_file_at_once(self, tmp_path):
        path = tmp_path / "c.sqlite"
        writers = [self.start(path, name, 150) for name in ("left", "right")]
        for writer in writers:
            assert len(writer.communicate(timeout=60)[0].splitlines()) == 150 and writer.returncode == 0
        with AnswerStore(path) as store:
            assert store.stats()[0]["answers"] == 300

    def test_threads_share_one_store(self, store):
        def write(name):
            for n in range(50):
                store.put([answer(f"{name}{n}")])
                assert store.get([f"{name}{n}"])

        threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.stats()[0]["answers"] == 200

    @pytest.mark.parametrize("n_before", [1, 7, 40])
    def test_a_kill_loses_nothing_that_was_confirmed_and_does_not_stop_the_other_process(self, tmp_path, n_before):
        path = tmp_path / "c.sqlite"
        victim, other = self.start(path, "victim", 100_000), self.start(path, "other", 200)
        confirmed = [victim.stdout.readline().strip() for _ in range(n_before)]
        os.kill(victim.pid, signal.SIGKILL)
        confirmed += victim.communicate(timeout=60)[0].split()
        confirmed += other.communicate(timeout=60)[0].split()
        assert other.returncode == 0 and len(confirmed) >= n_before + 200
        with AnswerStore(path) as store:
            found = store.get(confirmed)
            assert set(found) == set(confirmed)
            assert all(one.text == key * 500 for key, one in found.items())
            assert store._db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
