import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_edt.data.atomic import read, write
from recbole_edt.data.split import (
    TEST,
    TRAIN,
    VALID,
    domain_ratio,
    leave_one_out,
    leave_one_out_marks,
    split_hash,
    training_rows,
)
from recbole_edt.data.two_domains import TwoDomainData, offsets_of


def dataset(rows, n_users=None, domains=("food", "kitchen")):
    """Data from one text per user, such as ``"f1 k1 *f2 f3"``; a star marks a generated row."""
    texts = [text.split() for text in rows]
    user = np.repeat(np.arange(len(texts)), [len(text) for text in texts]).astype(np.int64)
    words = [word for text in texts for word in text]
    tokens = [word.lstrip("*") for word in words]
    items = np.array(sorted(set(tokens)), dtype=object)
    n_users = n_users or len(texts)
    return TwoDomainData(
        name="toy",
        users=np.array([f"u{i}" for i in range(n_users)], dtype=object),
        items=items,
        domains=domains,
        item_domain=np.array([token[0] == "k" for token in items], dtype=np.int8),
        item_fields=pd.DataFrame({"title": items}),
        virtual=np.zeros(len(items), dtype=bool),
        user=user,
        item=np.searchsorted(items, tokens).astype(np.int64),
        time=np.arange(len(words), dtype=np.float64),
        generated=np.array([word.startswith("*") for word in words], dtype=bool),
        offsets=offsets_of(user, n_users),
    )


class TestLeaveOneOut:
    def test_the_last_row_is_tested_and_the_one_before_validates(self):
        marks = leave_one_out(dataset(["f1 f2 k1 f3", "k1 f1 k2"]))
        assert marks.tolist() == [TRAIN, TRAIN, VALID, TEST, TRAIN, VALID, TEST]
        assert marks.dtype == np.int8

    def test_users_with_fewer_than_three_rows_only_train(self):
        assert leave_one_out(dataset(["f1", "f1 k1", "f1 k1 f2"])).tolist() == [0, 0, 0, 0, 1, 2]

    def test_generated_rows_always_train_wherever_they_stand(self):
        marks = leave_one_out(dataset(["*k1 f1 *k2 f2 *k3 f3 *k4"]))
        assert marks.tolist() == [TRAIN, TRAIN, TRAIN, VALID, TRAIN, TEST, TRAIN]

    def test_generated_rows_do_not_help_a_user_to_three(self):
        assert leave_one_out(dataset(["f1 *k1 *k2 k3", "f1 *k1 k3 f2"])).tolist() == [0, 0, 0, 0, 0, 0, 1, 2]

    def test_users_without_rows_are_no_trouble(self):
        offsets = np.array([0, 0, 3, 3, 4, 4])
        assert leave_one_out_marks(offsets, np.zeros(4, dtype=bool)).tolist() == [0, 1, 2, 0]
        assert len(leave_one_out_marks(np.array([0, 0]), np.zeros(0, dtype=bool))) == 0

    @given(st.lists(st.lists(st.booleans(), max_size=8), max_size=6))
    def test_agrees_with_a_loop_over_users(self, generated):
        expected = []
        for user in generated:
            raw = [row for row, mark in enumerate(user) if not mark]
            marks = [TRAIN] * len(user)
            if len(raw) >= 3:
                marks[raw[-1]], marks[raw[-2]] = TEST, VALID
            expected += marks
        offsets = np.append(0, np.cumsum([len(user) for user in generated])).astype(np.int64)
        flat = np.array([mark for user in generated for mark in user], dtype=bool)
        assert leave_one_out_marks(offsets, flat).tolist() == expected


class TestTrainingRows:
    def test_hold_nothing_of_the_last_two_raw_rows(self):
        data = dataset(["f1 *k9 f2 k1 f3", "k1 f1", "k1 k2 k3"])
        train = training_rows(data)
        assert train.items[train.item].tolist() == ["f1", "k9", "f2", "k1", "f1", "k1"]
        assert train.user.tolist() == [0, 0, 0, 1, 1, 2]
        assert train.time.tolist() == [0, 1, 2, 5, 6, 7]
        assert train.generated.tolist() == [False, True, False, False, False, False]
        assert train.offsets.tolist() == [0, 3, 5, 6]
        assert train.users is data.users and train.items is data.items

    def test_do_not_change_when_the_held_out_items_do(self):
        one, other = (training_rows(dataset([f"f1 f2 k1 {held_out} k3 f3"])) for held_out in ("k2 f3", "k3 k2"))
        assert one.items[one.item].tolist()[:3] == other.items[other.item].tolist()[:3]
        one, other = (training_rows(dataset([f"f1 f2 k1 {held_out}", "k2 f3"])) for held_out in ("k2 f3", "f3 k2"))
        np.testing.assert_array_equal(one.item, other.item)


class TestDomainRatio:
    def test_is_the_difference_over_the_sum(self):
        data = dataset(["f1 f2 f3 k1", "f1 k1", "k1 k2", "f1", "k1 f1 k2"], n_users=6)
        np.testing.assert_allclose(domain_ratio(data), [0.5, 0, 1, 1, 1 / 3, 0])
        assert domain_ratio(data).dtype == np.float64


class TestSplitHash:
    def digest(self, *rows):
        data = dataset(rows)
        return split_hash(data, leave_one_out(data))

    def test_is_the_same_for_raw_and_augmented_data(self):
        raw, augmented = dataset(["f1 k1 f2 k2", "k1 f1"]), dataset(["f1 *k9 k1 f2 k2", "k1 f1"])
        augmented.time[:] = [0, 0, 1, 2, 3, 4, 5]
        assert split_hash(raw, leave_one_out(raw)) == split_hash(augmented, leave_one_out(augmented))

    def test_survives_writing_and_reading(self, tmp_path):
        data = dataset(["f1 *k9 k1 f2 k2", "k1 f1"])
        write(data, tmp_path, "toy")
        again = read(tmp_path, "toy")
        assert split_hash(again, leave_one_out(again)) == split_hash(data, leave_one_out(data))

    @pytest.mark.parametrize("other", [["k1 f1 f2"], ["f1 k1 f3"], ["f1 k1 f2 f2"], ["f1 k1", "f2"]])
    def test_differs_for_other_data(self, other):
        assert self.digest("f1 k1 f2") != self.digest(*other)

    def test_differs_for_other_times_and_another_split(self):
        data = dataset(["f1 k1 f2"])
        marks = leave_one_out(data)
        one = split_hash(data, marks)
        assert split_hash(data, np.zeros_like(marks)) != one
        data.time[0] -= 0.5
        assert split_hash(data, marks) != one
