"""Data sets made of raw files in the published formats: what is kept, what is dropped, and what is refused."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_edt.data import prepare as raw_data
from recbole_edt.data import raw_rows, statistics
from recbole_edt.data.atomic import read
from recbole_edt.data.prepare import is_made, losses, prepare, source_hash
from recbole_edt.data.sources import PrepareConfig
from recbole_edt.errors import ConfigError, DataError

DAY = 86_400
FOOD = [("ann", "tea", 1), ("ann", "jam", 5), ("bob", "tea", 2), ("bob", "rice", 9), ("cat", "jam", 3)]
KITCHEN = [("ann", "pan", 3), ("bob", "pan", 4), ("bob", "cup", 7), ("cat", "cup", 1)]
TITLES = {"tea": "Green Tea", "jam": "Jam &amp; <b>Co</b>", "rice": "", "pan": "Frying Pan", "cup": "Cup"}


def lines(path, records):
    """Write JSON lines, gzipped if the name says so."""
    content = "".join(json.dumps(one) + "\n" for one in records).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def review2018(user, item, day):
    return {
        "overall": 5.0,
        "verified": True,
        "reviewTime": "01 1, 2014",
        "reviewerID": user,
        "asin": item,
        "reviewerName": "someone",
        "reviewText": "never read",
        "summary": "nor this",
        "unixReviewTime": day * DAY,
    }


def product2018(item, title):
    return {
        "category": ["Grocery", "Tea &amp; more", "Grocery"],
        "description": ["<p>Tasty.</p>", "Hot."],
        "title": title,
        "brand": "Acme",
        "feature": ["warm"],
        "asin": item,
        "also_buy": ["tea", "pan"],
    }


def review2023(user, item, day):
    return {
        "rating": 5.0,
        "title": "Nice",
        "text": "never read",
        "images": [],
        "asin": f"variant of {item}",
        "parent_asin": item,
        "user_id": user,
        "timestamp": day * DAY * 1000 + 250,
        "helpful_vote": 0,
        "verified_purchase": True,
    }


def product2023(item, title):
    return {
        "main_category": "Grocery",
        "title": title,
        "average_rating": 4.8,
        "rating_number": 10,
        "features": ["Tasty.", "Hot."],
        "description": [],
        "price": None,
        "images": [],
        "store": "Acme",
        "categories": ["Grocery", "Tea"],
        "details": {"Package": "x"},
        "parent_asin": item,
        "bought_together": None,
    }


def write_amazon(folder, review=review2018, product=product2018, food=FOOD, kitchen=KITCHEN, titles=None):
    """Two categories of reviews and metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    titles = TITLES if titles is None else titles
    lines(folder / "food.json.gz", [review(*row) for row in food])
    lines(folder / "kitchen.json", [review(*row) for row in kitchen])
    lines(folder / "meta_food.json", [product(item, titles[item]) for item in ("tea", "jam", "rice")])
    lines(folder / "meta_kitchen.json.gz", [product(item, titles[item]) for item in ("pan", "cup")])


FILES = {
    "food": {"interactions": "food.json.gz", "items": "meta_food.json"},
    "kitchen": {"interactions": "kitchen.json", "items": "meta_kitchen.json.gz"},
}


@pytest.fixture
def amazon(tmp_path):
    """Settings for nine reviews of 2018, written to a folder."""
    write_amazon(tmp_path / "raw")
    return PrepareConfig("amazon2018", str(tmp_path / "raw"), FILES)


def made(config, folder, domains=None):
    """The data set, made and read back."""
    assert config.faults() == []
    prepare(config, folder, "mine", domains)
    return read(folder, "mine", domains)


def rows_of(data):
    return list(zip(data.users[data.user], data.items[data.item], (data.time / DAY).tolist(), strict=True))


def counts(folder):
    return json.loads((folder / "prepare.json").read_text())["counts"]


def dropped(folder):
    return {reason: n for reason, n in counts(folder)["dropped"].items() if n}


ALL_ROWS = [
    ("ann", "tea", 1),
    ("ann", "pan", 3),
    ("ann", "jam", 5),
    ("bob", "tea", 2),
    ("bob", "pan", 4),
    ("bob", "cup", 7),
    ("bob", "rice", 9),
    ("cat", "cup", 1),
    ("cat", "jam", 3),
]


class TestAmazon:
    def test_of_2018_gives_rows_in_time_and_clean_texts(self, amazon, tmp_path):
        data = made(amazon, tmp_path / "out")
        assert rows_of(data) == ALL_ROWS
        assert data.domains == ("food", "kitchen")
        assert dict(zip(data.items, data.item_domain, strict=True)) == {
            "tea": 0,
            "jam": 0,
            "rice": 0,
            "pan": 1,
            "cup": 1,
        }
        jam = data.item_fields.iloc[list(data.items).index("jam")].to_dict()
        assert jam == {
            "title": "Jam & Co",
            "brand": "Acme",
            "category": "Grocery, Tea & more",
            "description": "Tasty. Hot.",
        }
        assert counts(tmp_path / "out")["items_without_title"] == 1
        assert counts(tmp_path / "out")["rows_read"] == counts(tmp_path / "out")["rows_kept"] == 9

    def test_of_2023_counts_milliseconds_and_parents(self, tmp_path):
        write_amazon(tmp_path / "raw", review2023, product2023)
        data = made(PrepareConfig("amazon2023", str(tmp_path / "raw"), FILES), tmp_path / "out")
        assert sorted((user, item, round(day)) for user, item, day in rows_of(data)) == sorted(ALL_ROWS)
        assert data.time[0] == DAY + 0.25
        tea = data.item_fields.iloc[list(data.items).index("tea")]
        assert (tea["brand"], tea["category"], tea["description"]) == ("Acme", "Grocery, Tea", "Tasty. Hot.")

    def test_of_2014_has_metadata_as_python_literals(self, amazon, tmp_path):
        record = {"asin": "tea", "title": "O'Neill's \"Tea\"", "categories": [["Grocery", "Tea"], ["Gifts"]]}
        later = {**record, "title": "never seen: the first line with a title counts"}
        (tmp_path / "raw" / "meta_food.json").write_text(f"{record}\n{later}\n{{'asin': 'jam', 'brand': 'Acme'}}\n")
        data = made(replace(amazon, source="amazon2014"), tmp_path / "out")
        fields = data.item_fields.set_index(data.items)
        assert list(fields.loc["tea"]) == ["O'Neill's \"Tea\"", "", "Grocery, Tea", ""]
        assert list(fields.loc["jam"]) == ["", "Acme", "", ""]
        assert counts(tmp_path / "out")["items_without_metadata"] == 1  # rice

    def test_a_title_that_is_a_script_of_the_shop_is_none(self, tmp_path):
        script = "var aPageStart = (new Date()).getTime(); var ue_t0 = ue_t0;"
        write_amazon(tmp_path / "raw", titles={**TITLES, "tea": script})
        data = made(PrepareConfig("amazon2018", str(tmp_path / "raw"), FILES), tmp_path / "out")
        assert data.item_fields["title"][list(data.items).index("tea")] == ""

    def test_metadata_of_items_that_nobody_has_are_not_parsed(self, amazon, tmp_path):
        with open(tmp_path / "raw" / "meta_food.json", "a") as file:
            file.write("{'asin': 'other', broken\n")
        made(amazon, tmp_path / "out")  # else one bad line of four would stop it

    @pytest.mark.skipif("RECBOLE_EDT_DATA" not in os.environ, reason="RECBOLE_EDT_DATA names no folder of real data")
    def test_the_real_files_of_2018_have_the_known_figures(self, tmp_path):
        source = Path(os.environ["RECBOLE_EDT_DATA"]) / "raw-amazon2018"
        if not source.is_dir():
            pytest.skip("no raw-amazon2018 there")
        folder = tmp_path / "raw"
        folder.mkdir()
        records = {}
        for file in ("Gift_Cards_5.json.gz", "meta_Gift_Cards.json.gz"):
            shutil.copyfile(source / file, folder / file)
            with gzip.open(source / file) as content:
                records[file] = [json.loads(line) for line in content]
        reviews, products = records.values()
        # The sample has one category, so its last reviews, of items under other names, play the second.
        lines(folder / "second.json", [{**one, "asin": f"X{one['asin']}"} for one in reviews[2000:]])
        lines(folder / "meta_second.json", [{**one, "asin": f"X{one['asin']}"} for one in products])
        files = {
            "gifts": {"interactions": "Gift_Cards_5.json.gz", "items": "meta_Gift_Cards.json.gz"},
            "second": {"interactions": "second.json", "items": "meta_second.json"},
        }
        data = made(PrepareConfig("amazon2018", str(folder), files), tmp_path / "out")
        expected = {(one["reviewerID"], one["asin"]) for one in reviews}
        expected |= {(one["reviewerID"], f"X{one['asin']}") for one in reviews[2000:]}
        assert {(user, item) for user, item, _ in rows_of(data)} == expected
        assert len(data.user) == len(expected)  # a later review of the same item is dropped
        assert (data.item_domain == 0).sum() == len({one["asin"] for one in reviews}) == 148
        assert counts(tmp_path / "out")["items_without_title"] == 0
        assert dropped(tmp_path / "out").keys() <= {"duplicate", "repeated"}


def write_douban(folder):
    folder.mkdir()
    (folder / "moviereviews_cleaned.txt").write_text(
        '"user_id"\t"movie_id"\t"rating"\t"comment"\t"time"\t"labels"\t"useful_num"\n'
        '"1"\t"10"\t"5"\t"good, ""very"""\t"2014-05-12"\t"drama|1994"\t"3"\n'
        '"2"\t"11"\t"3"\t"-"\t"2014-05-13"\t" "\t"0"\n',
        encoding="utf-8",
    )
    (folder / "movies_cleaned.txt").write_text(
        '"movie_id"\t"name"\t"director"\t"summary"\t"tag"\t"UID"\n'
        '"1292052"\t"肖申克的救赎"\t"德拉邦特"\t"Hope."\t"犯罪"\t"10"\n',
        encoding="utf-8",
    )
    (folder / "bookreviews_cleaned.txt").write_text(
        '"user_id"\t"book_id"\t"rating"\t"labels"\t"comment"\t"useful_num"\t"time"\t"ID"\n'
        '"1"\t"7"\t"5"\t"novel"\t"-"\t"1"\t"2013-01-01"\t"1"\n'
        '"2"\t"7"\t"5"\t"novel"\t"-"\t"1"\t""\t"2"\n',
        encoding="utf-8",
    )


def test_douban_joins_movies_by_their_new_number_and_takes_no_words_of_reviewers(tmp_path):
    write_douban(tmp_path / "raw")
    files = {
        "movies": {"interactions": "moviereviews_cleaned.txt", "items": "movies_cleaned.txt"},
        "books": {"interactions": "bookreviews_cleaned.txt"},
    }
    data = made(PrepareConfig("douban", str(tmp_path / "raw"), files), tmp_path / "out")
    assert rows_of(data) == [("1", "7", 15706), ("1", "10", 16202), ("2", "11", 16203)]
    fields = data.item_fields.set_index(data.items)
    assert list(fields.loc["10"]) == ["肖申克的救赎", "德拉邦特", "犯罪", "Hope."]
    assert not fields.loc[["11", "7"]].any(axis=None)
    assert dropped(tmp_path / "out") == {"without_time": 1}


class TestTable:
    def write(self, folder, suffix="csv"):
        """The nine rows as purchases, a file per domain or both in one; and a table of all products."""
        folder.mkdir(exist_ok=True)
        tables = {"food": FOOD, "kitchen": KITCHEN, "all": FOOD + KITCHEN + [("ann", "car", 9)]}
        shop = {"tea": "food", "jam": "food", "rice": "food", "pan": "kitchen", "cup": "kitchen", "car": "cars"}
        for name, rows in tables.items():
            table = {
                "customer": [user for user, _, _ in rows],
                "sku": [item for _, item, _ in rows],
                "bought": [f"1970-01-{day + 1:02d}T00:00:00Z" for _, _, day in rows],
                "shop": [shop[item] for _, item, _ in rows],
            }
            self.save(folder / f"{name}.{suffix}", table)
        catalogue = {"code": list(shop), "name": [TITLES.get(item, item) for item in shop], "shop": list(shop.values())}
        self.save(folder / f"products.{suffix}", catalogue)

    def save(self, path, table):
        if path.suffix == ".parquet":
            pa = pytest.importorskip("pyarrow")
            import pyarrow.parquet as pq

            pq.write_table(pa.table(table), path)
            return
        separator = "\t" if path.suffix == ".tsv" else ","
        rows = [separator.join(table), *map(separator.join, zip(*table.values(), strict=True))]
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")

    COLUMNS = {"user_id": "customer", "item_id": "sku", "timestamp": "bought"}
    ITEMS = {"item_id": "code", "title": "name"}

    @pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
    def test_columns_are_named_by_the_mapping(self, tmp_path, suffix):
        self.write(tmp_path / "raw", suffix)
        files = {name: {"interactions": f"{name}.{suffix}"} for name in ("food", "kitchen")}
        config = PrepareConfig("table", str(tmp_path / "raw"), files, columns=self.COLUMNS)
        assert rows_of(made(config, tmp_path / "out")) == ALL_ROWS

    @pytest.mark.parametrize("where", ["columns", "item_columns"])
    def test_one_file_with_a_column_for_the_domain(self, tmp_path, where):
        self.write(tmp_path / "raw")
        both = {"interactions": "all.csv", "items": "products.csv"}
        config = PrepareConfig("table", str(tmp_path / "raw"), {"food": both, "kitchen": both})
        config = replace(config, columns=self.COLUMNS, item_columns=self.ITEMS)
        config = replace(config, **{where: {**getattr(config, where), "domain": "shop"}})
        data = made(config, tmp_path / "out")
        assert rows_of(data) == ALL_ROWS
        assert data.item_fields["title"][0] == "Green Tea"
        assert dropped(tmp_path / "out") == {"of_other_domains": 1}

    def test_one_file_of_purchases_and_a_file_of_products_for_each_domain(self, tmp_path):
        self.write(tmp_path / "raw")
        products = (tmp_path / "raw" / "products.csv").read_text().splitlines()
        files = {}
        for name in ("food", "kitchen"):
            own = [line for line in products[1:] if line.endswith(name)]
            (tmp_path / "raw" / f"{name}_products.csv").write_text("\n".join([products[0], *own]) + "\n")
            files[name] = {"interactions": "all.csv", "items": f"{name}_products.csv"}
        config = PrepareConfig("table", str(tmp_path / "raw"), files, self.COLUMNS, {**self.ITEMS, "domain": "shop"})
        assert rows_of(made(config, tmp_path / "out")) == ALL_ROWS
        assert dropped(tmp_path / "out") == {"of_other_domains": 1}  # the car
        config = replace(config, files={**files, "food": {**files["food"], "interactions": "food.csv"}})
        assert rows_of(made(config, tmp_path / "out")) == ALL_ROWS
        assert dropped(tmp_path / "out") == {"of_other_domains": 6}  # and five of food in the file of kitchen

    def test_own_names_and_seconds_need_no_mapping(self, tmp_path):
        (tmp_path / "a.csv").write_text("user_id,item_id,timestamp\nu,i,1.5\nu,j,3\n")
        (tmp_path / "b.csv").write_text("timestamp,user_id,item_id\n2,u,k\n")
        files = {"a": {"interactions": "a.csv"}, "b": {"interactions": "b.csv"}}
        data = made(PrepareConfig("table", str(tmp_path), files), tmp_path / "out")
        assert data.items[data.item].tolist() == ["i", "k", "j"]
        assert data.time.tolist() == [1.5, 2, 3]

    def test_texts_under_our_names_are_read_where_a_table_has_them(self, tmp_path):
        (tmp_path / "a.csv").write_text("user_id,item_id,timestamp\nu,i,1\n")
        (tmp_path / "b.csv").write_text("user_id,item_id,timestamp\nu,j,2\n")
        (tmp_path / "items.csv").write_text("brand,item_id,name\nAcme,i,Tea\n")
        files = {"a": {"interactions": "a.csv", "items": "items.csv"}, "b": {"interactions": "b.csv"}}
        config = PrepareConfig("table", str(tmp_path), files)
        assert made(config, tmp_path / "out").item_fields.iloc[0].to_dict() == {"title": "", "brand": "Acme"}
        named = replace(config, item_columns={"title": "name"})
        assert made(named, tmp_path / "out").item_fields.iloc[0].to_dict() == {"title": "Tea", "brand": "Acme"}
        with pytest.raises(DataError, match="items.csv: no column 'descr'"):
            made(replace(config, item_columns={"description": "descr"}), tmp_path / "out")
        with pytest.raises(DataError, match="items.csv: no column 'description'"):
            made(replace(config, item_columns={"title": "description"}), tmp_path / "out")

    @pytest.mark.parametrize("wrong", [{"title": "naem"}, {"item_id": "skuu"}])
    def test_a_mapping_that_names_what_no_line_of_json_has_is_refused(self, tmp_path, wrong):
        for item, day in (("i", 1), ("j", 2)):
            lines(tmp_path / f"{item}.jsonl", [{"user_id": "u", "item_id": item, "timestamp": day}])
        lines(tmp_path / "items.jsonl", [{"sku": "z"}, {"sku": "i", "name": "Tea"}])
        files = {"a": {"interactions": "i.jsonl", "items": "items.jsonl"}, "b": {"interactions": "j.jsonl"}}
        config = PrepareConfig("table", str(tmp_path), files, item_columns={"item_id": "sku", "title": "name"})
        assert made(config, tmp_path / "out").item_fields["title"].tolist() == ["Tea", ""]
        with pytest.raises(DataError, match=f"items.jsonl: no line has '{[*wrong.values()][0]}'; correct prepare"):
            made(replace(config, item_columns={**config.item_columns, **wrong}), tmp_path / "out")

    @pytest.mark.parametrize("item", ["café", "O'N", 'a"b', "a\\b", "A1 ", "\u00a0A1", "12"])
    def test_texts_are_found_whatever_the_id_of_the_item_looks_like_in_json(self, tmp_path, item):
        records = [{"related": [{"item_id": "other"}], "item_id": item, "title": "Tea"}, {"item_id": "x", "title": "X"}]
        lines(tmp_path / "items.jsonl", records)
        lines(tmp_path / "a.jsonl", [{"user_id": "u", "item_id": item, "timestamp": 1}])
        lines(tmp_path / "b.jsonl", [{"user_id": "u", "item_id": "j", "timestamp": 2}])
        files = {"a": {"interactions": "a.jsonl", "items": "items.jsonl"}, "b": {"interactions": "b.jsonl"}}
        data = made(PrepareConfig("table", str(tmp_path), files), tmp_path / "out")
        assert data.items[0] == item.strip() and data.item_fields["title"].tolist() == ["Tea", ""]

    def test_milliseconds_taken_for_seconds_are_noticed(self, tmp_path):
        (tmp_path / "a.csv").write_text("user_id,item_id,timestamp\nu,i,1588687728923\n")
        (tmp_path / "b.csv").write_text("user_id,item_id,timestamp\nu,j,1588687728924\n")
        config = PrepareConfig("table", str(tmp_path), {"a": {"interactions": "a.csv"}, "b": {"interactions": "b.csv"}})
        told = r"a.csv: 1 of .*line 2: too far from 1970 for a time in s; is prepare.time_unit right\?: '1588687728923'"
        with pytest.raises(DataError, match=told):
            made(config, tmp_path / "out")
        assert made(replace(config, time_unit="ms"), tmp_path / "out").time[0] == 1588687728.923
        (tmp_path / "a.csv").write_text(f"user_id,item_id,timestamp\nu,i,{-(2**63)}\n")  # what NaT is as a number
        with pytest.raises(DataError, match="no interaction of a is left of 2 lines .dropped: without time 1"):
            made(replace(config, time_unit="ms"), tmp_path / "out")

    def test_a_time_too_far_from_1970_is_an_unusable_line(self, tmp_path):
        write_amazon(tmp_path / "raw", kitchen=[*KITCHEN, ("bob", "pan", 10**8), ("bob", "cup", -(10**9))])
        config = PrepareConfig("amazon2018", str(tmp_path / "raw"), FILES)
        told = r"kitchen.json: 2 of the 6 lines read .*line 5: too far from 1970 for a time in s: 8640000000000; is it"
        with pytest.raises(DataError, match=told):
            made(config, tmp_path / "out")
        assert rows_of(made(replace(config, max_bad_share=0.5), tmp_path / "out")) == ALL_ROWS
        assert dropped(tmp_path / "out") == {"unusable": 2}

    def test_one_file_may_have_purchases_and_products(self, tmp_path):
        rows = ["user_id,item_id,timestamp,title,shop", "u,i,1,Tea,food", ",i,2,Tea,food", "u,k,3,Pan,kitchen"]
        (tmp_path / "all.csv").write_text("\n".join(rows))
        both = {"interactions": "all.csv", "items": "all.csv"}
        config = PrepareConfig("table", str(tmp_path), {"food": both, "kitchen": both}, max_bad_share=0.5)
        data = made(replace(config, columns={"domain": "shop"}), tmp_path / "out")
        assert data.item_fields["title"].tolist() == ["Tea", "Pan"]
        told = "1 unusable (first: all.csv, line 3: no user_id: ('', 'i', '2', 'food'))"
        assert losses(tmp_path / "out").endswith(told)

    def test_one_file_for_each_domain_may_have_purchases_and_products(self, tmp_path):
        (tmp_path / "food.csv").write_text("user_id,item_id,timestamp,title\nu,i,1,Tea\n")
        (tmp_path / "kitchen.csv").write_text("user_id,item_id,timestamp,title\nu,k,2,Pan\n")
        files = {name: {"interactions": f"{name}.csv", "items": f"{name}.csv"} for name in ("food", "kitchen")}
        config = PrepareConfig("table", str(tmp_path), files)
        assert made(config, tmp_path / "out").item_fields["title"].tolist() == ["Tea", "Pan"]
        # The title of a review is the reviewer's, not the item's.
        assert "named twice" in replace(config, source="amazon2023").faults()[0]

    def test_rows_of_an_item_listed_under_both_domains_are_read_once(self, tmp_path):
        self.write(tmp_path / "raw")
        with open(tmp_path / "raw" / "products.csv", "a") as file:
            file.write("tea,Green Tea,kitchen\n")
        both = {"interactions": "all.csv", "items": "products.csv"}
        config = PrepareConfig("table", str(tmp_path / "raw"), {"food": both, "kitchen": both})
        config = replace(config, columns=self.COLUMNS, item_columns={**self.ITEMS, "domain": "shop"})
        assert rows_of(made(config, tmp_path / "out")) == ALL_ROWS
        assert dropped(tmp_path / "out") == {"of_other_domains": 1}
        found = counts(tmp_path / "out")
        assert (found["rows_read"], found["items_in_both"]) == (10, 1)

    def test_a_mapping_that_names_a_missing_column_is_refused(self, tmp_path):
        self.write(tmp_path / "raw")
        files = {name: {"interactions": f"{name}.csv"} for name in ("food", "kitchen")}
        config = PrepareConfig("table", str(tmp_path / "raw"), files, columns={**self.COLUMNS, "user_id": "client"})
        with pytest.raises(
            DataError, match=r"food.csv: no column 'client' .found: 'customer', 'sku', 'bought', 'shop'"
        ):
            made(config, tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestRules:
    def test_a_users_earliest_interaction_with_an_item_stays(self, tmp_path):
        write_amazon(tmp_path / "raw", food=[("ann", "tea", 4), *FOOD, FOOD[0], ("ann", "tea", 2)])
        config = PrepareConfig("amazon2018", str(tmp_path / "raw"), FILES)
        assert rows_of(made(config, tmp_path / "out")) == ALL_ROWS
        assert dropped(tmp_path / "out") == {"duplicate": 1, "repeated": 2}
        data = made(replace(config, repeats="all"), tmp_path / "out")
        assert [day for user, item, day in rows_of(data) if (user, item) == ("ann", "tea")] == [1, 2, 4]
        assert dropped(tmp_path / "out") == {"duplicate": 1}

    def test_an_item_of_both_categories_belongs_to_the_first(self, tmp_path):
        write_amazon(tmp_path / "raw", kitchen=[*KITCHEN, ("bob", "tea", 2), ("cat", "tea", 8)])
        data = made(PrepareConfig("amazon2018", str(tmp_path / "raw"), FILES), tmp_path / "out")
        assert sorted(rows_of(data)) == sorted([*ALL_ROWS, ("cat", "tea", 8)])
        assert data.item_domain[list(data.items).index("tea")] == 0
        assert counts(tmp_path / "out")["items_in_both"] == 1
        assert dropped(tmp_path / "out") == {"duplicate": 1}

    def test_rare_items_and_parts_of_users_go_until_none_is_left(self, amazon, tmp_path):
        # rice, once, goes; then bob has one food, tea; then tea has one buyer; then ann has one food; and so on.
        with pytest.raises(DataError, match=r"no interaction of food and kitchen is left of 9 lines .*too rare 9"):
            made(replace(amazon, k_core=2), tmp_path / "out")
        data = made(replace(amazon, min_history=3), tmp_path / "out")
        assert set(data.users) == {"ann", "bob"}
        assert dropped(tmp_path / "out") == {"too_rare": 2}

    def test_many_rows_come_out_as_few_do(self, tmp_path, monkeypatch):
        """The coarse filter before the exact one changes neither rows nor domains, only where a drop is counted."""
        rng = np.random.default_rng(1)
        users, items, days = rng.zipf(1.5, 3000) % 500, rng.integers(0, 60, 3000), rng.integers(0, 50, 3000)
        rows = [(f"u{user}", f"i{item}", int(day)) for user, item, day in zip(users, items, days, strict=True)]
        kitchen = [(user, item if item < "i2" else f"k{item}", day) for user, item, day in rows[1500:]]
        write_amazon(tmp_path / "raw", food=rows[:1500], kitchen=kitchen)
        files = {name: {"interactions": of["interactions"]} for name, of in FILES.items()}
        config = PrepareConfig("amazon2018", str(tmp_path / "raw"), files, k_core=3, min_history=4)
        few = made(config, tmp_path / "few")
        monkeypatch.setattr(raw_rows, "IN_MEMORY_ROWS", 10)
        many = made(config, tmp_path / "many")
        assert 0 < len(few.user) < 3000 and sorted(rows_of(many)) == sorted(rows_of(few))
        domains = [dict(zip(data.items, data.item_domain, strict=True)) for data in (few, many)]
        assert domains[0] == domains[1]
        assert sum(counts(tmp_path / "many")["dropped"].values()) == 3000 - len(few.user)

    def test_dates_are_days_of_which_the_last_does_not_count(self, amazon, tmp_path):
        data = made(replace(amazon, after="1970-01-03", before="1970-01-08"), tmp_path / "out")
        assert [row for row in ALL_ROWS if 2 <= row[2] < 7] == rows_of(data)
        assert dropped(tmp_path / "out") == {"outside_dates": 4}

    def test_users_are_drawn_by_the_seed_whatever_the_order_of_the_files(self, amazon, tmp_path):
        drawn = [set(made(replace(amazon, sample_users=2, seed=seed), tmp_path / "o").users) for seed in range(6)]
        assert all(len(users) == 2 for users in drawn) and len(set(map(frozenset, drawn))) > 1
        assert dropped(tmp_path / "o")["not_sampled"] > 0
        write_amazon(tmp_path / "raw", food=FOOD[::-1], kitchen=KITCHEN[::-1])
        again = [set(made(replace(amazon, sample_users=2, seed=seed), tmp_path / "o").users) for seed in range(6)]
        assert again == drawn

    def test_reviews_without_time_are_dropped_and_counted(self, amazon, tmp_path):
        with open(tmp_path / "raw" / "kitchen.json", "a") as file:
            file.write(
                '{"reviewerID": "ann", "asin": "cup"}\n{"reviewerID": "ann", "asin": "pot", "unixReviewTime": " "}\n'
            )
        assert rows_of(made(amazon, tmp_path / "out")) == ALL_ROWS
        assert dropped(tmp_path / "out") == {"without_time": 2}

    def test_times_that_are_none_are_unusable_lines(self, tmp_path):
        food = ["user_id,item_id,timestamp", "u,i,2024-01-01", "u,j,03/04/2024", "u,k,", "u,l,NaN", "u,m,inf"]
        (tmp_path / "food.csv").write_text("\n".join(food))
        (tmp_path / "kitchen.csv").write_text("user_id,item_id,timestamp\nu,o,2024-01-02\n")
        files = {name: {"interactions": f"{name}.csv"} for name in ("food", "kitchen")}
        config = PrepareConfig("table", str(tmp_path), files)
        with pytest.raises(DataError, match=r"food.csv: 2 of .*line 3: neither a number nor an ISO .*: '03/04/2024'"):
            made(config, tmp_path / "out")
        made(replace(config, max_bad_share=0.5), tmp_path / "out")
        assert dropped(tmp_path / "out") == {"unusable": 2, "without_time": 2}
        told = losses(tmp_path / "out")
        assert "dropped of 6 interactions read: 2 without a time, 2 unusable (first: food.csv, line 3: " in told

    def test_times_that_are_none_count_once_in_a_file_of_both_domains(self, tmp_path):
        rows = ["user_id,item_id,timestamp,shop", "u,i,1,food", "u,j,soon,kitchen", "u,k,never,cars", "u,l,2,kitchen"]
        (tmp_path / "all.csv").write_text("\n".join(rows))
        files = {name: {"interactions": "all.csv"} for name in ("food", "kitchen")}
        config = PrepareConfig("table", str(tmp_path), files, columns={"domain": "shop"}, max_bad_share=0.5)
        assert len(made(config, tmp_path / "out").user) == 2
        assert dropped(tmp_path / "out") == {"unusable": 2}

    def test_items_without_metadata_or_files_of_them_have_no_text(self, amazon, tmp_path):
        files = {name: {"interactions": of["interactions"]} for name, of in FILES.items()}
        data = made(replace(amazon, files=files), tmp_path / "out")
        assert list(data.item_fields) == ["title"] and not data.item_fields["title"].any()
        assert counts(tmp_path / "out")["items_without_metadata"] == 5

    @settings(max_examples=25)
    @given(
        st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("uvwxyz"), st.integers(0, 4)), min_size=1),
        st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("UVWz"), st.integers(0, 4)), min_size=1),
        st.integers(0, 3),
        st.sampled_from(["first", "all"]),
    )
    def test_whatever_the_rows_every_line_is_kept_or_accounted_for(self, tmp_path_factory, food, kitchen, k, repeats):
        folder = tmp_path_factory.mktemp("any")
        lines(folder / "food.json", [review2018(*row) for row in food])
        lines(folder / "kitchen.json", [review2018(*row) for row in kitchen] + [{}])
        files = {"a": {"interactions": "food.json"}, "b": {"interactions": "kitchen.json"}}
        config = PrepareConfig("amazon2018", str(folder), files, k_core=k, repeats=repeats, max_bad_share=1)
        try:
            data = made(config, folder / "out")
        except DataError as error:
            assert "is left of" in str(error) or "same content" in str(error)
            assert not list(folder.glob("out/*"))
            return
        told = counts(folder / "out")
        assert told["rows_read"] == len(food) + len(kitchen) + 1
        assert told["rows_read"] - sum(told["dropped"].values()) == told["rows_kept"] == len(data.user)
        part = 2 * data.user + data.item_domain[data.item]
        assert min(np.bincount(data.item)) >= max(k, 1) and min(n for n in np.bincount(part) if n) >= k
        once = repeats == "all" or len(set(zip(data.user, data.item, strict=True))) == len(data.user)
        assert once and set(rows_of(data)) <= set(food) | set(kitchen)


class TestBlocksWithoutRows:
    """Blocks of which nothing is kept, in all the ways in which that happens; a block has two rows here."""

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch):
        monkeypatch.setattr("recbole_edt.data.raw_files.BLOCK_ROWS", 2)

    def config(self, folder, rows, shared=True, **keys):
        """Settings for rows of (user, item, time, shop), in one file for both shops or a file for each."""
        files = {name: {"interactions": "all.csv" if shared else f"{name}.csv"} for name in ("food", "kitchen")}
        for file in {of["interactions"] for of in files.values()}:
            of = [row for row in rows if shared or file == f"{row[3]}.csv"]
            (folder / file).write_text("\n".join(["user_id,item_id,timestamp,shop", *map(",".join, of)]) + "\n")
        return PrepareConfig("table", str(folder), files, columns={"domain": "shop"} if shared else {}, **keys)

    ROWS = [
        (f"u{n % 2}", f"{shop[0]}{n}", f"2024-01-{n + 1:02d}", shop) for shop in ("food", "kitchen") for n in range(9)
    ]

    @pytest.mark.parametrize("coarse", [False, True])
    def test_one_file_may_be_sorted_by_shop(self, tmp_path, monkeypatch, coarse):
        keys = {"k_core": 1, "min_history": 2} if coarse else {}
        if coarse:
            monkeypatch.setattr(raw_rows, "IN_MEMORY_ROWS", 1)
        data = made(self.config(tmp_path, self.ROWS, **keys), tmp_path / "out")
        assert len(data.user) == 18 and sorted(data.users) == ["u0", "u1"]
        assert sorted(data.items) == sorted(item for _, item, _, _ in self.ROWS)

    def test_files_may_be_sorted_by_date_and_begin_before_the_first_day(self, tmp_path):
        data = made(self.config(tmp_path, self.ROWS, shared=False, after="2024-01-06"), tmp_path / "out")
        assert len(data.user) == 8 and dropped(tmp_path / "out") == {"outside_dates": 10}

    @pytest.mark.parametrize("where", ["columns", "item_columns"])
    def test_names_of_domains_that_the_column_has_not_are_told(self, tmp_path, where):
        rows = [(*row[:3], row[3].upper()) for row in self.ROWS]
        config = self.config(tmp_path, rows)
        lines = ["item_id,shop", *(f"{item},{shop}" for _, item, _, shop in rows)]
        (tmp_path / "items.csv").write_text("\n".join(lines))
        files = {name: {**of, "items": "items.csv"} for name, of in config.files.items()}
        config = replace(config, files=files, columns={})
        config = replace(config, **{where: {"domain": "shop"}})
        told = r"no interaction of food and kitchen is left of 18 lines .*other domains 18.*domains also has 'FOOD'"
        with pytest.raises(DataError, match=told):
            made(config, tmp_path / "out")

    def test_rows_of_one_shop_only_are_told(self, tmp_path):
        with pytest.raises(DataError, match=r"no interaction of kitchen is left of 9 lines"):
            made(self.config(tmp_path, self.ROWS[:9]), tmp_path / "out")


class TestBadInput:
    def refused(self, config, folder, match):
        """A data set is not made, and nothing of it stays behind: no file, and no folder that was not there before."""
        was_there = folder.exists()
        with pytest.raises(DataError, match=match):
            made(config, folder)
        assert folder.exists() == was_there and not list(folder.glob("*"))

    def test_missing_files_are_named_all_at_once(self, amazon, tmp_path):
        (tmp_path / "raw" / "kitchen.json").unlink()
        (tmp_path / "raw" / "meta_food.json").unlink()
        self.refused(
            amazon, tmp_path / "out", r"no such file: .*meta_food.json, .*kitchen.json; fetch .*prepare.folder="
        )

    @pytest.mark.parametrize("source", ["amazon2018", "ml-100k"])
    @pytest.mark.parametrize("ending", ["inter", "item"])
    def test_files_that_prepare_did_not_make_are_never_overwritten(self, amazon, tmp_path, source, ending):
        own = tmp_path / "out" / f"mine.{ending}"
        own.parent.mkdir()
        own.write_text("the work of years")
        config = amazon if source == "amazon2018" else PrepareConfig(source)
        with pytest.raises(DataError, match=rf"mine.{ending}: .*not made by prepare.*remove `prepare:` .*mine.yaml"):
            prepare(config, own.parent, "mine")
        assert own.read_text() == "the work of years" and list(own.parent.iterdir()) == [own]

    @pytest.mark.parametrize(("name", "content"), [("k.csv", "user_id,item_id,timestamp\n"), ("k.json", "\n\n")])
    def test_a_file_without_rows_is_named(self, tmp_path, name, content):
        (tmp_path / "food.csv").write_text("user_id,item_id,timestamp\nu,i,1\n")
        (tmp_path / name).write_text(content)
        files = {"food": {"interactions": "food.csv"}, "kitchen": {"interactions": name}}
        self.refused(PrepareConfig("table", str(tmp_path), files), tmp_path / "out", f"{name} has no rows")

    @pytest.mark.parametrize("was_there", [False, True])
    def test_an_interrupt_leaves_a_folder_only_where_there_was_one(self, amazon, tmp_path, monkeypatch, was_there):
        def interrupted(*_):
            raise KeyboardInterrupt

        if was_there:
            (tmp_path / "out").mkdir()
        monkeypatch.setattr(raw_rows.Spill, "append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(amazon, tmp_path / "out", "mine")
        assert (tmp_path / "out").exists() == was_there

    def test_a_file_may_be_there_unzipped(self, amazon, tmp_path):
        path = tmp_path / "raw" / "food.json.gz"
        (tmp_path / "raw" / "food.json").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
        assert rows_of(made(amazon, tmp_path / "out")) == ALL_ROWS

    def test_a_truncated_gzip_leaves_no_data_set(self, amazon, tmp_path):
        path = tmp_path / "raw" / "food.json.gz"
        path.write_bytes(path.read_bytes()[:-9])
        self.refused(amazon, tmp_path / "out", "food.json.gz: the gzip file is cut off or damaged")

    def test_lines_that_are_no_json_stop_above_the_threshold(self, amazon, tmp_path):
        with open(tmp_path / "raw" / "kitchen.json", "a") as file:
            file.write("<html>too many requests</html>\n")
        self.refused(
            amazon, tmp_path / "out", r"1 of the 5 lines read are unusable.*0.01.*line 5: neither JSON.*<html>"
        )
        made(replace(amazon, max_bad_share=0.2), tmp_path / "out")
        assert dropped(tmp_path / "out") == {"unusable": 1}
        recorded = json.loads((tmp_path / "out" / "prepare.json").read_text())["config"]["inputs"]
        assert "line 5" in next(one for one in recorded if one["file"] == "kitchen.json")["first_unusable"]

    def test_metadata_in_the_place_of_reviews_is_refused(self, amazon, tmp_path):
        files = {**FILES, "food": {"interactions": "meta_food.json", "items": "food.json.gz"}}
        self.refused(replace(amazon, files=files), tmp_path / "out", "meta_food.json: 3 of the 3 .*no reviewerID")

    def test_the_first_unusable_line_is_shown_whatever_is_wrong_with_later_ones(self, amazon, tmp_path):
        with open(tmp_path / "raw" / "kitchen.json", "a") as file:
            file.write("<html>too many requests</html>\n")
        swapped = {name: FILES[name] for name in ("kitchen", "food")}
        config = replace(amazon, source="amazon2023", files=swapped)
        self.refused(config, tmp_path / "out", "5 of the 5 lines read are unusable.*; line 1: no user_id: ")

    def test_of_a_time_an_id_and_a_short_line_the_first_is_shown(self, tmp_path):
        (tmp_path / "food.csv").write_text("user_id,item_id,timestamp\nu,i,soon\n,j,1\nshort\n")
        (tmp_path / "kitchen.csv").write_text("user_id,item_id,timestamp\nu,o,1\n")
        files = {name: {"interactions": f"{name}.csv"} for name in ("food", "kitchen")}
        config = PrepareConfig("table", str(tmp_path), files)
        self.refused(config, tmp_path / "out", "3 of the 3 lines read are unusable.*; line 2: neither a number")

    def test_swapped_categories_are_noticed(self, amazon, tmp_path):
        swapped = {
            "food": {"interactions": "food.json.gz", "items": "meta_kitchen.json.gz"},
            "kitchen": {"interactions": "kitchen.json", "items": "meta_food.json"},
        }
        match = r"3 items of food are described in the items file of kitchen, and 0 in its own: .*swapped\?"
        self.refused(replace(amazon, files=swapped), tmp_path / "out", match)

    def test_a_copy_under_another_name_is_noticed(self, amazon, tmp_path):
        shutil.copyfile(tmp_path / "raw" / "food.json.gz", tmp_path / "raw" / "kitchen.json")
        self.refused(amazon, tmp_path / "out", "food.json.gz and kitchen.json have the same content")

    def test_ids_that_could_not_be_written_are_unusable(self, amazon, tmp_path):
        odd = [{"reviewerID": user, "asin": "tea", "unixReviewTime": 1} for user in ("a\tb", "", None, True, 1.5, [1])]
        path = tmp_path / "raw" / "food.json.gz"
        lines(path, [review2018(*row) for row in FOOD] + odd + [review2018(" ann ", "tea", 1), review2018(7, "tea", 1)])
        data = made(replace(amazon, max_bad_share=0.5), tmp_path / "out")
        assert set(data.users) == {"ann", "bob", "cat", "7"}
        assert dropped(tmp_path / "out") == {"unusable": 6, "duplicate": 1}

    def test_domains_of_other_names_are_refused_before_any_work(self, amazon, tmp_path):
        with pytest.raises(ConfigError, match=r"domains: food, pans, but prepare.files has food, kitchen"):
            prepare(amazon, tmp_path / "out", "mine", ("food", "pans"))

    def test_an_interruption_leaves_no_data_set_and_no_open_file(self, amazon, tmp_path, monkeypatch):
        def stop(*_):
            raise KeyboardInterrupt

        for module, step in ((raw_rows, "frequent"), (raw_data, "_write_items"), (raw_rows, "_numbered")):
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(module, step, stop)
                prepare(amazon, tmp_path / "out", "mine")
            assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("source", ["amazon2018", "ml-100k"])
    @pytest.mark.parametrize("step", ["write_manifest", "_claim"])
    def test_an_interrupt_at_the_last_step_does_not_stop_the_same_command(
        self, amazon, tmp_path, monkeypatch, source, step
    ):
        def stop(*_):
            raise KeyboardInterrupt

        config, out = amazon if source == "amazon2018" else PrepareConfig(source), tmp_path / "out"
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(raw_data, step, stop)
            prepare(config, out, "mine")
        assert out.exists() == (step == "write_manifest") and not is_made(config, out, "mine")
        prepare(config, out, "mine")
        assert is_made(config, out, "mine")

    def test_a_name_that_cannot_be_written_leaves_no_manifest_alone(self, amazon, tmp_path, monkeypatch):
        rename = os.replace

        def full(source, target):
            if Path(target).name.startswith("mine."):
                raise OSError(28, "No space left on device")
            rename(source, target)

        monkeypatch.setattr(os, "replace", full)
        self.refused(amazon, tmp_path / "out", "mine.item: cannot be written")

    def test_a_disk_that_fills_up_leaves_no_data_set(self, tmp_path):
        """With a limit on the size of files the system refuses to write more, as it does when the disk is full."""
        rows = [(f"user{n}", f"item{n % 7}", n) for n in range(5000)]
        lines_of = {"food.json": rows, "kitchen.json": [(user, f"K{item}", time) for user, item, time in rows]}
        for name, of in lines_of.items():
            lines(tmp_path / name, [review2018(*row) for row in of])
        files = {"a": {"interactions": "food.json"}, "b": {"interactions": "kitchen.json"}}
        code = (
            "import resource, sys; from pathlib import Path\n"
            "from recbole_edt.data.prepare import PrepareConfig, prepare\n"
            f"config = PrepareConfig('amazon2018', {str(tmp_path)!r}, {files!r})\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))\n"
            f"prepare(config, Path({str(tmp_path / 'out')!r}), 'mine')"
        )
        for limit in (50_000, 250_000):  # while rows are read, and while the files are written
            done = subprocess.run([sys.executable, "-c", code, str(limit)], capture_output=True, text=True)
            assert "DataError" in done.stderr and "free space" in done.stderr, done.stderr
            assert not (tmp_path / "out").exists()


class TestIsMade:
    def test_until_settings_files_or_outputs_change(self, amazon, tmp_path, monkeypatch):
        out = tmp_path / "out"
        assert not is_made(amazon, out, "mine")
        prepare(amazon, out, "mine")
        assert is_made(amazon, out, "mine")
        assert not is_made(replace(amazon, seed=1), out, "mine")
        swapped = dict(reversed(list(FILES.items())))
        assert not is_made(replace(amazon, files=swapped), out, "mine")
        os.utime(tmp_path / "raw" / "kitchen.json", ns=(1, 1))
        assert is_made(amazon, out, "mine")  # the checksum is as it was
        with monkeypatch.context() as patch:
            patch.delattr(raw_data, "_checksum")  # and is not asked for again
            assert is_made(amazon, out, "mine")
        (out / "mine.inter").write_text("user_id:token\n")
        assert not is_made(amazon, out, "mine")

    def test_other_content_counts_and_files_that_are_gone_do_not(self, amazon, tmp_path):
        prepare(amazon, tmp_path / "out", "mine")
        with open(tmp_path / "raw" / "kitchen.json", "a") as file:
            file.write("\n")
        assert not is_made(amazon, tmp_path / "out", "mine")
        prepare(amazon, tmp_path / "out", "mine")
        shutil.move(tmp_path / "raw", tmp_path / "elsewhere")
        assert is_made(amazon, tmp_path / "out", "mine")
        assert is_made(replace(amazon, folder=str(tmp_path / "elsewhere")), tmp_path / "out", "mine")


class TestConfig:
    @pytest.mark.parametrize(
        ("keys", "fault"),
        [
            ({"source": "netflix"}, "source: 'netflix' is not one of ml-100k, amazon2014"),
            ({"files": None}, "files: expected two domains as {food: {interactions: FILE"),
            ({"files": {"food": {"interactions": "a"}}}, "files: expected two domains"),
            ({"files": {"a": {"items": "a"}, "b": {"interactions": "b"}}}, "files.a: expected {interactions"),
            ({"files": {"a": {"interactions": "x"}, "b": {"interactions": "x"}}}, "files: x is named twice"),
            (
                {"files": {"a": {"interactions": 3}, "b": {"interactions": "x"}}},
                "files.a.interactions: 3 is not a file",
            ),
            (
                {"files": {"a": {"interactions": "."}, "b": {"interactions": "x"}}},
                "files.a.interactions: '.' is not a file",
            ),
            (
                {"files": {"a": {"interactions": "x"}, "overall": {"interactions": "y"}}},
                "files: a domain is called 'overall', the name for all users in every table",
            ),
            ({"folder": "~no such user/raw"}, "folder: '~no such user/raw' is not a folder"),
            ({"columns": {"user_id": "u"}}, "columns: the source amazon2018 has columns of its own"),
            ({"source": "table", "columns": {"user": "u"}}, "columns: 'user' is not one of user_id, item_id"),
            ({"source": "table", "item_columns": {"title": 1}}, "item_columns.title: 1 is not the name of a column"),
            ({"source": "table", "columns": {"domain": "d"}, "item_columns": {"domain": "d"}}, "columns.domain: the"),
            ({"source": "table", "columns": {"domain": "d"}}, "columns.domain: needs the same file of interactions"),
            ({"source": "table", "item_columns": None}, "item_columns: expected {our name: the file's}, found None"),
            ({"time_unit": "h"}, "time_unit: 'h' is not one of s, ms, us, ns"),
            ({"time_unit": "ms"}, "time_unit: the source amazon2018 has a unit of its own"),
            ({"repeats": "no"}, "repeats: 'no' is not one of first, all"),
            ({"after": "2014"}, "after: '2014' is not a day such as 2014-01-31"),
            ({"after": "2014-02-30"}, "after: '2014-02-30' is not a day"),
            ({"after": "2014-01-02", "before": "2014-01-02"}, "before: 2014-01-02 is not later than after"),
            ({"k_core": -1}, "k_core: -1 is not a whole number of at least 0"),
            ({"sample_users": 0}, "sample_users: 0 is not a whole number of at least 1"),
            ({"max_bad_share": 2}, "max_bad_share: 2 is not a number from 0 to 1"),
            ({"folder": ""}, "folder: '' is not a folder"),
            ({"source": "ml-100k"}, "files: has no meaning with the source ml-100k; it is for raw files"),
            ({"source": None, "files": None, "k_core": 5}, "k_core: has no meaning without prepare.source"),
        ],
    )
    def test_faults_say_what_is_wrong(self, keys, fault):
        found = replace(PrepareConfig("amazon2018", files=FILES), **keys).faults()
        assert any(one.startswith(fault) for one in found), found

    def test_a_day_may_be_the_date_that_yaml_makes_of_it(self):
        from recbole_edt.files import read_yaml

        config = PrepareConfig("amazon2018", files=FILES, **read_yaml("{after: 2014-01-31, before: '2015-01-31'}"))
        assert config.faults() == []
        assert source_hash(config) == source_hash(replace(config, after="2014-01-31"))


def test_rows_take_no_place_once_the_data_set_is_made(amazon, tmp_path):
    made(amazon, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["mine.inter", "mine.item", "prepare.json"]


class TestCommand:
    """The stage, with the configuration that docs/data.md shows."""

    @pytest.fixture
    def shops(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
        (tmp_path / "dataset_configs").mkdir()
        (tmp_path / "dataset_configs" / "shops.yaml").write_text(page.partition("```yaml\n")[2].partition("```")[0])
        (tmp_path / "raw").mkdir()
        for name, first in (("food", "F"), ("kitchen", "K")):
            rows = ["customer,sku,bought_at"]
            rows += [
                f"u{user},{first}{(user + n) % 12},2024-03-{n + 1:02d}T{user:02d}:00:00Z"
                for user in range(20)
                for n in range(6)
            ]
            (tmp_path / "raw" / f"{name}.csv").write_text("\n".join([*rows, rows[1]]) + "\n")
            products = ["sku,name,brand", *(f"{first}{n},{name} thing {n},Acme" for n in range(12))]
            (tmp_path / "raw" / f"{name}_products.csv").write_text("\n".join(products) + "\n")
        return tmp_path

    def test_makes_data_and_card_and_does_nothing_the_second_time(self, shops, capsys):
        from recbole_edt.cli import run

        assert run(["prepare", "--dataset=shops"]) == 0
        assert "shops: users 20, items food 12, items kitchen 12, interactions 240" in capsys.readouterr().out
        folder = shops / "atomic_files" / "shops"
        page = (folder / "card.md").read_text()
        assert "| the same user, item and time again | 2 |" in page
        assert "2024-03-01 to 2024-03-06" in page
        before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
        assert run(["prepare", "--dataset=shops"]) == 0
        assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before

    def test_the_lines_of_the_files_on_the_card_are_the_lines_read(self, shops):
        from recbole_edt.cli import run

        with open(shops / "raw" / "food.csv", "a") as file:
            file.write('\n"u1\n",F1,2024-03-02\n')  # an empty line is none, and one of two lines is one
        assert run(["prepare", "--dataset=shops", "--prepare.max_bad_share=0.1"]) == 0
        page = (shops / "atomic_files" / "shops" / "card.md").read_text()
        assert "| lines read | 243 |" in page
        recorded = json.loads((shops / "atomic_files" / "shops" / "prepare.json").read_text())["config"]["inputs"]
        n_lines = {one["file"]: one["lines"] for one in recorded}
        assert n_lines == {"food.csv": 122, "food_products.csv": 12, "kitchen.csv": 121, "kitchen_products.csv": 12}

    def test_says_when_rows_have_no_time(self, shops, capsys):
        from recbole_edt.cli import run

        with open(shops / "raw" / "food.csv", "a") as file:
            file.write("u1,F1,\n")
        assert run(["prepare", "--dataset=shops"]) == 0
        assert "shops: dropped of 243 interactions read: 1 without a time" in capsys.readouterr().out

    def test_says_how_many_items_have_no_title(self, shops, capsys):
        from recbole_edt.cli import run

        path = shops / "raw" / "food_products.csv"
        path.write_text(path.read_text().replace("F3,food thing 3", "F3,").replace("F5,food thing 5,Acme\n", ""))
        for _ in range(2):  # also where nothing is to be made
            assert run(["prepare", "--dataset=shops"]) == 0
            assert "shops: 2 of 24 items without a title\n" in capsys.readouterr().out
        data = read(shops / "atomic_files" / "shops", "shops")
        assert statistics.untitled(replace(data, item_fields=data.item_fields.drop(columns="title"))) == ""

    def test_says_nothing_of_titles_where_no_item_lacks_one(self, shops, capsys):
        from recbole_edt.cli import run

        assert run(["prepare", "--dataset=shops"]) == 0
        assert "without a title" not in capsys.readouterr().out

    def test_the_card_shows_the_augmented_data_once_there_are_any(self, shops):
        from recbole_edt.cli import run

        with open(shops / "raw" / "food.csv", "a") as file:
            file.write("new,F1,2024-03-07\n")  # the only one of this user: not with k_core=2
        options = ["--dataset=shops", "--prepare.k_core=0", "--augment.n_clusters=3", "--profile.n_clusters=3"]
        path = shops / "atomic_files" / "shops" / "card.json"
        stages = [["prepare"], ["embed"], ["augment"], ["prepare", "--k_core=2"], ["prepare"], ["augment"]]
        found = {}
        for number, stage in enumerate(stages):
            assert run([*stage, *options]) == 0
            found[number] = json.loads(path.read_text())["statistics"]
        assert [one["before"]["interactions"] for one in found.values()] == [241, 241, 241, 240, 241, 241]
        assert found[2]["after"]["interactions"] > 241 and found[5] == found[2]
        assert "after" not in found[3] and "after" not in found[4]

    def test_a_stage_that_ended_in_an_error_leaves_the_card_and_its_line_to_the_next(self, shops, capsys):
        from recbole_edt.cli import run

        with open(shops / "raw" / "food.csv", "a") as file:
            file.write("u1,F1,\n")
        assert run(["prepare", "--dataset=shops", "--k_core=500"]) == 1
        folder = shops / "atomic_files" / "shops"
        assert (folder / "shops.inter").exists() and not (folder / "card.md").exists()
        assert run(["prepare", "--dataset=shops"]) == 0
        assert "shops: dropped of 243 interactions read: 1 without a time" in capsys.readouterr().out
        assert "| without a time | 1 |" in (folder / "card.md").read_text()

    def test_a_fault_ends_it_with_one_sentence_and_leaves_the_old_data_set(self, shops, capsys):
        from recbole_edt.cli import run

        assert run(["prepare", "--dataset=shops"]) == 0
        folder = shops / "atomic_files" / "shops"
        before = {path: path.read_bytes() for path in folder.iterdir()}
        (shops / "raw" / "food.csv").write_text("customer,article,bought_at\nu,F1,2024-03-01\n")
        assert run(["prepare", "--dataset=shops"]) == 1
        assert "food.csv: no column 'sku' (found: 'customer', 'article', 'bought_at')" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
