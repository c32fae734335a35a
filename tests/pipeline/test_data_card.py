"""The data card: figures by hand, and a page that says what was dropped."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from recbole_edt.data import prepare
from recbole_edt.data.statistics import ratio_histogram, statistics
from recbole_edt.data.two_domains import TwoDomainData, offsets_of
from recbole_edt.pipeline import data_card
from recbole_edt.pipeline.data_card import figures

# Items 0, 1, 2 are of food, 3 and 4 of kitchen. The last two rows of each user are held out.
ITEMS = {
    "ann": [0, 3, 1, 3, 0, 4],  # training: food, kitchen, food, kitchen: r = 0
    "bob": [0, 1, 2, 3, 0, 1],  # training: three of food, one of kitchen: r = 0.5
    "cat": [3, 3, 4],  # training: one of kitchen: r = 1
    "dan": [1, 4],  # too short to hold out: both train, r = 0
}


def data_of(items, n_items=5, generated=()):
    users = list(items)
    user = np.repeat(np.arange(len(users)), [len(of) for of in items.values()])
    item = np.concatenate([*map(np.array, items.values())])
    days = np.concatenate([np.arange(len(of)) // 2 for of in items.values()])
    flags = np.isin(np.arange(len(user)), generated)
    domain = np.array([0, 0, 0, 1, 1, 1][:n_items], np.int8)
    fields = pd.DataFrame({"title": ["Tea", "Jam", "", "Pan", "Cup", "Pot"], "brand": ["", "", "Acme", "", "", ""]})
    return TwoDomainData(
        name="mine",
        users=np.array(users, object),
        items=np.array([f"i{n}" for n in range(n_items)], object),
        domains=("food", "kitchen"),
        item_domain=domain,
        item_fields=fields[:n_items].astype(object),
        virtual=np.arange(n_items) >= 5,
        user=user,
        item=item,
        time=1_400_000_000.0 + 86_400 * days,
        generated=flags,
        offsets=offsets_of(user, len(users)),
    )


@pytest.fixture
def data():
    return data_of(ITEMS)


@pytest.fixture
def augmented():
    """Bob gets a new pot after his first item, cat some tea."""
    longer = {**ITEMS, "bob": [0, 5, 1, 2, 3, 0, 1], "cat": [3, 0, 3, 4]}
    return data_of(longer, n_items=6, generated=[7, 14])


def test_statistics_are_those_of_the_papers_first_table(data, augmented):
    assert statistics(data) == {
        "users": 4,
        "interactions": 17,
        "mean_length": 4.25,
        "users_in_both_domains": 3,
        "by_domain": {
            "food": {"users": 3, "items": 3, "interactions": 9},
            "kitchen": {"users": 4, "items": 2, "interactions": 8},
        },
    }
    after = statistics(augmented)
    assert after["mean_length"] == 19 / 4 and after["users_in_both_domains"] == 4
    assert after["by_domain"]["kitchen"] == {"users": 4, "items": 3, "interactions": 9}


def test_the_histogram_is_of_training_rows(data, augmented):
    assert ratio_histogram(data) == {"users_by_tenth": [2, 0, 0, 0, 0, 1, 0, 0, 0, 1], "mean": 0.375}
    # Now bob has three of food and two of kitchen, cat one of each.
    assert ratio_histogram(augmented) == {"users_by_tenth": [3, 0, 1, 0, 0, 0, 0, 0, 0, 0], "mean": pytest.approx(0.05)}


@pytest.mark.parametrize("n_food, tenth", [(13, 3), (11, 1), (19, 9), (20, 9), (10, 0), (16, 6), (17, 7)])
def test_a_tenth_has_its_lower_bound_whatever_the_rounding(n_food, tenth):
    row = [0] * n_food + [3] * (20 - n_food)
    found = ratio_histogram(data_of({"ann": [*row, 0, 3]}))
    assert np.flatnonzero(found["users_by_tenth"]).tolist() == [tenth]


def test_figures_tell_texts_and_time(data, augmented):
    found = figures(data, augmented)
    assert found["items_with_title"] == 0.8 and found["items_with_text"] == 1.0
    # All rows have a neighbour on their day but the last of cat.
    assert found["time"] == {"first": "2014-05-13", "last": "2014-05-15", "share_tied": 16 / 17}
    assert list(found["statistics"]) == ["before", "after"]
    assert list(figures(data)["statistics"]) == ["before"]


def test_generated_rows_never_count_as_before(augmented):
    assert figures(augmented)["statistics"]["before"]["interactions"] == 17


def test_positions_in_place_of_times_are_shown_as_numbers(data):
    found = figures(replace(data, time=np.arange(17.0)))
    assert (found["time"]["first"], found["time"]["last"]) == ("0", "16")


def test_a_time_before_the_first_year_is_shown(data):
    times = np.append(-62_169_984_000.0, data.time[1:])  # 397 days before the first one of the year 1
    assert figures(replace(data, time=times))["time"]["first"] == "-001-11-30"


def test_the_statistics_on_a_card_are_found_again_if_it_is_whole(data, augmented, tmp_path):
    assert data_card.recorded(tmp_path) == {}
    data_card.write(tmp_path, data, augmented)
    assert data_card.recorded(tmp_path) == {"before": statistics(data), "after": statistics(augmented)}
    (tmp_path / "card.png").unlink()
    assert data_card.recorded(tmp_path) == {}


MANIFEST = {
    "counts": {
        "dropped": {"unusable": 1, "duplicate": 2, "too_rare": 30},
        "items_in_both": 4,
        "items_without_metadata": 5,
        "items_without_title": 6,
        "rows_read": 50,
        "rows_kept": 17,
    },
    "config": {
        "inputs": [
            {
                "file": "food|1.csv",
                "bytes": 1234,
                "lines": 51,
                "unusable": 1,
                "sha256": "ab12",
                "first_unusable": "line 7: no user_id: ('<b>', '*')",
            }
        ]
    },
    "versions": {},
}


def test_the_card_is_a_page_a_table_and_a_picture(data, augmented, tmp_path):
    (tmp_path / "prepare.json").write_text(json.dumps(MANIFEST))
    data_card.write(tmp_path, data, augmented)
    page = (tmp_path / "card.md").read_text()
    for line in (
        "# Data card: mine",
        "| food | 3 | 3 | 9 | 4 | 3 | 10 |",
        "before augmentation: 4 users, 3 of them in both domains; 17 interactions, 4.25 per user",
        "| 90-100 | 1 | 0 |",
        "| items with a title | 80.0% |",
        "| items with any text | 100.0% |",
        "| lines read | 50 |",
        r"| of rare items or users (prepare.k\_core, prepare.min\_history) | 30 |",
        "| kept | 17 |",
        "| items met in both domains, which count as food | 4 |",
        r"| food\|1.csv | 1,234 | 51 | 1 | ab12 |",
        r"food\|1.csv, first unusable: line 7: no user\_id: ('&lt;b&gt;', '\*')",
    ):
        assert line in page.splitlines(), line
    found = json.loads((tmp_path / "card.json").read_text())
    assert found["statistics"]["after"]["interactions"] == 19
    assert found["prepare"]["counts"] == MANIFEST["counts"]
    assert (tmp_path / "card.png").read_bytes().startswith(b"\x89PNG")


def test_films_tell_what_was_merged(data):
    made = {"counts": {"films_merged": 18, "ratings_kept": 99_683}, "settings": {"source": "ml-100k"}, "versions": {}}
    page = data_card.page({**figures(data), "prepare": made}).markdown()
    assert "| films merged | 18 |" in page and "| ratings kept | 99,683 |" in page


def test_every_reason_that_prepare_counts_has_words():
    from pathlib import Path

    source = Path(prepare.__file__).read_text(encoding="utf-8")
    counted = {one for one in data_card.REASONS if f'"{one}"' in source}
    assert counted == set(data_card.REASONS)
