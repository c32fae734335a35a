import asyncio
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from faulty_server import HARMLESS, PASSING_CHAT, PASSING_EMBEDDING, STATUS, FaultyServer, word_vector

from recbole_edt.errors import ConfigError, LLMError
from recbole_edt.llm import endpoint, json_answers
from recbole_edt.llm.client import Client
from recbole_edt.llm.prices import Price, Usage
from recbole_edt.llm.questions import ChatRequest, CostLimit
from recbole_edt.llm.settings import LLMConfig
from recbole_edt.llm.store import AnswerStore

KEY = "sk-test-0123456789abcdef"
ITEM = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 1, "maxLength": 80},
        "brand": {"type": "string", "minLength": 1, "maxLength": 40},
    },
    "required": ["title", "brand"],
    "additionalProperties": False,
}
SCHEMA = {
    "type": "object",
    "properties": {"items": {"type": "array", "minItems": 2, "maxItems": 4, "items": ITEM}},
    "required": ["items"],
    "additionalProperties": False,
}
GOOD = json.dumps({"items": [{"title": "pan", "brand": "Lodge"}, {"title": "pot", "brand": "Lodge"}]})


def request(n, **changes):
    messages = ({"role": "system", "content": "You know."}, {"role": "user", "content": f"kitchen, user {n}"})
    return replace(ChatRequest(messages, SCHEMA, "items", "generate@1", 300, f"user {n}"), **changes)


def requests(n):
    return [request(one) for one in range(n)]


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


def client(server, store, said=None, spent=None, patience_s=10.0, **settings):
    config = LLMConfig(**{"base_url": server.url, "model": "m", "timeout_s": 5.0, **settings})
    say = (said if said is not None else []).append
    return Client(config, store, say, spent, backoff_s=0.005, patience_s=patience_s)


def known(server, store):
    """Forget the question by which the endpoint was explored."""
    client(server, store).ask([request("probe")], "probing")
    server.forget()


def prices(tmp_path):
    """A price list: a dollar per token of an answer, nothing for a prompt."""
    (tmp_path / "prices.yaml").write_text("m: {input: 0, output: 1000000}\n")
    return str(tmp_path / "prices.yaml")


class TestAsking:
    def test_gives_answers_in_the_order_of_the_questions(self, server, store):
        server.answer = lambda body: GOOD.replace("pan", body["messages"][-1]["content"])
        answers = client(server, store).ask(requests(40), "asking")
        assert [one.value["items"][0]["title"] for one in answers] == [f"kitchen, user {n}" for n in range(40)]
        assert all(one.failure is None and one.n_asks == 1 and not one.from_cache for one in answers)

    def test_asks_equal_questions_once_whatever_their_tag(self, server, store):
        known(server, store)
        asked = [request(1), request(2), request(1, tag="another"), request(1)]
        answers = client(server, store).ask(asked, "asking")
        assert server.n_calls == 2
        assert answers[0] == answers[2] == answers[3] != answers[1]

    def test_no_question_is_no_call(self, server, store):
        assert client(server, store).ask([], "asking") == []
        assert server.n_calls == 0

    def test_a_second_run_asks_nothing_and_gives_the_same(self, server, store):
        first = client(server, store).ask(requests(20), "asking")
        server.forget()
        second = client(server, store).ask(requests(20), "asking")
        assert server.n_calls == 0 and all(one.from_cache for one in second)
        assert [replace(one, from_cache=False) for one in second] == [replace(one, from_cache=False) for one in first]

    @pytest.mark.parametrize(
        "change",
        [
            {"messages": ({"role": "user", "content": "other"},)},
            {"schema": {**SCHEMA, "description": "other"}},
            {"schema_name": "other"},
            {"template": "generate@2"},
            {"max_tokens": 301},
        ],
    )
    def test_every_part_of_a_question_decides_its_answer(self, server, store, change):
        client(server, store).ask([request(1)], "asking")
        server.forget()
        client(server, store).ask([request(1, **change)], "asking")
        assert server.n_calls == 1

    @pytest.mark.parametrize(
        "change", [{"model": "n"}, {"temperature": 0.1}, {"temperature": None}, {"seed": 1}, {"seed": None}]
    )
    def test_every_parameter_decides_the_answer(self, server, store, change):
        client(server, store).ask([request(1)], "asking")
        server.forget()
        client(server, store, **change).ask([request(1)], "asking")
        assert server.n_calls == 1

    def test_what_does_not_shape_an_answer_does_not_ask_again(self, server, store, monkeypatch):
        client(server, store).ask([request(1)], "asking")
        server.forget()
        server.api_key = None
        monkeypatch.setenv("OTHER", "sk-another-key")
        changes = {"concurrency": 3, "retries": 1, "timeout_s": 9.0, "api_key_env": "OTHER", "requests_per_minute": 1e6}
        client(server, store, **changes).ask([request(1, tag="other")], "asking")
        assert server.n_calls == 0

    def test_another_endpoint_is_asked_anew(self, server, store):
        client(server, store).ask([request(1)], "asking")
        with FaultyServer(api_key=KEY) as other:
            client(other, store).ask([request(1)], "asking")
            assert other.n_calls == 1

    def test_keeps_as_many_calls_in_flight_as_allowed_and_no_more(self, server, store):
        known(server, store)
        server.latency_s = 0.05
        client(server, store, concurrency=7).ask(requests(40), "asking")
        assert server.most_in_flight == 7

    def test_works_inside_a_running_event_loop_as_a_notebook_has_one(self, server, store):
        async def cell():
            return client(server, store).ask(requests(3), "asking")

        assert len(asyncio.run(cell())) == 3

    def test_the_body_is_that_of_the_openai_api(self, server, store):
        client(server, store).ask([request(1)], "asking")
        path, body, _ = server.calls[0]
        assert path == "/v1/chat/completions"
        assert body == {
            "model": "m",
            "messages": [dict(message) for message in request(1).messages],
            "max_tokens": 300,
            "temperature": 0.7,
            "seed": 42,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "items", "strict": True, "schema": SCHEMA},
            },
        }
        # A model writes an object in the order of its schema.
        sent = body["response_format"]["json_schema"]["schema"]["properties"]["items"]["items"]
        assert list(sent["properties"]) == ["title", "brand"]


class TestFaultsThatPass:
    @pytest.mark.parametrize(
        "fault", [*PASSING_CHAT, "408", "409", "429 bare", *(one for one in HARMLESS if one != "reordered")]
    )
    def test_each_is_survived(self, server, store, fault):
        known(server, store)
        server.cue(fault)
        (answer,) = client(server, store, timeout_s=1.0 if fault == "drip" else 5.0).ask([request(1)], "asking")
        assert answer.failure is None and json_answers.fault_of(answer.value, SCHEMA) is None
        assert server.n_calls == (1 if fault in HARMLESS else 2)

    def test_several_in_a_row_are_survived(self, server, store):
        known(server, store)
        server.cue("500", "reset", "429", "truncated", "503", "html")
        (answer,) = client(server, store).ask([request(1)], "asking")
        assert answer.failure is None and server.n_calls == 7

    @pytest.mark.parametrize(
        ("fault", "kind"),
        [
            ("500", "server"),
            ("429", "rate limit"),
            ("529", "rate limit"),
            ("reset", "connection"),
            ("cut", "connection"),
            ("html", "garbage"),
            ("error 200", "garbage"),
            ("hang", "timeout"),
            ("drip", "timeout"),
        ],
    )
    def test_without_end_they_are_a_failure_of_their_kind_after_all_retries(self, server, store, fault, kind):
        known(server, store)
        server.choose = lambda body, nth: fault if "user 1" in body["messages"][-1]["content"] else None
        asking = client(server, store, retries=2, timeout_s=0.2 if kind == "timeout" else 5.0)
        other, answer = asking.ask(requests(2), "asking")
        assert (answer.value, answer.failure, answer.n_asks) == (None, kind, 0)
        assert other.failure is None and server.n_calls == 1 + 3 and asking.failures == {kind: 1}

    @pytest.mark.parametrize("fault", ["500", "429", "reset", "html"])
    @pytest.mark.parametrize("n", [1, 3])
    def test_a_step_of_which_nothing_is_answered_stops_the_run_and_the_same_command_goes_on(
        self, server, store, fault, n
    ):
        known(server, store)
        server.always = fault
        with pytest.raises(LLMError, match=f"nothing to {n} questions.*What was answered is stored.*same command"):
            client(server, store, retries=1).ask(requests(n), "asking")
        with pytest.raises(LLMError, match=f"nothing to {n} questions or texts; the last failure: "):
            client(server, store, retries=0).embed([f"tea {one}" for one in range(n)], "embedding")
        server.always = None
        server.forget()
        answers = client(server, store).ask(requests(n), "asking")
        assert server.n_calls == n and all(one.failure is None for one in answers)

    def test_what_a_server_cannot_answer_fails_alone_in_later_runs_but_nobody_there_is_an_error(self, server, store):
        known(server, store)
        server.always = "500"
        one, other = client(server, store, retries=0).ask([request("probe"), request(1)], "asking")
        assert one.from_cache and other.failure == "server"
        server.always = "reset"
        with pytest.raises(LLMError, match="nothing to 1 questions"):
            client(server, store, retries=0).ask([request("probe"), request(1)], "asking")

    def test_a_question_that_was_answered_badly_before_its_server_failed_has_reached_it(self, server, store):
        known(server, store)
        server.cue("empty", "500")
        assert client(server, store, retries=0).ask([request(1)], "asking")[0].failure == "server"

    def test_one_failure_stops_no_other_and_a_second_run_asks_only_for_it(self, server, store):
        known(server, store)
        server.choose = lambda body, nth: "500" if "user 3" in body["messages"][-1]["content"] else None
        answers = client(server, store, retries=1).ask(requests(8), "asking")
        assert [one.failure for one in answers] == [None] * 3 + ["server"] + [None] * 4
        server.choose = None
        server.forget()
        again = client(server, store).ask(requests(8), "asking")
        assert server.n_calls == 1 and [one.value for one in again[:3]] == [one.value for one in answers[:3]]
        assert again[3].failure is None

    def test_a_dripping_server_is_given_up_at_the_deadline(self, server, store):
        known(server, store)
        server.always = "drip"
        start = time.monotonic()
        with pytest.raises(LLMError, match="timeout"):
            client(server, store, retries=0, timeout_s=0.3).ask([request(1)], "asking")
        assert time.monotonic() - start < 4

    def test_retry_after_pauses_every_call(self, server, store):
        known(server, store)
        server.retry_after_s = 0.6
        server.cue("429")
        client(server, store, concurrency=4).ask(requests(30), "asking")
        gaps = np.diff(server.arrivals)
        assert len(gaps) == 30 and gaps.max() > 0.5
        assert gaps.argmax() < 4  # none but those in flight came before the pause

    def test_a_date_in_retry_after_is_heeded(self, server, store):
        known(server, store)
        server.retry_after_s = 2.0
        server.cue("429 date")
        client(server, store).ask([request(1)], "asking")
        assert server.arrivals[1] - server.arrivals[0] > 0.9  # dates have whole seconds

    def test_a_wait_of_hours_stops_the_run_and_says_so(self, server, store):
        known(server, store)
        server.retry_after_s = 4 * 3600
        server.cue("429")
        with pytest.raises(LLMError, match="asks to wait for 4.0 hours"):
            client(server, store).ask([request(1)], "asking")

    def test_a_server_that_is_down_stops_the_run_rather_than_every_question_in_turn(self, server, store):
        known(server, store)
        server.always = "500"
        with pytest.raises(LLMError, match="failed 5 calls in a row for good; the last: server, 500: internal error"):
            client(server, store, retries=1, concurrency=2).ask(requests(200), "asking")
        assert server.n_calls <= 14

    def test_nobody_at_the_address_stops_the_run(self, store):
        nobody = FaultyServer(port=1)
        said = []
        with pytest.raises(LLMError, match="the last failure: connection"):
            client(nobody, store, said, retries=3).ask(requests(20), "asking")
        assert set(said) == {f"no connection to {nobody.url}; trying again for about 1 s"}

    def test_a_first_question_that_fails_on_the_way_is_not_followed_by_more_of_its_kind(self, server, store):
        server.choose = lambda body, nth: "500" if "user 0" in body["messages"][-1]["content"] else None
        answers = client(server, store, retries=2).ask(requests(3), "asking")
        assert [one.failure for one in answers] == ["server", None, None]
        assert server.n_calls == 3 + 3 + 2 and "user 0" in server.calls[2][1]["messages"][-1]["content"]

    def test_a_long_pause_is_told_once_for_all_calls_that_wait_and_a_short_one_is_not(
        self, server, store, monkeypatch
    ):
        known(server, store)
        said = []
        server.cue(*["429"] * 4)
        client(server, store, said, concurrency=4).ask(requests(8), "asking")
        assert not [line for line in said if "pause" in line]
        monkeypatch.setattr(endpoint, "_UNTOLD_WAIT_S", 0.2)
        server.retry_after_s = 0.5
        server.latency_s = 0.02
        server.cue(*["429"] * 4)
        client(server, store, said, concurrency=4).ask(requests(16), "asking")
        assert [line for line in said if "pause" in line] == [f"{server.url}: the server asks for a pause of 1 s"]

    def test_with_a_third_of_faults_every_question_is_accounted_for_and_no_value_is_invalid(self, store):
        with FaultyServer(api_key=KEY, fault_share=0.3) as server:
            asking = client(server, store, timeout_s=2.0)
            answers = asking.ask(requests(150), "asking")
            assert len(answers) == 150
            for answer in answers:
                assert (answer.value is None) == (answer.failure is not None)
                if answer.value is not None:
                    jsonschema.validate(answer.value, SCHEMA)
            assert sum(asking.failures.values()) == sum(one.value is None for one in answers) <= 15
            # A second run asks only for what failed.
            server.fault_share = 0
            server.forget()
            again = client(server, store).ask(requests(150), "asking")
            failed = [n for n, one in enumerate(answers) if one.value is None]
            assert len({json.dumps(body["messages"][:2]) for _, body, _ in server.calls}) == len(failed)
            assert all(one.failure is None for one in again)


class TestFaultsThatStop:
    @pytest.mark.parametrize("length", [1, 40])  # a message is cut after 300 characters
    def test_a_wrong_key_stops_at_once_with_the_name_of_its_variable(self, server, store, monkeypatch, length):
        monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-" + "9876543210" * length)
        with pytest.raises(LLMError, match="the key is refused .* The key from OPENAI_API_KEY was sent") as caught:
            client(server, store, concurrency=4).ask(requests(50), "asking")
        assert server.n_calls == 1
        assert "sk-wrong" not in str(caught.value) and "***" in str(caught.value)

    def test_a_missing_key_is_named_when_the_server_wants_one(self, server, store, monkeypatch):
        monkeypatch.delenv("OPENAI_API_KEY")
        with pytest.raises(LLMError, match="is missing: the environment variable OPENAI_API_KEY is empty"):
            client(server, store).ask(requests(2), "asking")

    def test_a_key_that_no_variable_was_named_for_is_asked_for(self, server, store):
        with pytest.raises(LLMError, match="None was sent: name the environment variable .* in api_key_env"):
            client(server, store, api_key_env=None).ask(requests(2), "asking")

    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            ("401", "the key is refused"),
            ("403", "the key is refused"),
            ("402", "no money left"),
            ("quota", "no money left"),
            ("404", "model 'm' does not exist"),
        ],
    )
    def test_what_concerns_every_call_is_not_repeated_and_keeps_what_came_before(self, server, store, fault, message):
        known(server, store)
        server.cue(None, None, None, fault)
        server.latency_s = 0.02
        with pytest.raises(LLMError, match=message):
            client(server, store, concurrency=2).ask(requests(50), "asking")
        assert server.n_calls <= 6
        n_stored = store.stats()[0]["answers"] - 1
        assert n_stored == server.n_calls - 1
        server.forget()
        client(server, store).ask(requests(50), "asking")
        assert server.n_calls == 50 - n_stored

    def test_a_message_of_the_server_is_shown_without_what_a_terminal_would_obey(self, server, store, monkeypatch):
        monkeypatch.setitem(STATUS, "404", (404, "no such model \x1b]0;mine\x07\x1b[2J", "\x1b[2J"))
        server.always = "404"
        with pytest.raises(LLMError) as caught:
            client(server, store).ask([request(1)], "asking")
        assert str(caught.value).isprintable() and r"no such model \x1b]0;mine\x07\x1b[2J)" in str(caught.value)
        server.always, server.rejects = None, ["seed"]
        assert client(server, store).ask([request(1)], "asking")[0].failure is None

    @pytest.mark.parametrize(("fault", "kind"), [("400", "bad request"), ("422", "bad request"), ("policy", "refused")])
    def test_a_bad_request_concerns_one_question_and_is_not_repeated(self, server, store, fault, kind):
        known(server, store)
        server.choose = lambda body, nth: fault if "user 2" in body["messages"][-1]["content"] else None
        answers = client(server, store).ask(requests(5), "asking")
        assert [one.failure for one in answers] == [None, None, kind, None, None]
        assert server.n_calls == 5

    def test_many_bad_requests_among_good_ones_stop_nothing(self, server, store):
        known(server, store)
        server.choose = lambda body, nth: None if body["messages"][-1]["content"].endswith("0") else "400"
        answers = client(server, store, concurrency=1).ask(requests(60), "asking")
        assert sum(one.failure == "bad request" for one in answers) == 54


class TestBadAnswers:
    def test_are_asked_for_again_with_the_answer_and_the_error_quoted(self, server, store):
        known(server, store)
        server.answer = lambda body: GOOD if len(body["messages"]) > 2 else '{"items": [{"title": 7, "brand": "b"}]}'
        (answer,) = client(server, store).ask([request(1)], "asking")
        assert answer.n_asks == 2 and answer.value == json.loads(GOOD)
        messages = server.calls[1][1]["messages"]
        assert messages[2] == {"role": "assistant", "content": '{"items": [{"title": 7, "brand": "b"}]}'}
        assert messages[3]["role"] == "user" and "items[0].title: 7 is not of type 'string'" in messages[3]["content"]
        assert '"minItems":2' in messages[3]["content"]

    def test_are_asked_for_again_twice_at_most_and_then_rejected(self, server, store):
        known(server, store)
        server.answer = lambda body: '{"items": []}'
        asking = client(server, store)
        (answer,) = asking.ask([request(1)], "asking")
        assert (answer.value, answer.failure, answer.n_asks) == (None, "schema", 3)
        assert answer.text == '{"items": []}' and server.n_calls == 3 and asking.failures == {"schema": 1}
        (row,) = store.stats()
        assert (row["answers"], row["rejected"]) == (4, 3)

    def test_are_never_given_as_answers_and_a_second_run_asks_anew(self, server, store):
        known(server, store)
        server.answer = lambda body: "no"
        client(server, store).ask([request(1)], "asking")
        assert client(server, store).cached([request(1)]) == [None]
        server.answer = None
        server.forget()
        (answer,) = client(server, store).ask([request(1)], "asking")
        assert answer.failure is None and answer.n_asks == 1 and server.n_calls == 1
        server.forget()
        assert client(server, store).ask([request(1)], "asking")[0].from_cache and server.n_calls == 0

    def test_a_run_that_ended_between_two_asks_goes_on_with_the_second(self, server, store):
        known(server, store)
        server.answer = lambda body: GOOD if len(body["messages"]) > 2 else "no"
        server.cue(None, "500")
        (answer,) = client(server, store, retries=0).ask([request(1)], "asking")
        assert answer.failure == "server" and answer.text == "no"
        server.forget()
        (answer,) = client(server, store).ask([request(1)], "asking")
        assert answer.value == json.loads(GOOD) and answer.n_asks == 2
        assert [len(body["messages"]) for _, body, _ in server.calls] == [4]

    def test_the_cost_of_an_answer_is_that_of_all_its_asks_now_and_later(self, server, store, tmp_path):
        known(server, store)
        server.answer = lambda body: GOOD if len(body["messages"]) > 2 else "no no no"
        (now,) = client(server, store, prices=prices(tmp_path)).ask([request(1)], "asking")
        (later,) = client(server, store, prices=prices(tmp_path)).ask([request(1)], "asking")
        assert now.cost_usd == later.cost_usd == now.completion_tokens == later.completion_tokens
        assert now.completion_tokens > 3 and later.from_cache

    def test_all_that_was_said_can_be_read_again(self, server, store):
        known(server, store)
        server.answer = lambda body: GOOD if len(body["messages"]) > 4 else f"no {len(body['messages'])}"
        client(server, store).ask([request(1)], "asking")
        server.answer = lambda body: "never"
        client(server, store).ask([request(2)], "asking")
        server.forget()
        said = client(server, store).said([request(3), request(1), request(2)])
        assert said == [[], ["no 2", "no 4", GOOD], ["never"] * 3] and server.n_calls == 0

    def test_what_failed_asks_cost_is_part_of_the_answer_that_came_at_last(self, server, store, tmp_path):
        known(server, store)
        server.answer = lambda body: "no no no"
        (failed,) = client(server, store, prices=prices(tmp_path)).ask([request(1)], "asking")
        server.answer = None
        asking = client(server, store, prices=prices(tmp_path))
        (answer,) = asking.ask([request(1)], "asking")
        assert failed.cost_usd == 9 and answer.cost_usd == 9 + asking.spent.cost_usd == asking.used.cost_usd

    def test_what_failed_asks_cost_is_counted_once_while_the_endpoint_is_explored(self, server, store, tmp_path):
        known(server, store)
        server.answer = lambda body: "no no no"
        client(server, store, prices=prices(tmp_path)).ask([request(1)], "asking")
        store.remember(server.url, "m", "dialect auto", None)
        server.answer = None
        asking = client(server, store, prices=prices(tmp_path))
        asking.ask([request(2), request(1)], "asking")  # the first one explores
        assert asking.used.cost_usd == 9 + asking.spent.cost_usd

    def test_that_were_never_judged_are_rejected_when_they_are_looked_up(self, server, store):
        known(server, store)
        server.answer = lambda body: "no"
        client(server, store).ask([request(1)], "asking")
        store._db.execute("UPDATE answers SET rejected = 0")  # as if they had come by batch
        client(server, store, replay=True).cached([request(1)])
        assert store.stats()[0]["rejected"] == 0
        client(server, store).cached([request(1), request("probe")])
        assert (store.stats()[0]["answers"], store.stats()[0]["rejected"]) == (4, 3)

    def test_that_are_cut_off_come_with_the_price_of_the_advice(self, server, store):
        known(server, store)
        server.always = "length"
        said = []
        client(server, store, said).ask([request(1)], "asking")
        assert "cut off at llm.max_tokens: 2000" in said[-1] and "asks all questions of these steps anew" in said[-1]

    def test_a_refusal_is_not_asked_for_again(self, server, store):
        known(server, store)
        server.cue("refusal", "filtered")
        answers = client(server, store, concurrency=1).ask(requests(3), "asking")
        assert [one.failure for one in answers] == ["refused", "refused", None]
        assert answers[0].text == "I'm sorry, I cannot help with that." and server.n_calls == 3

    def test_a_long_bad_answer_is_not_quoted_whole(self, server, store):
        known(server, store)
        server.cue("noise content")
        client(server, store).ask([request(1)], "asking")
        assert len(json.dumps(server.calls[1][1])) < 10_000

    def test_an_answer_is_stored_before_it_is_judged(self, server, store, monkeypatch):
        known(server, store)

        def crash(*_):
            raise RuntimeError("a bug in the parser")

        monkeypatch.setattr(json_answers, "judge", crash)
        with pytest.raises(RuntimeError):
            client(server, store).ask([request(1)], "asking")
        monkeypatch.undo()
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        server.forget()
        assert client(server, store).ask([request(1)], "asking")[0].from_cache and server.n_calls == 0


class TestForms:
    @pytest.mark.parametrize(
        ("refuses", "form", "n_refused"),
        [
            (["limits"], "json_schema", 1),
            (["json_schema"], "json_object", 2),
            (["json_schema", "json_object"], None, 3),
        ],
    )
    def test_the_first_that_works_is_found_once_and_remembered(self, server, store, refuses, form, n_refused):
        server.refuses = refuses
        answers = client(server, store).ask(requests(10), "asking")
        assert all(one.failure is None for one in answers)
        assert [fault for _, _, fault in server.calls].count("refuses") == n_refused
        forms = [(body.get("response_format") or {}).get("type") for _, body, fault in server.calls if not fault]
        assert forms == [form] * 10
        server.forget()
        client(server, store).ask(requests(12), "asking")
        assert server.n_calls == 2 and not server.stats()["faults"]

    def test_where_the_server_knows_no_schema_the_prompt_states_it(self, server, store):
        server.refuses = ["json_schema"]
        client(server, store).ask([request(1)], "asking")
        last = server.calls[-1][1]["messages"][-1]
        assert (
            last["role"] == "user"
            and last["content"].startswith("kitchen, user 1\n")
            and '"minItems":2' in last["content"]
        )

    def test_a_server_that_takes_a_schema_and_ignores_it_is_told_in_words(self, server, store):
        server.answer = lambda body: GOOD if "JSON schema" in body["messages"][-1]["content"] else "Pans and pots."
        answers = client(server, store).ask(requests(5), "asking")
        assert all(one.value == json.loads(GOOD) and one.n_asks == 1 for one in answers)
        assert server.n_calls == 6

    @pytest.mark.parametrize("form", ["json_schema", "json_object", "text"])
    def test_a_form_that_the_settings_name_is_the_only_one(self, server, store, form):
        client(server, store, structured=form).ask(requests(3), "asking")
        sent = {(body.get("response_format") or {"type": "text"})["type"] for _, body, _ in server.calls}
        assert sent == {form} and server.n_calls == 3

    def test_a_named_form_that_is_refused_fails_question_by_question(self, server, store):
        server.refuses = ["json_schema", "limits"]
        answers = client(server, store, structured="json_schema").ask(requests(2), "asking")
        assert [one.failure for one in answers] == ["bad request"] * 2

    def test_parameters_that_a_model_does_not_know_are_left_out(self, server, store):
        server.rejects = ["max_tokens", "temperature", "seed"]
        answers = client(server, store).ask(requests(3), "asking")
        assert all(one.failure is None for one in answers)
        good = [body for _, body, fault in server.calls if not fault]
        assert len(good) == 3 and all(body["max_completion_tokens"] == 300 for body in good)
        server.forget()
        client(server, store).ask(requests(4), "asking")
        assert server.n_calls == 1

    def test_a_client_knows_whether_it_is_found(self, server, store):
        asking = client(server, store)
        assert not asking.is_explored
        asking.ask([request(1)], "asking")
        assert asking.is_explored and client(server, store).is_explored
        assert not client(server, store, structured="text").is_explored

    def test_a_first_question_that_fails_leaves_the_form_open(self, server, store):
        server.always = "500"
        with pytest.raises(LLMError):
            client(server, store, retries=0).ask([request(1)], "asking")
        assert store.fact(server.url, "m", "dialect auto") is None
        server.always = None
        server.refuses = ["json_schema"]
        answers = client(server, store).ask(requests(5), "asking")
        assert all(one.failure is None for one in answers)
        assert store.fact(server.url, "m", "dialect auto")["mode"] == "json_object"

    def test_the_next_question_is_tried_where_the_first_one_is_refused_in_every_form(self, server, store):
        server.refuses = ["json_schema"]
        server.choose = lambda body, nth: "400" if "user 0" in body["messages"][1]["content"] else None
        answers = client(server, store).ask(requests(4), "asking")
        assert [one.failure for one in answers] == ["bad request", None, None, None]

    def test_an_endpoint_that_changed_its_mind_is_explored_anew_by_the_next_run(self, server, store):
        known(server, store)
        server.refuses = ["json_schema"]
        with pytest.raises(LLMError, match="bad request"):
            client(server, store, concurrency=2).ask(requests(120), "asking")
        assert all(one.failure is None for one in client(server, store).ask(requests(5), "asking"))
        assert store.fact(server.url, "m", "dialect auto")["mode"] == "json_object"
        assert client(server, store).is_explored

    def test_a_way_that_is_in_doubt_goes_on_finding_what_was_paid_and_comes_first_when_it_is_looked_for(
        self, server, store
    ):
        server.refuses = ["json_schema"]
        paid = [one.value for one in client(server, store).ask(requests(5), "asking")]
        call = client(server, store).pending([request(9)])
        server.always = "422"
        with pytest.raises(LLMError, match="failed 100 calls in a row"):
            client(server, store).ask([request(n) for n in range(20, 140)], "asking")
        server.always = None
        server.forget()
        asking = client(server, store)
        assert not asking.is_explored and asking.plan(requests(5)).cached == 5
        assert [one.value for one in client(server, store, replay=True).ask(requests(5), "asking")] == paid
        assert [one.value for one in asking.ask(requests(5), "asking")] == paid
        assert asking.pending([request(9)]) == call and server.n_calls == 0
        assert [one.value for one in asking.ask(requests(7), "asking")][:5] == paid
        assert server.n_calls == 2 and client(server, store).is_explored

    def test_a_way_that_is_in_doubt_and_finds_no_other_stays(self, server, store):
        server.refuses = ["json_schema"]
        client(server, store).ask(requests(5), "asking")
        server.always = "422"
        for _ in range(2):
            with pytest.raises(LLMError, match="failed 100 calls in a row"):
                client(server, store).ask([request(n) for n in range(20, 140)], "asking")
        server.forget()
        assert client(server, store, replay=True).ask(requests(5), "asking") and server.n_calls == 0


class TestMoney:
    def test_is_never_overrun_by_more_than_the_calls_in_flight(self, server, store, tmp_path):
        known(server, store)
        server.latency_s = 0.02
        server.answer = lambda body: GOOD  # as many dollars as tokens
        one = client(server, store, prices=prices(tmp_path)).ask([request(99)], "asking")[0].cost_usd
        server.forget()
        asking = client(server, store, prices=prices(tmp_path), max_cost=7.5 * one, concurrency=4)
        with pytest.raises(CostLimit, match="llm.max_cost: .* are spent"):
            asking.ask(requests(60), "asking")
        assert 8 * one <= asking.spent.cost_usd <= 7.5 * one + 4 * one
        assert server.n_calls == asking.spent.calls <= 11
        # All that was paid for is there.
        server.forget()
        client(server, store).ask(requests(60), "asking")
        assert server.n_calls == 60 - asking.spent.calls

    def test_is_one_purse_for_several_clients(self, server, store, tmp_path):
        known(server, store)
        spent = Usage()
        settings = {"spent": spent, "prices": prices(tmp_path), "max_cost": 1e-9}
        client(server, store, **settings).ask([request(1)], "asking")
        with pytest.raises(CostLimit):
            client(server, store, **settings).ask([request(2)], "asking")
        with pytest.raises(CostLimit):
            client(server, store, **settings).embed(["tea"], "embedding")
        assert spent.calls == server.n_calls == 1

    def test_stored_answers_cost_nothing_again(self, server, store, tmp_path):
        settings = {"prices": prices(tmp_path), "max_cost": 1e-9}
        client(server, store, **settings).ask([request(1)], "asking")
        again = client(server, store, **settings)
        (answer,) = again.ask([request(1)], "asking")
        assert again.spent == Usage() and again.used.cost_usd == answer.cost_usd > 0

    def test_what_was_used_is_counted_once_however_often_it_is_asked_for(self, server, store):
        asking = client(server, store)
        asking.ask(requests(3), "asking")
        asking.ask(requests(4), "asking")
        asking.embed(["tea"], "embedding")
        asking.embed(["tea", "pan"], "embedding")
        assert asking.used.calls == 4 + 2

    def test_a_limit_without_a_price_is_an_error_before_anything_is_sent(self, store):
        with pytest.raises(ConfigError, match="the price of nobody-knows is not known"):
            Client(LLMConfig(base_url="https://host/v1", model="nobody-knows", max_cost=1.0), store)

    def test_this_machine_costs_nothing_unless_a_price_is_named(self, server, store, tmp_path):
        assert client(server, store, max_cost=1.0).price == Price(0, 0)
        assert client(server, store, prices=prices(tmp_path)).price == Price(0, 1e6)
        assert Client(LLMConfig(base_url="https://host/v1", model="nobody-knows"), store).price is None

    def test_a_server_that_does_not_count_is_counted_for(self, server, store, tmp_path):
        known(server, store)
        server.cue("no usage")
        (answer,) = client(server, store, prices=prices(tmp_path)).ask([request(1)], "asking")
        assert answer.prompt_tokens > 5 and answer.cost_usd == answer.completion_tokens > 20

    def test_the_summary_tells_calls_failures_tokens_and_dollars(self, server, store, tmp_path):
        said = []
        known(server, store)
        server.choose = lambda body, nth: "refusal" if "user 1" in body["messages"][-1]["content"] else None
        client(server, store, said, prices=prices(tmp_path)).ask(requests(3), "generating")
        assert re.fullmatch(
            r"generating: 3 distinct, 0 from the cache, 3 asked; 1 failed \(1 refused\); "
            r"so far 3 calls, [\d,]+ tokens in, [\d,]+ out, \$[\d,.]+",
            said[-1],
        )


class TestPlanning:
    def test_counts_what_is_missing_and_sends_nothing(self, server, store, tmp_path):
        known(server, store)
        client(server, store).ask(requests(3), "asking")
        server.forget()
        plan = client(server, store, prices=prices(tmp_path)).plan([*requests(10), request(9)])
        assert (plan.calls, plan.cached) == (7, 3) and server.n_calls == 0
        assert plan.completion_tokens == plan.completion_tokens_most == plan.cost_usd_most == 7 * 300

    def test_needs_no_key_and_no_server(self, store, monkeypatch):
        monkeypatch.delenv("OPENAI_API_KEY")
        asking = Client(LLMConfig(model="nobody-knows"), store)
        plan = asking.plan(requests(2))
        assert plan.calls == 2 and plan.prompt_tokens > 10 and plan.cost_usd_most is None
        assert asking.plan_embedding(["tea", "tea", ""]).calls == 1
        assert asking.cached(requests(2)) == [None, None] and len(asking.pending(requests(2))) == 2

    def test_learns_from_what_the_endpoint_counted_before(self, server, store):
        client(server, store).ask([request(f"{n}, {'tea ' * n}") for n in range(1, 30, 2)], "asking")
        asking = client(server, store)
        todo = [request(f"{n}, {'tea ' * n}") for n in range(0, 30, 2)]
        plan = asking.plan(todo)
        server.forget()
        answers = asking.ask(todo, "asking")
        assert plan.prompt_tokens == pytest.approx(sum(one.prompt_tokens for one in answers), rel=0.05)
        assert plan.completion_tokens == pytest.approx(sum(one.completion_tokens for one in answers), rel=0.1)
        assert plan.completion_tokens_most == 15 * 300

    def test_embedding_counts_the_texts_without_a_vector(self, server, store):
        asking = client(server, store)
        asking.embed([f"tea {n:03d}" for n in range(70)], "embedding")
        plan = asking.plan_embedding([f"tea {n:03d}" for n in range(200)])
        assert (plan.calls, plan.cached) == (3, 70)
        assert plan.prompt_tokens == pytest.approx(2 * 130, rel=0.05)

    def test_pending_is_the_very_call_that_asking_would_send(self, server, store):
        known(server, store)
        (pending,) = client(server, store).pending([request(1)])
        client(server, store).ask([request(1)], "asking")
        assert json.loads(pending.request) == server.calls[0][1]
        assert pending.key in store.get([pending.key])
        assert client(server, store).pending([request(1)]) == []


class TestReplay:
    def test_gives_all_answers_without_a_server_or_a_key(self, server, store, monkeypatch):
        answers = client(server, store).ask(requests(5), "asking")
        vectors = client(server, store).embed(["tea", "pan"], "embedding")
        server.__exit__()
        monkeypatch.delenv("OPENAI_API_KEY")
        replaying = client(server, store, replay=True)
        assert [one.value for one in replaying.ask(requests(5), "asking")] == [one.value for one in answers]
        assert np.array_equal(replaying.embed(["tea", "pan"], "embedding"), vectors)

    def test_lists_what_is_missing_and_sends_nothing(self, server, store):
        client(server, store).ask(requests(2), "asking")
        server.forget()
        with pytest.raises(LLMError) as caught:
            client(server, store, replay=True).ask(requests(14), "asking")
        message = str(caught.value)
        assert f"{store.path} has no answer to 12 of 14 questions" in message
        assert "\n  user 2\n" in message and "\n  user 11\n" in message and "user 12" not in message
        assert message.endswith("and 2 more") and server.n_calls == 0
        with pytest.raises(LLMError, match="has no answer to 1 of 1 questions:\n  tea"):
            client(server, store, replay=True).embed(["tea"], "embedding")

    def test_what_failed_stays_failed(self, server, store):
        known(server, store)
        server.answer = lambda body: "no"
        (first,) = client(server, store).ask([request(1)], "asking")
        server.forget()
        replaying = client(server, store, replay=True)
        (answer,) = replaying.ask([request(1)], "asking")
        assert answer == replace(first, from_cache=True) and server.n_calls == 0
        assert replaying.failures == {"not JSON": 1}


class TestEmbedding:
    TEXTS = [f"text {n % 130} of tea" for n in range(150)]

    def test_gives_a_row_per_text_in_order_and_asks_for_each_text_once(self, server, store):
        vectors = client(server, store).embed(self.TEXTS, "embedding")
        expected = np.array([word_vector(text, 16) for text in self.TEXTS], np.float32)
        assert vectors.dtype == np.float32 and np.array_equal(vectors, expected)
        assert sorted(len(body["input"]) for _, body, _ in server.calls) == [2, 64, 64]
        assert sum(server.stats()["faults"].values()) == 0

    def test_a_second_run_asks_only_for_new_texts(self, server, store):
        first = client(server, store).embed(self.TEXTS, "embedding")
        server.forget()
        second = client(server, store).embed([*self.TEXTS, "new"], "embedding")
        assert np.array_equal(second[:-1], first)
        assert [body["input"] for _, body, _ in server.calls] == [["new"]]

    def test_an_empty_text_is_zeros_and_is_not_sent(self, server, store):
        vectors = client(server, store).embed(["", "tea", ""], "embedding")
        assert not vectors[[0, 2]].any() and vectors[1].any()
        assert [body["input"] for _, body, _ in server.calls] == [["tea"]]

    def test_model_and_dimensions_decide_a_vector(self, server, store):
        client(server, store).embed(["tea"], "embedding")
        assert client(server, store).embed(["tea"], "embedding", dimensions=8).shape == (1, 8)
        client(server, store, model="n").embed(["tea"], "embedding")
        assert server.n_calls == 3 and server.calls[1][1]["dimensions"] == 8

    @pytest.mark.parametrize("fault", [*PASSING_EMBEDDING, "reordered"])
    @pytest.mark.parametrize("dimensions", [None, 12])
    def test_each_fault_is_survived(self, server, store, fault, dimensions):
        server.cue(fault)
        vectors = client(server, store, timeout_s=1.0 if fault == "drip" else 5.0).embed(
            self.TEXTS, "embedding", dimensions
        )
        expected = np.array([word_vector(text, dimensions or 16) for text in self.TEXTS], np.float32)
        assert np.array_equal(vectors, expected)

    def test_a_vector_of_odd_length_stays_as_a_rejected_cost(self, server, store):
        server.cue("wrong dimension")
        client(server, store, concurrency=1).embed(self.TEXTS, "embedding")
        (row,) = store.stats()
        assert (row["answers"], row["rejected"]) == (130 + 64, 64)

    def test_a_third_of_faults_is_survived(self, store):
        with FaultyServer(api_key=KEY, fault_share=0.3, seed=3) as server:
            texts = [f"a tea of kind {n}" for n in range(640)]
            vectors = client(server, store, timeout_s=1.0).embed(texts, "embedding", 16)
            assert np.array_equal(vectors, np.array([word_vector(text, 16) for text in texts], np.float32))

    def test_one_text_that_is_refused_is_nan_and_the_others_are_not(self, server, store):
        server.choose = lambda body, nth: "400" if "text 7 of tea" in body["input"] else None
        asking = client(server, store)
        vectors = asking.embed(self.TEXTS, "embedding")
        lost = [row for row, text in enumerate(self.TEXTS) if text == "text 7 of tea"]
        assert np.flatnonzero(np.isnan(vectors).any(axis=1)).tolist() == lost and np.isnan(vectors[lost]).all()
        assert asking.failures == {"bad request": 1}

    def test_vectors_of_unequal_length_without_end_are_an_error(self, server, store):
        server.choose = lambda body, nth: "wrong dimension" if "text 7 of tea" in body["input"] else None
        with pytest.raises(
            LLMError, match=r"unequal length \(66 of 16 numbers, 64 of 17 numbers\).*cache prune --model=m"
        ):
            client(server, store).embed(self.TEXTS, "embedding")

    def test_another_length_than_before_is_paid_stored_and_explained_until_the_old_ones_are_deleted(
        self, server, store
    ):
        client(server, store).embed(self.TEXTS, "embedding")
        server.dimensions = 17
        asking = client(server, store)
        with pytest.raises(LLMError, match=r"17 numbers, and gave 16 before; .*cache prune --model=m"):
            asking.embed(["another"], "embedding")
        assert not asking.failures and asking.spent.calls == server.n_calls - 3 == store.stats()[0]["answers"] - 130
        store.prune(model="m")
        assert client(server, store).embed([*self.TEXTS, "another"], "embedding").shape == (151, 17)

    def test_another_length_than_that_asked_for_is_a_failure(self, server, store):
        server.always = "wrong dimension"
        asking = client(server, store, retries=1)
        with pytest.raises(LLMError, match="garbage, vectors of 9 numbers instead of 8"):
            asking.embed(["tea"], "embedding", 8)
        assert asking.failures == {"garbage": 1}

    def test_no_vector_at_all_is_an_error(self, server, store):
        server.always = "400"
        with pytest.raises(LLMError, match="gave no vector for any of 2 texts"):
            client(server, store).embed(["tea", "pan"], "embedding")

    def test_the_tokens_of_a_call_are_shared_out_whole(self, server, store):
        asking = client(server, store)
        asking.embed(["tea", "green tea from the far east", "pan"], "embedding")
        (row,) = store.stats()
        assert row["answers"] == 3 and row["prompt_tokens"] == asking.spent.prompt_tokens == 8


class TestLimits:
    def test_no_more_requests_are_sent_than_allowed_per_minute(self, server, store):
        known(server, store)
        start = time.monotonic()
        client(server, store, requests_per_minute=1200).ask(requests(30), "asking")
        # 20 at once, then 20 per second.
        assert server.arrivals[-1] - start > 0.45

    def test_no_more_tokens_are_sent_than_allowed_per_minute(self, server, store):
        known(server, store)
        start = time.monotonic()
        client(server, store, tokens_per_minute=12_000).ask(requests(15), "asking")
        # About 170 tokens each: 2,000 at once, then 200 per second.
        assert server.arrivals[-1] - start > 1.5


class TestSecrets:
    def test_no_key_is_in_any_file_line_log_or_error(self, server, store, tmp_path, monkeypatch, caplog, capfd):
        caplog.set_level(logging.DEBUG)
        said = []
        server.answer = lambda body: GOOD.replace("pan", KEY)  # a server that repeats what it was told
        client(server, store, said).ask(requests(3), "asking")
        client(server, store, said).embed(["tea"], "embedding")
        store.export(tmp_path / "export.jsonl")
        server.api_key = "sk-another-one-than-ours"
        with pytest.raises(LLMError) as caught:
            client(server, store, said).ask(requests(9), "asking")
        told = "\n".join([*said, str(caught.value), caplog.text, *capfd.readouterr()])
        assert KEY not in told and "Bearer" not in told
        assert caught.value.__cause__ is None
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert len(files) >= 2 and not any(KEY.encode() in path.read_bytes() for path in files)

    def test_the_key_is_sent_and_a_query_too_as_azure_wants_it(self, server, store):
        config = LLMConfig(base_url=f"{server.url}?api-version=2026-01-01", model="m")
        (answer,) = Client(config, store, backoff_s=0.005).ask([request(1)], "asking")
        assert answer.failure is None
        assert server.calls[0][0] == "/v1/chat/completions?api-version=2026-01-01"


PROGRAM = """
import sys
from recbole_edt.llm.client import Client
from recbole_edt.llm.settings import LLMConfig
from recbole_edt.llm.store import AnswerStore
sys.path[:0] = {tests!r}
from test_client import request
with AnswerStore({path!r}) as store:
    config = LLMConfig(base_url={url!r}, model="m", concurrency={concurrency})
    client = Client(config, store, print, patience_s={patience})
    answers = client.ask([request(n) for n in range({n})], "asking")
    assert len(answers) == {n} and all(answer.value for answer in answers)
"""


def start(server, store, n=200, concurrency=8, patience=10.0):
    """The client in a process of its own."""
    program = PROGRAM.format(
        tests=[str(Path(__file__).parent), str(Path(__file__).parents[1])],
        path=str(store.path),
        url=server.url,
        n=n,
        concurrency=concurrency,
        patience=patience,
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    # Whatever a shell runs in its background ignores Ctrl-C, and its children with it.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen([sys.executable, "-c", program], preexec_fn=heed, **pipes)


def wait_for_calls(server, n):
    end = time.monotonic() + 60
    while server.n_calls < n:
        assert time.monotonic() < end, "the client sends nothing"
        time.sleep(0.002)


class TestEnds:
    def test_a_kill_at_any_time_costs_at_most_the_calls_in_flight(self, server, store):
        known(server, store)
        server.latency_s = 0.03
        n_kills = 4
        for kill in range(n_kills):
            running = start(server, store)
            wait_for_calls(server, (kill + 1) * 25)
            time.sleep(kill * 0.004)
            running.kill()
            running.wait()
            assert server.n_calls < 200, "the machine is too fast for this test"
        assert start(server, store).wait() == 0
        assert len(server.bodies) == 200
        assert server.stats()["repeated"] <= n_kills * 8
        # What it has now is what one run without a kill would have.
        server.forget()
        answers = client(server, store).ask(requests(200), "asking")
        assert server.n_calls == 0
        with AnswerStore(store.path.with_name("other.sqlite")) as other:
            server.latency_s = 0
            assert [one.value for one in client(server, other).ask(requests(200), "asking")] == [
                one.value for one in answers
            ]

    def test_ctrl_c_sends_nothing_new_keeps_what_comes_back_and_says_how_to_go_on(self, server, store):
        known(server, store)
        server.latency_s = 0.4
        running = start(server, store)
        wait_for_calls(server, 20)
        running.send_signal(signal.SIGINT)
        output, _ = running.communicate(timeout=30)
        assert running.returncode in (-signal.SIGINT, 130, 1) and "KeyboardInterrupt" in output
        assert "waiting up to 10 s for the calls in flight" in output
        assert f"all answers so far are in {store.path}; run the same command again to go on" in output
        assert server.n_calls <= 24 + 8
        assert store.stats()[0]["answers"] == server.n_calls + 1  # and the probe

    def test_ctrl_c_does_not_wait_for_ever(self, server, store):
        known(server, store)
        server.always = "hang"
        running = start(server, store, patience=0.5)
        wait_for_calls(server, 8)
        running.send_signal(signal.SIGINT)
        output, _ = running.communicate(timeout=20)
        assert "KeyboardInterrupt" in output and server.n_calls == 8

    def test_two_processes_share_a_cache(self, server, store):
        known(server, store)
        server.latency_s = 0.01
        both = [start(server, store, n=60), start(server, store, n=60)]
        assert [one.wait() for one in both] == [0, 0]
        assert server.n_calls <= 120
        server.forget()
        assert all(one.value for one in client(server, store).ask(requests(60), "asking")) and server.n_calls == 0

    def test_a_full_disk_stops_the_run_and_says_so(self, server, store, monkeypatch):
        known(server, store)
        limit = store._db.execute("PRAGMA page_count").fetchone()[0] + 20
        store._db.execute(f"PRAGMA max_page_count = {limit}")
        with pytest.raises(Exception, match="cache of answers cannot be used .*full"):
            client(server, store).ask(requests(500), "asking")


def test_estimates_are_within_a_tenth_of_what_a_real_model_counts(local_llm, store, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", local_llm.key)
    items = [
        "Stash Tea Super Irish Breakfast Black Tea, 20 Count Tea Bags in Foil (Pack of 6)",
        "Davidson's Tea Bulk, Gunpowder Green, 1-Pound Bag",
        "Progressive Stainless Steel Mesh Tea Ball",
        "Lodge Seasoned Cast-Iron Skillet, 10.25-inch",
        "Bialetti Moka Express 6-Cup Stovetop Espresso Maker",
        "Bob's Red Mill Organic Whole Grain Quinoa, 26-Ounce Bags (Pack of 4)",
    ]
    asked = []
    for n in range(2, 7):
        listed = "\n".join(f'{place}. "{item}"' for place, item in enumerate(items[:n], 1))
        text = f"Bought in food, oldest first:\n{listed}\nName 2 products of kitchen that go with them, as JSON."
        messages = (
            {"role": "system", "content": "You know which products go together."},
            {"role": "user", "content": text},
        )
        asked.append(replace(request(n), messages=messages, schema={"type": "boolean"}, max_tokens=8))
    asking = Client(LLMConfig(base_url=local_llm.base_url, model=local_llm.model), store)
    plan = asking.plan(asked)
    answers = asking.ask(asked, "asking")
    assert [one.n_asks for one in answers] == [1] * 5
    assert plan.prompt_tokens == pytest.approx(sum(one.prompt_tokens for one in answers), rel=0.1)


def test_asking_nothing_needs_no_openai(store):
    code = "import sys, recbole_edt.llm.client; assert not {'openai', 'aiolimiter'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})
