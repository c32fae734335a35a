"""Rows on disk, the coarse filter that spares memory, and the exact filters after it."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_edt.data import raw_rows
from recbole_edt.data.raw_rows import Rows, Spill, first_domain, frequent, in_order, repeated
from recbole_edt.errors import DataError


def on_disk(folder, rows, block=5):
    """A spill of (user, item, time, line, domain), written in blocks of one domain."""
    written = Spill(folder)
    for domain in (0, 1):
        own = [row for row in rows if row[4] == domain]
        for start in range(0, len(own), block):
            users, items, times, lines, _ = zip(*own[start : start + block], strict=True)
            written.append(users, items, np.array(times, float), np.array(lines), domain)
    return written


def tuples(rows):
    columns = rows.users[rows.user], rows.items[rows.item], rows.time, rows.line, rows.domain
    return list(zip(*(column.tolist() for column in columns), strict=True))


def in_memory(rows):
    """Rows from tuples, without a disk."""
    users, items = (sorted({row[place] for row in rows}) for place in (0, 1))
    index = [[users.index(row[0]) for row in rows], [items.index(row[1]) for row in rows]]
    user, item = (np.array(one, np.int64) for one in index)
    time, line = np.array([row[2] for row in rows], float), np.array([row[3] for row in rows], np.int64)
    domain = np.array([row[4] for row in rows], np.int8)
    in_a = np.isin(np.arange(len(items)), item[domain == 0])
    return Rows(np.array(users, object), np.array(items, object), user, item, time, line, domain, in_a)


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["ann", "bob", "cät", "dan", "eve"]),
        st.sampled_from(["i", "j", "k", "l"]),
        st.integers(0, 3),
        st.integers(1, 99),
        st.integers(0, 1),
    ),
    max_size=60,
)


class TestSpill:
    def test_gives_back_what_was_written_in_that_order(self, tmp_path):
        rows = [("ann", "i", 1.5, 7, 0), ("bob", "jä", 2.0, 8, 0), ("ann", "jä", 0.0, 1, 1)]
        written = on_disk(tmp_path, rows, block=2)
        kept = written.kept(0, 0)
        assert tuples(kept) == rows
        assert kept.users.tolist() == ["ann", "bob"] and kept.items.tolist() == ["i", "jä"]
        assert not list(tmp_path.iterdir())  # its files have no name

    def test_nothing_written_is_nothing_kept(self, tmp_path):
        kept = Spill(tmp_path / "new").kept(5, 5)
        assert len(kept.user) == len(kept.users) == 0

    @settings(max_examples=60)
    @given(ROWS, st.integers(0, 4), st.integers(0, 4), st.integers(1, 64), st.integers(1, 16))
    def test_the_coarse_filter_drops_nothing_that_the_exact_one_keeps(
        self, tmp_path_factory, rows, k, history, users, items
    ):
        """Whatever falls into one bucket, and however often the disk is read over."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(raw_rows, "IN_MEMORY_ROWS", 0)
            patch.setattr(raw_rows, "USER_BUCKETS", users)
            patch.setattr(raw_rows, "ITEM_BUCKETS", items)
            coarse = on_disk(tmp_path_factory.mktemp("spill"), rows).kept(k, history)
        exact = in_memory(sorted(rows, key=lambda row: row[4]))
        kept = exact.take(frequent(exact, first_domain(exact)[0], k, history))
        assert set(tuples(kept)) <= set(tuples(coarse))
        again = coarse.take(frequent(coarse, first_domain(coarse)[0], k, history))
        assert sorted(tuples(again)) == sorted(tuples(kept))

    def test_an_item_stays_in_a_though_the_coarse_filter_drops_what_a_had_of_it(self, tmp_path, monkeypatch):
        monkeypatch.setattr(raw_rows, "IN_MEMORY_ROWS", 0)
        rows = [("once", "both", 1, 1, 0)]
        rows += [(user, item, 1, 1, 1) for user in ("ann", "bob") for item in ("both", "other")]
        kept = on_disk(tmp_path, rows).kept(2, 0)
        assert set(kept.users) == {"ann", "bob"}
        domain, _ = first_domain(kept)
        assert dict(zip(kept.items, domain.tolist(), strict=True)) == {"both": 0, "other": 1}

    def test_with_buckets_enough_the_coarse_filter_drops_nearly_all_that_is_rare(self, tmp_path, monkeypatch):
        monkeypatch.setattr(raw_rows, "IN_MEMORY_ROWS", 100)
        many = [(f"user{n}", f"item{n % 50}", 0, n, n % 2) for n in range(5000)]
        often = [(f"often{n}", f"item{place}", 0, n, 0) for n in range(10) for place in range(5)]
        written = on_disk(tmp_path, many + often, block=500)
        assert sorted(tuples(written.kept(5, 0))) == sorted(often)

    def test_memory_stays_that_of_a_block_and_of_what_is_kept(self, tmp_path, monkeypatch):
        monkeypatch.setattr(raw_rows, "IN_MEMORY_ROWS", 1000)
        monkeypatch.setattr(raw_rows, "USER_BUCKETS", 2**20)
        monkeypatch.setattr(raw_rows, "ITEM_BUCKETS", 2**10)

        def peak(n_blocks):
            written = Spill(tmp_path)
            tracemalloc.start()
            for block in range(n_blocks):
                users = [f"a user who comes but once {block} {n}" for n in range(2000)]
                items = [f"item{n % 9}" for n in range(2000)]
                written.append(users, items, np.zeros(2000), np.arange(2000), 0)
            kept = written.kept(5, 0)
            found = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert len(kept.user) < 0.1 * written.n_rows
            return found

        peak(2)  # what is imported and cached for the first time
        assert peak(40) < 1.2 * peak(10)

    def test_a_folder_that_cannot_be_written_is_named(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(DataError, match="file/under: no place for the rows while they are read"):
            Spill(tmp_path / "file" / "under")


class TestOrder:
    def test_is_by_user_and_time_and_then_as_in_the_file(self):
        rows = in_memory([("b", "i", 1, 1, 0), ("a", "j", 2, 2, 0), ("a", "k", 1, 3, 0), ("a", "i", 1, 4, 0)])
        assert in_order(rows, 42, one_file=False).tolist() == [2, 3, 1, 0]

    def test_level_times_of_two_files_are_shuffled_into_each_other(self):
        ties = [("a", f"i{n}", 5, n, n % 2) for n in range(2000)]
        rows = in_memory(sorted(ties, key=lambda row: row[4]))
        order = in_order(rows, 42, one_file=False)
        domain = rows.domain[order]
        for d in (0, 1):  # each file's own order stays
            assert (np.diff(rows.line[order][domain == d]) > 0).all()
        assert 400 < (np.diff(domain) != 0).sum() < 1600  # neither one after the other nor in turn
        assert domain[:1000].mean() == pytest.approx(0.5, abs=0.1)
        assert (order == in_order(rows, 42, one_file=False)).all()
        assert (order != in_order(rows, 43, one_file=False)).any()

    def test_level_times_of_one_file_keep_its_order(self):
        rows = in_memory([("a", f"i{n}", 5, n, n % 2) for n in range(50)][::-1])
        assert rows.line[in_order(rows, 42, one_file=True)].tolist() == list(range(50))

    @given(ROWS)
    def test_is_an_order_of_all_rows(self, rows):
        if rows:
            rows = in_memory(sorted(rows, key=lambda row: row[4]))
            order = in_order(rows, 1, one_file=False)
            assert sorted(order) == list(range(len(order)))
            keys = list(zip(rows.user[order], rows.time[order], strict=True))
            assert keys == sorted(keys)


def test_repeated_rows_are_those_after_the_first_of_a_user_and_item():
    rows = in_memory([("a", "i", 1, 1, 0), ("a", "i", 1, 2, 1), ("a", "i", 2, 3, 0), ("b", "i", 1, 4, 0)])
    assert repeated(rows, same_time=True).tolist() == [False, True, False, False]
    assert repeated(rows, same_time=False).tolist() == [False, True, True, False]


def test_an_item_read_for_both_domains_is_of_the_first():
    rows = in_memory([("a", "both", 1, 1, 1), ("a", "a only", 1, 1, 0), ("b", "both", 1, 1, 0), ("a", "x", 1, 1, 1)])
    domain, n_both = first_domain(rows)
    assert dict(zip(rows.items, domain.tolist(), strict=True)) == {"a only": 0, "both": 0, "x": 1}
    assert n_both == 1


class TestFrequent:
    def test_reaches_a_fixed_point(self):
        # j has one buyer, so it goes; then b has one interaction, so b goes; then k has one buyer; a keeps two of i.
        rows = in_memory(
            [("b", "j", 1, 1, 0), ("b", "k", 2, 2, 0), ("a", "k", 1, 3, 0), ("a", "i", 2, 4, 0), ("a", "i", 3, 5, 0)]
        )
        assert frequent(rows, np.zeros(3, np.int8), 2, 0).tolist() == [False, False, False, True, True]

    def test_counts_each_part_of_a_user_for_the_core_and_the_whole_for_the_history(self):
        rows = in_memory([("a", "i", n, n, 0) for n in range(3)] + [("a", "k", 9, 9, 1), ("b", "k", 1, 1, 1)])
        domain = np.array([0, 1], np.int8)
        assert frequent(rows, domain, 2, 0).tolist() == [True, True, True, False, False]
        assert frequent(rows, domain, 0, 4).tolist() == [True, True, True, True, False]
        assert frequent(rows, domain, 0, 0).all()

    @given(ROWS, st.integers(0, 4), st.integers(0, 6))
    def test_leaves_nothing_rare_and_drops_only_what_must_go(self, rows, k, history):
        if not rows:
            return
        rows = in_memory(rows)
        domain, _ = first_domain(rows)
        kept = frequent(rows, domain, k, history)

        def rare(which):
            left = rows.take(which)
            part = 2 * left.user + domain[left.item]
            few = [np.bincount(key)[key] < least for key, least in ((left.item, k), (part, k), (left.user, history))]
            return np.any(few, axis=0)

        assert not rare(kept).any()
        greedy = np.ones(len(kept), bool)  # one row at a time, in an order of its own
        while rare(greedy).any():
            greedy[np.flatnonzero(greedy)[np.flatnonzero(rare(greedy))[-1]]] = False
        assert (greedy == kept).all()
