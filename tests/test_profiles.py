from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from toy import LetterEmbedder, dataset, table_of

from recbole_edt.atomic import read_table
from recbole_edt.embeddings import EmbeddingTable
from recbole_edt.errors import ConfigError, DataError
from recbole_edt.profiles import (
    BALANCE,
    ProfileConfig,
    analyze,
    embed_profiles,
    profile_users,
    reform,
    summarize,
    write_user_file,
)
from recbole_edt.split import TRAIN, leave_one_out, training_rows

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
            assert reform(n_b, n_a, ("food", "kitchen")) == BALANCE[place].format(
                major="kitchen", minor="food"
            )

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

    def test_inserted_rows_count(self):
        texts, _ = profile(data_of("f1 *k1"))
        assert texts == [
            f"{BALANCE[0].format(major='food', minor='kitchen')} In food: green, tea. In kitchen: iron, pan."
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
        assert profile_users(data, table, ProfileConfig())[0] == [
            BALANCE[0].format(major="food", minor="kitchen")
        ]
        texts, has_profile = profile_users(data, table, ProfileConfig(pipeline="plain"))[:2]
        assert texts == [""] and not has_profile.any()

    def test_an_item_without_a_vector_is_an_error(self):
        data = data_of("f1 k1")
        with pytest.raises(DataError, match="lack items"):
            profile_users(data, _without_last(data), ProfileConfig())

    @settings(deadline=None, max_examples=30)
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
