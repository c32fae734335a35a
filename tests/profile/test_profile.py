import re
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from toy import LetterEmbedder, ScriptedWriter, dataset, table_of

from recbole_edt.cleaning import clean
from recbole_edt.data.atomic import read_table
from recbole_edt.data.split import TRAIN, leave_one_out, training_rows
from recbole_edt.errors import ConfigError, DataError
from recbole_edt.profile import steps as steps_module
from recbole_edt.profile.balance import BALANCE, reform
from recbole_edt.profile.profile import embed_profiles, profile_users, write_user_file
from recbole_edt.profile.prompts import Group
from recbole_edt.profile.settings import PIPELINES, ProfileConfig
from recbole_edt.profile.steps import calls_of, typical_items, user_groups
from recbole_edt.profile.telling_words import analyze, summarize
from recbole_edt.text.vectors import EmbeddingTable

TITLES = {
    "f1": "green tea",
    "f2": "black tea",
    "f3": "rye bread",
    "k1": "iron pan",
    "k2": "steel pan",
    "k3": "kettle",
}
VECTORS = np.array([[1, 0], [1, 0.1], [0, 1], [1, 0], [1, 0.1], [0, 1]])  # f1 with f2, k1 with k2


def data_of(*rows):
    return dataset(rows, items=TITLES, titles=TITLES)


def profile(data, **settings):
    return profile_users(data, table_of(data, VECTORS), ProfileConfig(**({"n_clusters": 2} | settings)))[:2]


class TestConfig:
    def test_the_defaults_are_valid(self):
        ProfileConfig().validate()

    @pytest.mark.parametrize(
        "fault", [{"n_clusters": 0}, {"n_words": 0}, {"seed": -1}, {"pipeline": "rsa"}, {"generator": "oracle"}]
    )
    def test_a_value_out_of_range_is_named(self, fault):
        with pytest.raises(ConfigError, match=f"profile.{next(iter(fault))}: "):
            ProfileConfig(**fault).validate()
        with pytest.raises(ConfigError):
            profile(data_of("f1"), **fault)


class TestReform:
    @pytest.mark.parametrize(
        "n_a, n_b, place",
        [(1, 1, 0), (59, 41, 0), (6, 4, 1), (7, 3, 2), (8, 2, 3), (89, 11, 3), (9, 1, 4), (5, 0, 4)],
    )
    def test_bins_of_a_fifth_are_closed_below(self, n_a, n_b, place):
        assert reform(n_a, n_b, ("food", "kitchen")) == BALANCE[place].format(major="food", minor="kitchen")
        if n_a != n_b:
            assert reform(n_b, n_a, ("food", "kitchen")) == BALANCE[place].format(major="kitchen", minor="food")

    def test_there_are_five_descriptions_and_at_most_ten_texts(self):
        assert len(set(BALANCE)) == 5
        pairs = [(a, b) for a in range(21) for b in range(21) if a + b]
        assert len({reform(a, b, ("food", "kitchen")) for a, b in pairs}) == 10

    def test_a_user_without_rows_has_no_balance(self):
        assert reform(0, 0, ("food", "kitchen")) == ""


class TestSummarize:
    def test_each_group_has_its_telling_words_largest_group_first(self):
        data = data_of("f3 f1 f2 k3")
        groups = np.array([0, 0, 1, 0, 0, 1])
        texts = [TITLES[item] for item in data.items]
        food, kitchen = summarize(data, groups, texts, n_words=2)
        assert food == [["tea, black", "bread, rye"]]
        assert kitchen == [["kettle"]]

    def test_a_user_has_words_of_own_items_only(self):
        data = data_of("f1", "f2 k1", "")
        food, kitchen = summarize(data, np.zeros(6, int), [TITLES[item] for item in data.items], n_words=5)
        assert food == [["green, tea"], ["black, tea"], []]
        assert kitchen == [[], ["iron, pan"], []]

    def test_items_without_a_group_or_without_words_say_nothing(self):
        data = data_of("f1 f2 f3", "")
        texts = ["green tea", "black tea", "", "", "", ""]
        food, kitchen = summarize(data, np.array([-1, 0, 1, 0, 0, 0]), texts, n_words=5)
        assert food == [["black, tea"], []]
        assert kitchen == [[], []]

    def test_no_rows_have_no_summaries(self):
        assert summarize(data_of("", ""), np.zeros(6, int), list(TITLES.values()), 5) == ([[], []], [[], []])


class TestAnalyze:
    def test_the_balance_comes_first_then_each_domain(self):
        text = analyze("Balance.", ["tea, green", "rye"], ["pan"], ("food", "kitchen"))
        assert text == "Balance. In food: tea, green; rye. In kitchen: pan."

    def test_a_domain_without_summaries_is_left_out(self):
        assert analyze("Balance.", [], ["pan"], ("food", "kitchen")) == "Balance. In kitchen: pan."
        assert analyze("", [], [], ("food", "kitchen")) == ""


class TestProfileUsers:
    def test_a_profile_tells_balance_and_likes(self):
        texts, has_profile = profile(data_of("f1 f2 f3 k1"))
        balance = BALANCE[2].format(major="food", minor="kitchen")
        assert texts == [f"{balance} In food: tea, black, green; bread, rye. In kitchen: iron, pan."]
        assert has_profile.tolist() == [True]

    def test_inserted_rows_are_liked_too_and_hide_no_imbalance(self):
        texts, _ = profile(data_of("f1 *k1"))
        assert texts == [
            f"{BALANCE[4].format(major='food', minor='kitchen')} In food: green, tea. In kitchen: iron, pan."
        ]

    def test_a_user_without_rows_has_no_profile(self):
        for pipeline in ("sra", "plain"):
            texts, has_profile = profile(data_of("f1", "", "k3", ""), pipeline=pipeline)
            assert has_profile.tolist() == [True, False, True, False]
            assert [bool(text) for text in texts] == [True, False, True, False]

    def test_the_plain_pipeline_is_one_summary_over_everything(self):
        texts, _ = profile(data_of("f1 k1"), pipeline="plain")
        assert texts == ["Likes green, iron, pan, tea."]
        texts, _ = profile(data_of("f1 k1"), pipeline="plain", n_clusters=1, n_words=2)
        assert texts == ["Likes green, iron."]

    def test_items_without_text_leave_the_balance(self):
        data = dataset(["f1 k1"], titles={"f1": "", "k1": ""})
        table = table_of(data, np.zeros((2, 2)))
        assert profile_users(data, table, ProfileConfig())[0] == [BALANCE[0].format(major="food", minor="kitchen")]
        texts, has_profile = profile_users(data, table, ProfileConfig(pipeline="plain"))[:2]
        assert texts == [""] and not has_profile.any()

    def test_an_item_without_a_vector_is_an_error(self):
        data = data_of("f1 k1")
        with pytest.raises(DataError, match="lack items"):
            profile_users(data, _without_last(data), ProfileConfig())

    @settings(max_examples=30)
    @given(
        st.lists(st.lists(st.sampled_from(sorted(TITLES)), min_size=1, max_size=6), min_size=1, max_size=5),
        st.randoms(use_true_random=False),
    )
    def test_held_out_rows_change_no_profile(self, histories, random):
        data = data_of(*[" ".join(history) for history in histories])
        held_out = leave_one_out(data) != TRAIN
        assume(held_out.any())
        swapped = replace(data, item=data.item.copy())
        swapped.item[held_out] = [random.randrange(len(TITLES)) for _ in range(held_out.sum())]
        for pipeline in ("sra", "plain"):
            first, second = (profile(training_rows(each), pipeline=pipeline)[0] for each in (data, swapped))
            assert first == second


def _without_last(data):
    table = table_of(data, VECTORS)
    return replace(table, tokens=table.tokens[:-1], rows=table.rows[:-1])


class TestUserGroups:
    groups = np.array([0, 0, 1, 0, 0, 1])  # f1 with f2, k1 with k2

    def told(self, *rows, texts=None):
        data = data_of(*rows)
        found = user_groups(data, self.groups, texts or [TITLES[item] for item in data.items])
        return {user: [(each.domain, each.size, list(each.items)) for each in own] for user, own in found.items()}

    def test_domain_a_comes_first_and_the_largest_group_of_each_in_time_order(self):
        assert self.told("k1 f3 f2 k3 f1", "k3") == {
            0: [(0, 2, ["black tea", "green tea"]), (0, 1, ["rye bread"]), (1, 1, ["iron pan"]), (1, 1, ["kettle"])],
            1: [(1, 1, ["kettle"])],
        }

    def test_the_largest_comes_first_whatever_the_number_of_its_cluster(self):
        found = user_groups(data_of("f1 f2 f3"), np.array([0, 1, 1, 0, 0, 0]), list("abcdef"))
        assert [each.items for each in found[0]] == [["b", "c"], ["a"]]

    def test_an_item_met_again_stands_where_it_was_met_last(self):
        assert self.told("f1 f2 f1") == {0: [(0, 2, ["black tea", "green tea"])]}

    def test_the_latest_items_of_a_large_group_are_told(self, monkeypatch):
        monkeypatch.setattr(steps_module, "MAX_GROUP_ITEMS", 1)
        assert self.told("f1 f2 k2") == {0: [(0, 2, ["black tea"]), (1, 1, ["steel pan"])]}

    def test_items_without_group_or_text_are_left_out(self):
        data = data_of("f1 f2 k1", "f1")
        found = user_groups(data, np.array([-1, 0, 0, 0, 0, 0]), ["a", "b", "c", "", "e", "f"])
        assert {user: [each.items for each in own] for user, own in found.items()} == {0: [["b"]]}

    def test_many_groups_take_several_calls_of_about_the_same_size(self, monkeypatch):
        monkeypatch.setattr(steps_module, "MAX_GROUPS", 4)
        groups = [Group(0, 1, [str(i)]) for i in range(9)]
        calls = calls_of({7: groups, 8: groups[:4]})
        assert [(user, len(own)) for user, own in calls] == [(7, 3), (7, 3), (7, 3), (8, 4)]
        assert [group for user, own in calls if user == 7 for group in own] == groups


class TestTypicalItems:
    def test_the_one_nearest_its_centroid_in_each_of_the_largest_clusters(self, monkeypatch):
        monkeypatch.setattr(steps_module, "N_EXAMPLES", 2)
        data = dataset(["f1"], items=["f2", "f3", "f4", "f5", "f6", "k1"])
        groups = np.array([2, 1, 1, 0, 0, 0, 0])
        distance = np.array([0.1, 0.3, 0.2, 0.5, 0.4, 0.3, 0.0])
        texts = ["one", "two", "three", "four", "five", "", "pan"]
        assert typical_items(data, groups, distance, texts, 0) == ["five", "three"]
        assert typical_items(data, groups, distance, texts, 1) == ["pan"]
        assert typical_items(data, groups, distance, [""] * 7, 1) == []


def answer(request):
    """Summaries that name their group's first item, and a profile that names what it was told."""
    text = request.messages[1]["content"]
    if request.schema_name == "summarize":
        found = re.findall(r'group_\d+, of.*?:\n- "(.*?)"', text)
        return {key: f"likes {item}" for key, item in zip(request.schema["required"], found, strict=True)}
    if request.schema_name == "reform":
        return {"text": "Reformed: " + re.search(r'users: "(.*?)"', text)[1]}
    told = re.findall(r'- "(.*?)"|spread: "(.*?)"', text)
    return {"profile": " & ".join("".join(pair) for pair in told)}


class TestLanguageModel:
    rows = ("f1 f2 f3 k1", "f1 k1", "", "k1 k2 k3")

    def run(self, *rows, answer=answer, folder=None, **settings):
        data, writer = data_of(*(rows or self.rows)), ScriptedWriter(answer)
        config = ProfileConfig(**({"generator": "llm", "n_clusters": 2} | settings))
        return profile_users(data, table_of(data, VECTORS), config, writer), writer

    def failing(self, wanted, kind="refused"):
        return lambda request: kind if wanted in request.tag else answer(request)

    def test_summaries_and_reformed_balances_make_the_profiles(self):
        found, writer = self.run()
        clearly, evenly = (BALANCE[place].format(major="food", minor="kitchen") for place in (2, 0))
        only = BALANCE[4].format(major="kitchen", minor="food")
        assert found.texts == [
            f"likes green tea & likes rye bread & likes iron pan & Reformed: {clearly}",
            f"likes green tea & likes iron pan & Reformed: {evenly}",
            "",
            f"likes iron pan & likes kettle & Reformed: {only}",
        ]
        assert found.has_profile.tolist() == [True, True, False, True]
        assert writer.waves == [6, 3]  # three summaries and three balances, then three profiles
        assert found.counts == {
            "users": 4,
            "profiles": 3,
            "asked": 9,
            "failed": {},
            "users_not_asked": 1,
            "users_failed": 0,
            "reform_fallbacks": 0,
        }

    def test_a_balance_is_asked_once_however_many_users_share_it(self):
        _, writer = self.run(*["f1 f2 k1"] * 20, *["k1"] * 20)
        assert sum(request.schema_name == "reform" for request in writer.asked) == 2

    def test_there_are_at_most_ten_balances(self):
        rows = [" ".join(["f1"] * n + ["k1"] * (20 - n)) for n in range(21)]
        _, writer = self.run(*rows)
        assert sum(request.schema_name == "reform" for request in writer.asked) == 10

    def test_a_balance_is_told_with_typical_items_of_both_domains(self):
        _, writer = self.run("f1")
        request = next(request for request in writer.asked if request.schema_name == "reform")
        text = request.messages[1]["content"]
        assert re.search('domain "food" has items such as:\n- "(green|black) tea"\n- "rye bread"\n', text)
        assert re.search('domain "kitchen" has items such as:\n- "(iron|steel) pan"\n- "kettle"\n', text)

    def test_inserted_rows_are_told(self):
        found, _ = self.run("f1 *k3")
        assert "likes kettle" in found.texts[0]

    def test_a_user_whose_summary_failed_has_no_profile_and_stops_nobody(self):
        found, writer = self.run(answer=self.failing("u0: summary"))
        assert [bool(text) for text in found.texts] == [False, True, False, True]
        assert found.counts["failed"] == {"refused": 1} and found.counts["users_failed"] == 1
        assert writer.waves == [6, 2]

    def test_one_failed_call_of_several_leaves_no_half_profile(self, monkeypatch):
        monkeypatch.setattr(steps_module, "MAX_GROUPS", 1)
        calls = []

        def second_fails(request):
            calls.append(request.tag)
            return "timeout" if calls.count("u0: summary of 1 groups") == 2 else answer(request)

        found, _ = self.run("f1 f3 k1", "f1", answer=second_fails)
        assert [bool(text) for text in found.texts] == [False, True]
        assert found.counts["failed"] == {"timeout": 1} and found.counts["users_failed"] == 1

    def test_a_failed_profile_is_counted(self):
        found, _ = self.run(answer=self.failing("u1: profile", "cut off"))
        assert not found.has_profile[1] and found.counts["failed"] == {"cut off": 1}
        assert (
            found.counts["users"]
            == found.counts["profiles"] + found.counts["users_failed"] + found.counts["users_not_asked"]
        )

    def test_a_failed_balance_falls_back_to_the_hand_written_one(self):
        found, _ = self.run("f1 k1", answer=self.failing("balance"))
        assert found.texts == ["likes green tea & likes iron pan & " + BALANCE[0].format(major="food", minor="kitchen")]
        assert found.counts["reform_fallbacks"] == 1 and found.counts["failed"] == {"refused": 1}

    def test_a_text_without_a_word_is_none(self):
        def silent(request):
            return {key: "..." for key in request.schema["required"]}

        found, writer = self.run(answer=silent)
        assert found.texts == [""] * 4 and writer.waves == [6, 0]
        assert found.counts["users_failed"] == 3 and found.counts["failed"] == {}
        found, writer = self.run(answer=silent, pipeline="plain")
        assert found.texts == [""] * 4 and found.trace["failure"].tolist() == ["no text"] * 3

    def test_hierarchical_profiles_are_made_of_the_summaries_alone(self):
        found, writer = self.run(pipeline="hierarchical")
        assert found.texts == [
            "likes green tea & likes rye bread & likes iron pan",
            "likes green tea & likes iron pan",
            "",
            "likes iron pan & likes kettle",
        ]
        assert writer.waves == [3, 3]  # three summaries, then three profiles
        assert [request.template for request in writer.asked] == ["summarize@1"] * 3 + ["compose@1"] * 3
        assert found.counts["asked"] == 6 and "reform_fallbacks" not in found.counts
        assert found.trace["step"].tolist()[-3:] == ["compose"] * 3
        found, _ = self.run(pipeline="hierarchical", answer=self.failing("u1: profile"))
        assert found.counts["failed"] == {"refused": 1} and found.counts["users_failed"] == 1

    def test_hierarchical_profiles_know_nothing_of_inserted_rows(self):
        found, writer = self.run("f1 *k3", "*f1", pipeline="hierarchical")
        _, raw = self.run("f1", "", pipeline="hierarchical")
        assert found.texts == ["likes green tea", ""] and writer.asked == raw.asked
        offline, has = profile(data_of("f1 *k3", "*f1"), pipeline="hierarchical")
        assert offline == ["In food: green, tea.", ""] and has.tolist() == [True, False]

    def test_the_plain_pipeline_asks_once_per_user(self):
        found, writer = self.run(pipeline="plain")
        assert writer.waves == [3] and {request.template for request in writer.asked} == {"plain@1"}
        assert '- "food": "rye bread"\n- "kitchen": "iron pan"\n' in writer.asked[0].messages[1]["content"]
        assert found.has_profile.tolist() == [True, True, False, True]
        found, _ = self.run(pipeline="plain", answer=self.failing("u1", "empty"))
        assert found.counts["failed"] == {"empty": 1} and found.counts["users_failed"] == 1

    def test_the_plain_pipeline_tells_the_latest_items(self, monkeypatch):
        monkeypatch.setattr(steps_module, "MAX_PLAIN_ITEMS", 2)
        _, writer = self.run("f1 k1 f3 k1", pipeline="plain")
        assert '\n\n- "food": "rye bread"\n- "kitchen": "iron pan"\n\n' in writer.asked[0].messages[1]["content"]

    def test_the_trace_tells_every_step(self):
        found, _ = self.run("f1 f2 k1", answer=self.failing("balance"))
        steps = found.trace[["user", "step", "domain", "items", "failure"]].to_numpy().tolist()
        assert steps == [
            ["u0", "summarize", "food", 2, ""],
            ["u0", "summarize", "kitchen", 1, ""],
            ["", "reform", "food", 0, "refused"],
            ["u0", "analyze", "", 0, ""],
        ]
        assert (
            found.trace["text"].tolist()[0] == "likes green tea" and found.trace["text"].tolist()[3] == found.texts[0]
        )

    def test_users_without_a_text_are_not_asked(self):
        data = dataset(["f1 k1"], titles={"f1": "", "k1": "\u200b"})
        for pipeline in PIPELINES:
            writer = ScriptedWriter(answer)
            found = profile_users(data, table_of(data, np.eye(2)), ProfileConfig("llm", 2, pipeline), writer)
            assert writer.asked == [] and found.counts["users_not_asked"] == 1 and not found.has_profile.any()

    def test_a_language_model_is_needed(self):
        data = data_of("f1")
        with pytest.raises(ConfigError, match="profile.generator: 'llm' needs"):
            profile_users(data, table_of(data, VECTORS), ProfileConfig("llm"))

    @settings(max_examples=30)
    @given(
        st.lists(st.lists(st.sampled_from(sorted(TITLES)), min_size=1, max_size=6), min_size=1, max_size=5),
        st.randoms(use_true_random=False),
        st.sampled_from(PIPELINES),
    )
    def test_held_out_rows_change_no_prompt(self, histories, random, pipeline):
        data = data_of(*[" ".join(history) for history in histories])
        held_out = leave_one_out(data) != TRAIN
        assume(held_out.any())
        swapped = replace(data, item=data.item.copy())
        swapped.item[held_out] = [random.randrange(len(TITLES)) for _ in range(held_out.sum())]
        asked = []
        for each in (data, swapped):
            writer, train = ScriptedWriter(answer), training_rows(each)
            profile_users(train, table_of(each, VECTORS), ProfileConfig("llm", 2, pipeline), writer)
            asked.append(writer.asked)
        assert asked[0] == asked[1]

    @settings(max_examples=40)
    @given(
        st.lists(st.lists(st.sampled_from(sorted(TITLES)), max_size=6), min_size=1, max_size=5),
        st.data(),
    )
    def test_whatever_is_answered_every_user_is_accounted_for(self, histories, draw):
        def any_answer(request):
            kind = draw.draw(st.sampled_from(["text", "odd", "refused", "timeout"]))
            if kind in ("refused", "timeout"):
                return kind
            text = st.just("tea") if kind == "text" else st.text(min_size=1, max_size=20)
            return {key: draw.draw(text) for key in request.schema["required"]}

        found, writer = self.run(*[" ".join(history) for history in histories], answer=any_answer)
        counts = found.counts
        assert counts["users"] == counts["profiles"] + counts["users_failed"] + counts["users_not_asked"]
        assert counts["asked"] == len(writer.asked) and counts["users_not_asked"] == histories.count([])
        assert all(text == clean(text, 1500) for text in found.texts)
        with tempfile.TemporaryDirectory() as folder:
            write_user_file(
                np.array([f"u{i}" for i in range(len(histories))], object), found.texts, Path(folder) / "t.user"
            )
            assert read_table(Path(folder) / "t.user")[0]["profile"].tolist() == found.texts


class TestFiles:
    def test_the_user_file_has_one_clean_line_per_user(self, tmp_path):
        write_user_file(np.array(["u0", "u1"], object), ["Likes\ttea\nand more.", ""], tmp_path / "toy.user")
        frame, types = read_table(tmp_path / "toy.user")
        assert types == {"user_id": "token", "profile": "token_seq"}
        assert frame.to_numpy().tolist() == [["u0", "Likes tea and more."], ["u1", ""]]

    def test_only_users_with_a_profile_have_a_vector(self, tmp_path):
        users = np.array(["u0", "u1", "u2"], object)
        path = tmp_path / "toy.uservec.safetensors"
        table = embed_profiles(users, ["ab", "", "ab"], np.array([True, False, True]), LetterEmbedder(), path)
        assert table.has(users).tolist() == [True, False, True]
        assert table.lookup(["u2"]).tolist() == [[1, 1, 0, 0]]
        assert table.meta["kind"] == "user"
        assert EmbeddingTable.load(path).tokens.tolist() == ["u0", "u2"]
