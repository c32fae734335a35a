import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_edt.cleaning import short
from recbole_edt.llm.json_answers import Problem, fault_of, judge, without_limits

ITEM = {
    "type": "object",
    "properties": {"title": {"type": "string", "minLength": 1, "maxLength": 10}, "brand": {"type": "string"}},
    "required": ["title", "brand"],
    "additionalProperties": False,
}
SCHEMA = {
    "type": "object",
    "properties": {"items": {"type": "array", "minItems": 1, "maxItems": 2, "items": ITEM}},
    "required": ["items"],
    "additionalProperties": False,
}
GOOD = {"items": [{"title": "pan", "brand": "Lodge"}]}
TEXT = json.dumps(GOOD)


class TestJudge:
    @pytest.mark.parametrize(
        "text",
        [
            TEXT,
            f"  {TEXT}\n",
            f"\ufeff{TEXT}",
            f"```json\n{TEXT}\n```",
            f"```\n{TEXT}```\nHope this helps!",
            f"Sure, here you are:\n{TEXT}\nAnything {{else}}?",
            f"As a list [as you asked]: {TEXT}",
            f"<think>Perhaps {{}} or {json.dumps({'items': []})}?</think>{TEXT}",
            json.dumps(GOOD["items"]),
            f"1. {json.dumps(GOOD['items'])}",
        ],
    )
    def test_finds_the_value_whatever_stands_around_it(self, text):
        assert judge(text, "stop", SCHEMA) == GOOD

    def test_takes_a_list_out_of_an_object_where_a_list_is_asked_for(self):
        assert judge('{"products": ["a"]}', "stop", {"type": "array", "items": {"type": "string"}}) == ["a"]

    def test_leaves_out_keys_that_nobody_asked_for_and_items_beyond_the_largest_number(self):
        items = [{"title": name, "brand": "b", "price": 3} for name in "abc"]
        found = judge(json.dumps({"items": items, "note": "n"}), "stop", SCHEMA)
        assert found == {"items": [{"title": "a", "brand": "b"}, {"title": "b", "brand": "b"}]}

    def test_keeps_unknown_keys_of_an_open_object(self):
        schema = {"type": "object", "properties": {"a": {"type": "string"}}}
        assert judge('{"a": "x", "b": 1}', "stop", schema) == {"a": "x", "b": 1}

    def test_prefers_what_fits_over_what_comes_first(self):
        assert judge(f'Not {{"items": []}} but {TEXT}', "stop", SCHEMA) == GOOD

    @pytest.mark.parametrize(
        ("text", "reason", "kind"),
        [
            ("", "stop", "empty"),
            (None, "stop", "empty"),
            (" \n", "length", "cut off"),
            ("I like pans.", "stop", "not JSON"),
            ("{'title': 'pan'}", "stop", "not JSON"),
            ("[" * 100_000, "stop", "not JSON"),
            (TEXT[:-4], "length", "cut off"),
            (TEXT[:-4], "stop", "not JSON"),
            ('{"items": []}', "stop", "schema"),
            ('{"items": [{"title": "a title too long", "brand": "b"}]}', "stop", "schema"),
            ('{"items": [{"title": "pan"}]}', "stop", "schema"),
            ("I'm sorry, I can't.", "refusal", "refused"),
            ("", "content_filter", "refused"),
        ],
    )
    def test_names_the_kind_of_problem(self, text, reason, kind):
        found = judge(text, reason, SCHEMA)
        assert isinstance(found, Problem) and found.kind == kind

    def test_a_cut_off_answer_that_is_whole_all_the_same_is_good(self):
        assert judge(TEXT, "length", SCHEMA) == GOOD

    def test_says_where_and_how_a_value_breaks_the_schema(self):
        found = judge('{"items": [{"title": "pan", "brand": 7}]}', "stop", SCHEMA)
        assert found.message == "items[0].brand: 7 is not of type 'string'"

    def test_does_not_repeat_a_long_value_in_its_message(self):
        found = judge(json.dumps({"items": [{"title": "x" * 100_000, "brand": "b"}]}), "stop", SCHEMA)
        assert found.kind == "schema" and len(found.message) < 350

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
    def test_numbers_that_are_no_json_are_no_answer(self, number):
        assert judge(f'{{"n": {number}}}', "stop", {"type": "object"}).kind == "not JSON"

    def test_halves_of_characters_are_replaced_so_that_every_value_can_be_written(self):
        value = judge('{"items": [{"title": "a\\ud800b", "brand": "\\ud83c\\udf55"}]}', "stop", SCHEMA)
        assert value == {"items": [{"title": "a\ufffdb", "brand": "\U0001f355"}]}
        json.dumps(value, ensure_ascii=False).encode()

    @given(st.text() | st.lists(st.sampled_from(['{"items":', "[", "]", "}", '"a"', ",", "\\", "```"])).map("".join))
    def test_any_text_gives_a_value_that_fits_or_a_problem(self, text):
        found = judge(text, "stop", SCHEMA)
        assert isinstance(found, Problem) or fault_of(found, SCHEMA) is None

    @pytest.mark.parametrize("opened", ["<think>" * 20_000, f"```{'a' * 140_000}", "```" + "\n" * 140_000])
    def test_a_thought_or_fence_that_is_never_closed_takes_no_time(self, opened):
        start = time.monotonic()
        assert judge(opened, "length", SCHEMA).kind == "cut off"
        assert time.monotonic() - start < 2

    def test_every_thought_and_every_fence_is_seen_and_one_that_is_not_closed_is_text(self):
        thought = '<think>{"items": 1}</think>'
        assert judge(f"{thought}\n{thought}{TEXT}<think>", "stop", SCHEMA) == GOOD
        assert judge(f"</think>{thought}<think>{TEXT}", "stop", SCHEMA) == GOOD
        schema = {"type": "string"}
        assert judge('```a``` ```json\u00a0\n"x"``` ```"y"', "stop", schema) == "x"
        assert judge('```a``` ```"y"', "stop", schema).kind == "not JSON"

    @given(st.text(max_size=30), st.text(max_size=30))
    def test_prose_around_an_answer_changes_nothing(self, before, after):
        if not set("{[<`") & set(before):
            assert judge(before + TEXT + after, "stop", SCHEMA) == GOOD


def test_limits_are_left_out_at_every_depth_and_names_of_properties_stay():
    schema = {"type": "object", "properties": {"format": {"type": "string", "maxLength": 3}, "n": {"minimum": 1}}}
    assert without_limits(schema) == {"type": "object", "properties": {"format": {"type": "string"}, "n": {}}}
    assert without_limits(SCHEMA)["properties"]["items"] == {
        "type": "array",
        "items": {**ITEM, "properties": {"title": {"type": "string"}, "brand": {"type": "string"}}},
    }


def test_a_shortened_text_is_one_line_of_the_given_length():
    assert short(" a\n b ") == "a b"
    assert short("x" * 20, 10) == "xxxxxxx..."


def test_a_shortened_text_holds_nothing_that_a_terminal_would_obey():
    assert short("no such \x1b]0;me\x07 model\x1b[2J \u202e") == r"no such \x1b]0;me\x07 model\x1b[2J \u202e"
    assert len(short("\x07" * 1000)) == 300
