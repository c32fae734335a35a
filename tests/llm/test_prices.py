import pytest

from recbole_edt.errors import ConfigError, DataError
from recbole_edt.llm.prices import (
    Price,
    Usage,
    _tokenizer,
    dollars,
    estimate_chat,
    estimate_texts,
    load_prices,
    price_of,
)
from recbole_edt.text import embedders


class TestPrices:
    def test_a_call_costs_its_tokens_in_and_out_per_million(self):
        assert Price(0.5, 2).of(1_000_000, 500_000) == 1.5
        assert Price(0.05, 0.4).of(100, 10) == pytest.approx(0.000009)

    def test_every_packaged_price_is_dated_and_names_its_source(self):
        from importlib import resources

        import yaml

        found = yaml.safe_load(resources.files("recbole_edt.llm").joinpath("prices.yaml").read_text())
        assert len(found) >= 4
        for name, price in found.items():
            assert price["source"].startswith("https://") and str(price["date"]).startswith("20"), name
        assert load_prices()["text-embedding-3-small"] == Price(0.02, 0.0)

    def test_a_dated_snapshot_costs_what_its_model_costs(self):
        prices = {"m": Price(1, 2), "n-2026-01-01": Price(3, 4)}
        assert price_of("m-2026-10-31", prices) == price_of("m", prices) == Price(1, 2)
        assert price_of("n-2026-01-01", prices) == Price(3, 4)
        assert price_of("m-mini", prices) is None and price_of("n", prices) is None

    def test_your_own_file_comes_over_the_packaged_one(self, tmp_path):
        (tmp_path / "p.yaml").write_text("text-embedding-3-small: {input: 9}\nmine: {input: 1, output: 2.5}\n")
        prices = load_prices(str(tmp_path / "p.yaml"))
        assert prices["text-embedding-3-small"] == Price(9, 0) and prices["mine"] == Price(1, 2.5)
        assert "text-embedding-3-large" in prices

    @pytest.mark.parametrize(
        "text",
        ["a: 3", "a: {output: 1}", "a: {input: -1}", "a: {input: .nan}", "a: {input: 1, ouput: 2}", "- a", "a: ["],
    )
    def test_a_faulty_file_is_an_error_that_names_it(self, tmp_path, text):
        (tmp_path / "p.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"p\.yaml"):
            load_prices(str(tmp_path / "p.yaml"))

    def test_all_faults_are_named_at_once(self, tmp_path):
        (tmp_path / "p.yaml").write_text("a: 3\nb: {input: 1}\nc: {input: x}\n")
        with pytest.raises(ConfigError) as caught:
            load_prices(str(tmp_path / "p.yaml"))
        assert ": a: expected" in str(caught.value) and ": c: expected" in str(caught.value)
        assert ": b: expected" not in str(caught.value)

    def test_a_missing_file_is_an_error(self):
        with pytest.raises(ConfigError, match="llm.prices: nowhere.yaml cannot be read"):
            load_prices("nowhere.yaml")


class TestUsage:
    def test_adds_up(self):
        usage = Usage()
        usage.add(10, 2, 0.5)
        usage.add(1, 1, None, calls=3)
        usage.add(4, 0, 0.25)
        assert (usage.calls, usage.prompt_tokens, usage.completion_tokens, usage.cost_usd) == (5, 15, 3, 0.75)
        assert usage.unpriced == 3

    def test_says_that_a_cost_is_unknown_rather_than_too_low(self):
        usage = Usage()
        usage.add(1000, 2, 0.5)
        assert str(usage) == "1 calls, 1,000 tokens in, 2 out, $0.500"
        usage.add(1, 1, None)
        assert str(usage).endswith("cost unknown")

    @pytest.mark.parametrize(
        ("amount", "text"),
        [
            (0, "$0.00"),
            (0.000194, "$0.000194"),
            (0.05, "$0.0500"),
            (1, "$1.00"),
            (1234.5, "$1,234.50"),
            (0.25, "$0.250"),
        ],
    )
    def test_amounts_have_three_telling_digits(self, amount, text):
        assert dollars(amount) == text


class TestEstimates:
    def test_grow_with_the_text_and_count_the_frame_of_messages(self):
        short, long = [{"role": "user", "content": "tea"}], [{"role": "user", "content": "green tea " * 100}]
        one, two, both = estimate_chat([short, long, short + long])
        assert one < two < both
        assert both == pytest.approx(one + two - 3, abs=1)  # the frame of a chat counts once
        assert estimate_chat([]) == []

    def test_a_damaged_vocabulary_is_an_error_that_says_what_to_do(self, monkeypatch, tmp_path):
        monkeypatch.setattr(embedders, "_package_folder", lambda name: tmp_path)
        _tokenizer.cache_clear()
        with pytest.raises(DataError, match="could not be read.*pip install --force-reinstall"):
            estimate_texts(["tea"])

    def test_an_empty_text_counts_one(self):
        assert estimate_texts(["", "a b c"])[0] == 1
