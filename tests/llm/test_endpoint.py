import asyncio
import json
import time
from email.utils import formatdate

import numpy as np
import pytest
from faulty_server import EMBEDDING, chat_answer, embeddings_answer

from recbole_edt.errors import ConfigError, LLMError
from recbole_edt.llm.endpoint import Dialect, Endpoint, key_from_environment, read_chat, read_vectors, retry_after
from recbole_edt.llm.settings import LLMConfig, is_loopback, is_same_server


class TestConfig:
    def test_the_default_is_in_order(self):
        assert LLMConfig().faults() == []
        LLMConfig(model="m", max_cost=0.01, temperature=0, seed=None, timeout_s=1, requests_per_minute=1e9).validate()

    @pytest.mark.parametrize(
        "wrong",
        [
            {"temperature": -0.1},
            {"temperature": 2.1},
            {"temperature": "hot"},
            {"seed": -1},
            {"seed": 1.5},
            {"max_tokens": 0},
            {"concurrency": 0},
            {"concurrency": 1001},
            {"concurrency": True},
            {"requests_per_minute": 0},
            {"tokens_per_minute": float("inf")},
            {"timeout_s": 0},
            {"timeout_s": None},
            {"timeout_s": float("nan")},
            {"retries": -1},
            {"structured": "xml"},
            {"max_cost": 0},
            {"max_cost": True},
            {"prices": ""},
            {"model": 7},
            {"replay": "yes"},
            {"cache": 3},
            {"templates": " "},
            {"api_key_env": ""},
            {"base_url": "localhost:8000"},
            {"base_url": "ftp://host/v1"},
            {"base_url": 7},
            {"base_url": "http://host:99999/v1"},
        ],
    )
    def test_a_value_out_of_range_is_a_fault_that_names_its_key(self, wrong):
        (fault,) = LLMConfig(**wrong).faults()
        assert fault.startswith(f"{next(iter(wrong))}: ")

    def test_all_faults_are_told_at_once(self):
        with pytest.raises(ConfigError) as caught:
            LLMConfig(temperature=9, retries=-1, structured="xml").validate()
        assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
            "llm.structured",
            "llm.retries",
            "llm.temperature",
        ]

    @pytest.mark.parametrize(
        "url",
        [
            "https://me:s3cret-key@host/v1",
            "https://host/v1?key=s3cret-key",
            "https://host/v1?api-version=1&sig=s3cret-key",
        ],
    )
    def test_a_secret_in_the_url_is_refused_and_not_repeated(self, url):
        (fault,) = LLMConfig(base_url=url).faults()
        assert "environment variable" in fault and "s3cret-key" not in fault

    def test_a_key_in_the_place_of_a_variable_is_refused_and_not_repeated(self):
        (fault,) = LLMConfig(api_key_env="sk-live-1234").faults()
        assert "sk-live-1234" not in fault

    @pytest.mark.parametrize(
        "url",
        [
            "http://127.0.0.1:8080/v1",
            "https://api.deepseek.com",
            "https://x.openai.azure.com/openai/v1/?api-version=2026-01-01",
        ],
    )
    def test_usual_urls_are_in_order(self, url):
        assert LLMConfig(base_url=url).faults() == []


class TestKey:
    def test_comes_from_the_variable_that_the_settings_name(self, monkeypatch):
        monkeypatch.setenv("MY_KEY", " sk-1 \n")
        assert key_from_environment(LLMConfig(api_key_env="MY_KEY")) == "sk-1"

    def test_is_needed_for_openai_and_not_for_a_server_of_your_own(self, monkeypatch):
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        assert key_from_environment(LLMConfig(base_url="http://10.0.0.1/v1")) == ""
        with pytest.raises(LLMError, match="environment variable OPENAI_API_KEY"):
            key_from_environment(LLMConfig())

    @pytest.mark.parametrize("key", ["sk-\u201cquoted\u201d", "sk-a\nb"])
    def test_that_cannot_be_sent_is_an_error_that_does_not_show_it(self, monkeypatch, key):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(LLMError) as caught:
            key_from_environment(LLMConfig())
        assert key not in str(caught.value) and "copy the key again" in str(caught.value)


    @pytest.mark.parametrize("url", ["http://api.deepseek.com/v1", "http://8.8.8.8/v1", "http://[2600::1]/v1"])
    def test_of_openai_goes_nowhere_readable_and_another_one_may(self, monkeypatch, url):
        monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789")
        monkeypatch.setenv("MY_KEY", "sk-0123456789")
        with pytest.raises(LLMError, match="readable for everybody .* use https") as caught:
            opened(base_url=url)
        assert "sk-0123456789" not in str(caught.value)
        opened(base_url=url, api_key_env="MY_KEY")
        opened(base_url=url.replace("http:", "https:"))
        monkeypatch.delenv("OPENAI_API_KEY")
        opened(base_url=url)

    @pytest.mark.parametrize(
        "host", ["localhost", "127.0.0.1", "[::1]", "10.0.0.1", "192.168.1.7", "169.254.1.1", "[fe80::1]", "vllm:8000"]
    )
    def test_of_openai_may_go_readable_within_a_private_network(self, monkeypatch, host):
        monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789")
        opened(base_url=f"http://{host}/v1")

    def test_organization_and_project_are_told_to_openai_alone(self, monkeypatch):
        for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
            monkeypatch.setenv(name, "mine")
        names = {"OpenAI-Organization", "OpenAI-Project"}
        for url in (None, "https://api.openai.com/v1", "https://eu.api.openai.com/v1"):
            headers = opened(base_url=url)._http.default_headers
            assert all(headers[name] == "mine" for name in names)
        for url in ("https://api.deepseek.com/v1", "https://api.openai.com.evil.com/v1", "http://127.0.0.1/v1"):
            headers = opened(base_url=url)._http.default_headers
            assert "mine" not in [headers[name] for name in names]

    def test_is_not_sent_where_no_variable_is_named(self, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789")
        assert LLMConfig(api_key_env=None).faults() == []
        assert key_from_environment(LLMConfig(base_url="http://10.0.0.1/v1", api_key_env=None)) == ""
        with pytest.raises(LLMError, match="no key: name its variable in api_key_env"):
            key_from_environment(LLMConfig(api_key_env=None))

    def test_that_stands_where_its_variable_should_is_not_shown(self, monkeypatch):
        with pytest.raises(LLMError, match=r"environment variable gsk_\.\.\.,") as caught:
            key_from_environment(LLMConfig(api_key_env="gsk_live0123456789"))
        assert "live" not in str(caught.value)
        with pytest.raises(LLMError, match="environment variable MY_MISSING_KEY,"):
            key_from_environment(LLMConfig(api_key_env="MY_MISSING_KEY"))


def opened(**settings):
    return Endpoint(LLMConfig(**settings), lambda: None, 0.1, print)


class Ahead(asyncio.SelectorEventLoop):
    """A loop whose clock hardly moves while anything runs, and jumps to whatever is awaited next."""

    now = 1000.0

    def time(self):
        return self.now

    def _run_once(self):
        self.now += 1e-6  # rounding must not leave anybody a wait that never ends
        if not self._ready and self._scheduled:
            self.now = max(self.now, self._scheduled[0]._when)
        super()._run_once()


def left_at(monkeypatch, n_calls, n_tokens, pause=None, **settings):
    """Seconds after the start at which calls leave, ``concurrency`` at a time and each answered after 10 ms.

    ``pause`` is when the server asks for one, and how long.
    """
    loop, left = Ahead(), []
    monkeypatch.setattr(time, "monotonic", loop.time)
    start, config = loop.now, LLMConfig(base_url="http://127.0.0.1/v1", **settings)
    queue = iter(range(n_calls))

    async def worker(way):
        for _ in queue:
            await way._clearance(n_tokens)
            await asyncio.sleep(0.01)

    async def main():
        way = Endpoint(config, lambda: left.append(loop.now - start), 0.1, print)
        if pause is not None:
            loop.call_later(pause[0], lambda: setattr(way, "_not_before", loop.now + pause[1]))
        await asyncio.gather(*(worker(way) for _ in range(config.concurrency)))
        await way.close()

    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
    return np.array(left)


def most_within(seconds, times):
    return max(((times >= one) & (times < one + seconds)).sum() for one in times)


class TestPace:
    @pytest.mark.parametrize("n_tokens", [700, 4010, 6500])
    def test_a_large_call_counts_with_all_its_tokens(self, monkeypatch, n_tokens):
        times = left_at(monkeypatch, 12, n_tokens, tokens_per_minute=6000, concurrency=8)
        sent = n_tokens * np.arange(1, 13)
        assert (sent <= 1000 + 100 * times + 1).all()  # ten seconds' worth at once, then 100 a second
        assert times[-1] == pytest.approx((12 * n_tokens - 1000) / 100, abs=0.1)

    @pytest.mark.parametrize("limits", [{"requests_per_minute": 600}, {"tokens_per_minute": 60_000}])
    def test_after_a_pause_no_more_leave_together_than_at_the_start(self, monkeypatch, limits):
        times = left_at(monkeypatch, 300, 1000, pause=(0.5, 4.0), concurrency=64, **limits)
        assert len(times) == 300 and not ((times > 0.5) & (times < 4.5)).any()
        assert most_within(1.0, times) <= 21 and most_within(6.0, times) <= 71

    def test_without_limits_a_pause_holds_every_call_and_nothing_else_does(self, monkeypatch):
        times = left_at(monkeypatch, 300, 1000, pause=(0.015, 4.0), concurrency=64)
        assert (times[:128] < 0.015).all() and (times[128:192] >= 4.0).all() and times[-1] < 4.5


def body(**changes):
    return json.dumps({**chat_answer({"model": "m", "messages": [{"role": "user", "content": "Hello"}]}), **changes})


def choice(**message):
    return [{"index": 0, "finish_reason": "stop", "message": message}]


class TestReadChat:
    def test_gives_text_reason_and_usage(self):
        text, reason, usage = read_chat(body(choices=choice(content="yes")))
        assert (text, reason) == ("yes", "stop") and usage["prompt_tokens"] > 0

    def test_a_refusal_is_told_from_an_answer(self):
        assert read_chat(body(choices=choice(content=None, refusal="No.")))[:2] == ("No.", "refusal")

    def test_no_content_is_an_empty_text(self):
        assert read_chat(body(choices=choice(content=None)))[0] == ""
        assert read_chat(body(choices=choice()))[0] == ""

    def test_parts_are_joined(self):
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        assert read_chat(body(choices=choice(content=parts)))[0] == "ab"

    def test_a_usage_that_is_none_is_empty(self):
        assert read_chat(body(usage=None))[2] == {}

    def test_halves_of_characters_are_replaced(self):
        assert read_chat(body(choices=choice(content="a\ud800")))[0] == "a\ufffd"

    @pytest.mark.parametrize(
        "content",
        [
            "",
            "<html>busy</html>",
            body()[:-20],
            "[]",
            "null",
            '{"error": {"message": "busy"}}',
            body(choices=None),
            body(choices=[]),
            body(choices=[None]),
            body(choices=[{"message": None}]),
            body(choices=choice(content=7)),
            "[" * 100_000,
        ],
    )
    def test_anything_else_is_a_value_error(self, content):
        with pytest.raises(ValueError):
            read_chat(content)


class TestReadVectors:
    ASKED = {"model": "m", "input": ["tea", "tea pot", "pan"]}

    def test_places_rows_by_their_index(self):
        good, _ = read_vectors(json.dumps(embeddings_answer(self.ASKED, 4)), 3, None)
        reordered, usage = read_vectors(json.dumps(embeddings_answer(self.ASKED, 4, "reordered")), 3, 4)
        assert good.shape == (3, 4) and good.dtype == np.float32
        assert np.array_equal(good, reordered) and usage["prompt_tokens"] == 4

    @pytest.mark.parametrize("fault", EMBEDDING)
    def test_faulty_rows_are_a_value_error(self, fault):
        with pytest.raises(ValueError):
            read_vectors(json.dumps(embeddings_answer(self.ASKED, 4, fault)), 3, 4)

    @pytest.mark.parametrize(
        "data",
        [
            [{"index": 0, "embedding": []}],
            [{"index": 0, "embedding": ["a"]}],
            [{"index": 0, "embedding": [1e39]}],
            [{"index": 0, "embedding": [10**400]}],
            [{"index": 0, "embedding": [None]}],
            [{"index": 0}],
            [{"index": 1, "embedding": [1.0]}],
            [{"embedding": [1.0]}],
            [7],
        ],
    )
    def test_anything_else_is_a_value_error(self, data):
        with pytest.raises(ValueError):
            read_vectors(json.dumps({"data": data}), 1, None)


class TestRetryAfter:
    def test_reads_seconds_milliseconds_and_dates(self):
        assert retry_after({"retry-after": "3.5"}) == 3.5
        assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
        assert retry_after({"retry-after": formatdate(time.time() + 100, usegmt=True)}) == pytest.approx(100, abs=5)

    def test_a_date_that_has_passed_is_no_wait(self):
        assert retry_after({"retry-after": formatdate(0, usegmt=True)}) == 0

    @pytest.mark.parametrize("value", ["", "soon", "nan", "inf"])
    def test_what_cannot_be_read_is_none(self, value):
        assert retry_after({"retry-after": value}) is None
        assert retry_after({}) is None


class TestDialect:
    def test_steps_down_from_the_strictest_form_to_plain_text(self):
        seen, dialect = [], Dialect()
        while dialect is not None:
            seen.append((dialect.mode, dialect.limits))
            dialect = dialect.next("response_format is not supported", True)
        assert seen == [("json_schema", True), ("json_schema", False), ("json_object", False), ("text", False)]

    def test_a_form_that_the_user_chose_stays(self):
        assert Dialect(mode="json_object").next("no", False) is None
        assert Dialect(mode="json_schema", limits=False).next("no", False) is None

    def test_drops_a_parameter_that_the_server_names(self):
        told = "Unsupported value: 'temperature' does not support 0.7 with this model."
        assert Dialect().next(told, True) == Dialect(without=("temperature",))
        assert Dialect().next("422: {'loc': ['body', 'seed'], 'msg': 'Extra inputs'}", True) == Dialect(
            without=("seed",)
        )
        told = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        assert Dialect().next(told, True) == Dialect(tokens_key="max_completion_tokens")

    def test_does_not_take_a_word_of_the_prompt_for_a_parameter(self):
        assert Dialect().next("cannot parse 'Poppy seed tea'", True) == Dialect(limits=False)


def test_one_server_is_one_scheme_host_and_port():
    assert is_same_server(None, "https://api.openai.com/v1/")
    assert is_same_server("http://127.0.0.1:1/v1", "http://127.0.0.1:1/other")
    for other in ("http://127.0.0.1:2/v1", "https://127.0.0.1:1/v1", "http://localhost:1/v1", None):
        assert not is_same_server("http://127.0.0.1:1/v1", other)


def test_only_this_machine_is_loopback():
    assert all(map(is_loopback, ["http://127.0.0.1:1/v1", "http://localhost/v1", "http://[::1]:8/v1"]))
    assert not any(
        map(is_loopback, ["https://api.openai.com/v1", "http://localhost.evil.com/v1", "http://10.0.0.1/v1"])
    )
