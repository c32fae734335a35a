"""Negatives: never a known item, every other one equally likely, the same for the same seed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_edt.errors import DataError
from recbole_edt.evaluate.candidates import CandidateTable
from recbole_edt.models.parts.negatives import DomainSampler

POOL_A, POOL_B = torch.tensor([7, 1, 5, 3, 9]), torch.tensor([2, 8, 4])


def sampler(pairs, n_users=4):
    user, item = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
    return DomainSampler([POOL_A, POOL_B], user, item, n_users)


def draw_often(drawing, user, domain, n=4000):
    generator = torch.Generator().manual_seed(0)
    return drawing.draw(torch.tensor([user]), torch.tensor([domain]), n, generator)[0].numpy()


def test_draws_are_uniform_over_the_pool_without_the_users_items():
    items, count = np.unique(draw_often(sampler([(0, 5), (0, 9), (0, 8), (1, 7)]), 0, 0), return_counts=True)
    assert items.tolist() == [1, 3, 7]
    assert np.abs(count / 4000 - 1 / 3).max() < 0.03


@pytest.mark.parametrize("known", [[7], [9], [7, 1, 5, 3], [1, 5, 3, 9], [5], []])
def test_no_allowed_item_is_out_of_reach_and_no_other_in_it(known):
    drawn = draw_often(sampler([(2, item) for item in known] + [(1, 7), (3, 2)]), 2, 0, n=500)
    assert set(drawn) == {7, 1, 5, 3, 9} - set(known)


def test_repeats_and_items_outside_the_pools_change_nothing():
    plain, noisy = sampler([(0, 5)]), sampler([(0, 5), (0, 5), (0, 0), (0, 6), (0, 50)])
    assert (draw_often(plain, 0, 0) == draw_often(noisy, 0, 0)).all()


def test_a_user_who_has_the_whole_pool_draws_from_all_of_it():
    drawn = draw_often(sampler([(3, 2), (3, 8), (3, 4), (3, 7)]), 3, 1, n=300)
    assert set(drawn) == {2, 8, 4}


def test_each_position_draws_for_its_own_user_and_domain():
    drawing = sampler([(0, 7), (0, 1), (0, 5), (0, 3), (1, 2), (1, 8), (2, 4), (2, 2)])
    drawn = drawing.draw(torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 1, 0]), 20)
    assert drawn.shape == (4, 20)
    assert [set(row.tolist()) for row in drawn] == [{9}, {4}, {8}, {9}]


def test_draws_of_one_generator_state_are_equal():
    drawing = sampler([(0, 5)])
    assert (draw_often(drawing, 0, 0) == draw_often(drawing, 0, 0)).all()


def test_one_draw_per_position_is_the_default():
    assert sampler([]).draw(torch.tensor([0, 1]), torch.tensor([0, 1])).shape == (2, 1)


def test_an_empty_pool_and_a_repeated_item_are_refused():
    nobody = torch.zeros(0, dtype=torch.long)
    with pytest.raises(DataError, match="domain 1 has no item"):
        DomainSampler([POOL_A, nobody], nobody, nobody, 1)
    with pytest.raises(DataError, match="listed twice"):
        DomainSampler([POOL_A, torch.tensor([5])], nobody, nobody, 1)


def table(n=3, seed=1, user=(0, 1, 2), domain=(0, 1, 0), pools=None):
    pools = pools or [np.arange(10, 20), np.arange(30, 36)]
    history_user, history_item = np.array([0, 0, 0, 1, 1, 2]), np.array([10, 11, 30, 31, 32, 19])
    return CandidateTable.build(np.array(user), np.array(domain), pools, history_user, history_item, n, seed)


def test_candidates_are_distinct_in_domain_and_unknown_to_the_user():
    candidates = table().ids
    assert candidates.shape == (3, 3)
    allowed = [set(range(12, 20)), {30, 33, 34, 35}, set(range(10, 19))]
    for row, items in zip(candidates, allowed, strict=True):
        assert len(set(row)) == 3
        assert set(row) <= items


def test_as_many_candidates_as_there_are_gives_all_of_them():
    assert table(4, user=[1], domain=[1]).ids.tolist() == [[30, 33, 34, 35]]


def test_one_candidate_more_is_an_error_that_says_how_many_there_are():
    with pytest.raises(DataError, match="as few as 4 items"):
        table(5)


def test_every_set_of_candidates_is_equally_likely():
    pools, nobody = [np.arange(5)], np.zeros(0, dtype=int)
    users = np.arange(10_000)
    drawn = CandidateTable.build(users, np.zeros(10_000, dtype=int), pools, nobody, nobody, 2, seed=3).ids
    _, count = np.unique(drawn @ [10, 1], return_counts=True)
    assert len(count) == 10
    assert np.abs(count / 10_000 - 0.1).max() < 0.015


def test_the_seed_decides_and_the_hash_tells():
    assert (table(seed=1).ids == table(seed=1).ids).all()
    assert table(seed=1).hash == table(seed=1).hash
    assert table(seed=1).hash != table(seed=2).hash


def test_a_user_listed_twice_is_refused():
    with pytest.raises(DataError, match="user id 1 is listed twice"):
        table(user=[0, 1, 1])


def test_rows_are_found_by_user_id_and_a_missing_user_is_named():
    shuffled = table(user=[2, 0, 1], domain=[0, 0, 1])
    assert shuffled.rows_of(np.array([0, 1, 2, 0])).tolist() == [1, 2, 0, 1]
    with pytest.raises(DataError, match="2 users have no candidates .the first: user id 9."):
        shuffled.rows_of(np.array([0, 9, 12]))


def test_a_saved_table_reads_back_equal(tmp_path: Path):
    path = tmp_path / "candidates.npy"
    table().save(path)
    stored = CandidateTable.load(path)
    assert (stored.user == table().user).all()
    assert (stored.ids == table().ids).all()
    assert (stored.seed, stored.hash) == (1, table().hash)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["candidates.json", "candidates.npy"]


@pytest.mark.parametrize("damage", ["missing", "cut", "changed", "text"])
def test_a_damaged_table_is_an_error_naming_the_file(tmp_path: Path, damage):
    path = tmp_path / "candidates.npy"
    table().save(path)
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-8])
    elif damage == "changed":
        table(seed=2).save(tmp_path / "other.npy")
        path.write_bytes((tmp_path / "other.npy").read_bytes())
    else:
        path.write_text("not an array")
    with pytest.raises(DataError, match="candidates.npy"):
        CandidateTable.load(path)


@settings(max_examples=60)
@given(
    st.integers(1, 6), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 11)), max_size=30), st.integers(0, 9)
)
def test_any_history_is_avoided_whatever_the_split_into_domains(first_size, pairs, seed):
    pools = [torch.arange(first_size), torch.arange(first_size, 12)]
    user, item = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
    drawing = DomainSampler(pools, user, item, 4)
    everyone, domain = torch.arange(4).repeat(2), torch.arange(2).repeat_interleave(4)
    drawn = drawing.draw(everyone, domain, 40, torch.Generator().manual_seed(seed))
    for u, d, row in zip(everyone.tolist(), domain.tolist(), drawn.tolist(), strict=True):
        pool = set(pools[d].tolist())
        allowed = pool - {i for v, i in pairs if v == u}
        assert set(row) <= (allowed or pool)
