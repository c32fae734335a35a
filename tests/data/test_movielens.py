import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from recbole_edt.data import movielens, prepare
from recbole_edt.data.atomic import read
from recbole_edt.data.movielens import article_first, film_domain
from recbole_edt.data.prepare import source_hash
from recbole_edt.data.sources import PrepareConfig
from recbole_edt.data.statistics import card
from recbole_edt.errors import DataError
from recbole_edt.files import is_current

ITEMS = """item_id:token	movie_title:token_seq	release_year:token	class:token_seq
10	Heat	1995	Action Crime
2	Birdcage, The	1996	Comedy
9	Birdcage, The	1996	Comedy Drama
3	Birdcage, The	1997	Comedy
4	unkonwn	unkonwn	unknown
5	Odd	V	unknown War
"""
RATINGS = """user_id:token	item_id:token	rating:float	timestamp:float
b	10	3	50
b	9	5	20
a	4	1	1
a	5	1	9
b	2	2	10
a	3	4	9
a	9	4	2
b	5	4	10
"""


@pytest.fixture
def small_movielens(tmp_path, monkeypatch):
    """The reader pointed at eight ratings of six films."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "ml-100k.item").write_text(ITEMS)
    (source / "ml-100k.inter").write_text(RATINGS)
    files = source / "ml-100k.item", source / "ml-100k.inter"
    monkeypatch.setattr(movielens, "files", lambda: files)
    return tmp_path / "out"


def rows_of(data):
    return list(zip(data.users[data.user], data.items[data.item], data.time.tolist(), strict=True))


def films(folder):
    """The two domains of films, written and read back."""
    prepare.prepare(PrepareConfig("ml-100k"), folder, "films")
    return read(folder, "films", movielens.FILM_DOMAINS)


class TestFilmDomain:
    @pytest.mark.parametrize(
        ("genres", "domain"),
        [
            (["War"], "action"),
            (["Drama"], "drama"),
            (["Drama", "War"], "action"),  # half is enough
            (["Drama", "War", "Romance"], "drama"),
            (["Film-Noir", "Sci-Fi", "Comedy"], "action"),
            (["Animation", "Children's", "Comedy"], "drama"),
        ],
    )
    def test_is_action_from_half_of_the_genres_on(self, genres, domain):
        assert film_domain(genres) == domain


class TestArticleFirst:
    @pytest.mark.parametrize(
        ("listed", "natural"),
        [
            ("Birdcage, The", "The Birdcage"),
            ("American in Paris, An", "An American in Paris"),
            ("Little Princess, A", "A Little Princess"),
            ("Tin Drum, The (Blechtrommel, Die)", "The Tin Drum (Blechtrommel, Die)"),
            ("Postino, Il", "Postino, Il"),
            ("The Thing", "The Thing"),
            ("Good, The Bad", "Good, The Bad"),
        ],
    )
    def test_moves_only_english_articles(self, listed, natural):
        assert article_first(listed) == natural


class TestMovieLens:
    def test_keeps_each_film_once_under_its_lowest_number(self, small_movielens):
        data = films(small_movielens)
        assert data.items.tolist() == ["5", "10", "2", "3"]
        assert data.item_fields["title"].tolist() == [
            "Odd",
            "Heat (1995)",
            "The Birdcage (1996)",
            "The Birdcage (1997)",
        ]
        assert data.item_fields["category"].tolist() == ["War", "Action, Crime", "Comedy", "Comedy"]
        assert data.domains == ("action", "drama")
        assert data.item_domain.tolist() == [0, 0, 1, 1]

    def test_keeps_the_earliest_rating_of_a_merged_film(self, small_movielens):
        # b rated both copies of The Birdcage; at time 10 the order of the file decides.
        assert rows_of(films(small_movielens)) == [
            ("b", "2", 10.0),
            ("b", "5", 10.0),
            ("b", "10", 50.0),
            ("a", "2", 2.0),
            ("a", "5", 9.0),
            ("a", "3", 9.0),
        ]

    def test_writes_files_that_read_back_with_action_first(self, small_movielens):
        data = films(small_movielens)
        again = read(small_movielens, "films")
        assert again.domains == data.domains
        assert rows_of(again) == rows_of(data)

    def test_counts_what_it_dropped_and_merged(self, small_movielens):
        films(small_movielens)
        assert json.loads((small_movielens / "prepare.json").read_text())["counts"] == {
            "films_without_genre_dropped": 1,
            "films_merged": 1,
            "ratings_in_source": 8,
            "ratings_kept": 6,
        }

    def test_the_manifest_tells_when_the_source_has_changed(self, small_movielens):
        films(small_movielens)
        outputs = [small_movielens / "films.inter", small_movielens / "films.item"]
        assert is_current(small_movielens / "prepare.json", source_hash(PrepareConfig("ml-100k")), outputs)
        source = small_movielens.parent / "source" / "ml-100k.inter"
        source.write_text(source.read_text() + "c\t10\t3\t99\n")
        assert not is_current(small_movielens / "prepare.json", source_hash(PrepareConfig("ml-100k")), outputs)

    def test_without_recbole_the_remedy_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setattr(movielens, "find_spec", lambda name: None)
        with pytest.raises(DataError, match="pip install recbole"):
            films(tmp_path)


@pytest.mark.skipif(find_spec("recbole") is None, reason="recbole brings the data")
class TestInstalledMovieLens:
    def test_has_the_known_figures(self, tmp_path):
        data = films(tmp_path)
        figures = card(data)
        assert {name: figures[name] for name in list(figures)[:4]} == {
            "users": 943,
            "items_action": 650,
            "items_drama": 1012,
            "interactions": 99_683,
        }
        assert data.item_fields["title"].is_unique
        assert "The Birdcage (1996)" in set(data.item_fields["title"])

    def test_needs_neither_torch_nor_recbole_in_memory(self, tmp_path):
        code = (
            "import sys; from pathlib import Path; from recbole_edt.data.prepare import PrepareConfig, prepare; "
            f"prepare(PrepareConfig('ml-100k'), Path({str(tmp_path)!r}), 'films'); "
            "print('torch' in sys.modules, 'recbole' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["False", "False"]


class TestFigures:
    def test_counts_by_hand(self, small_movielens):
        # Training rows: b has 2 (drama); a has 2 (drama). One row each, so each ratio is 1.
        assert card(films(small_movielens)) == {
            "users": 2,
            "items_action": 2,
            "items_drama": 2,
            "interactions": 6,
            "mean_length": 3.0,
            "users_in_both_domains": 2,
            "mean_domain_ratio": 1.0,
        }

    def test_leaves_generated_rows_and_virtual_items_out(self, small_movielens):
        data = films(small_movielens)
        generated = np.array([True, False, False, False, False, False])
        virtual = np.array([False, False, False, True])
        figures = card(replace(data, generated=generated, virtual=virtual))
        assert (figures["interactions"], figures["items_drama"], figures["users_in_both_domains"]) == (5, 1, 1)
        assert figures["mean_domain_ratio"] == 1.0  # b has two raw rows left, both action
