"""The stages before training: what they do again, what they refuse, and what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_stages import augmented, settings, silent

from recbole_edt.errors import DataError
from recbole_edt.experiments import compare
from recbole_edt.pipeline import stages
from recbole_edt.text.vectors import EmbeddingTable


def test_own_vectors_take_the_place_of_the_embedder(workplace):
    items = stages.read(settings()).items
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(len(items), 4)).astype(np.float32)
    lines = [f"{item}\t{' '.join(map(repr, row.tolist()))}" for item, row in zip(items[1:], vectors[1:], strict=True)]
    Path("own.itememb").write_text("\n".join(["iid:token\tv:float_seq", *lines]) + "\n", encoding="utf-8")
    said = []
    stages.embed(settings(**{"embed.vectors": "own.itememb"}), said.append)
    assert f"{len(items) - 1} distinct, with own.itememb; 1 without text or vector" in said[0]
    table = EmbeddingTable.load(Path("atomic_files/tiny/tiny.itemvec.safetensors"))
    np.testing.assert_array_equal(table.lookup(items), np.vstack([np.zeros((1, 4)), vectors[1:]]))
    dropped = augmented(**{"embed.vectors": "own.itememb", "embed.missing_text": "drop"})
    assert list(dropped.items) == list(items[1:])


def test_own_vectors_of_other_items_are_refused(workplace):
    Path("own.itememb").write_text("iid:token\tv:float_seq\nnobody\t1 2\n", encoding="utf-8")
    with pytest.raises(DataError, match="has a vector for none of the 30 items"):
        stages.embed(settings(**{"embed.vectors": "own.itememb"}), silent)


def test_items_without_text_stay_or_go_by_name_of_the_policy(workplace):
    path = Path("atomic_files/tiny/tiny.item")
    lines = path.read_text(encoding="utf-8").splitlines()
    token, domain, _ = lines[1].split("\t")
    path.write_text("\n".join([lines[0], f"{token}\t{domain}\t", *lines[2:]]) + "\n", encoding="utf-8")
    assert token in augmented().items
    assert token not in augmented(**{"embed.missing_text": "drop"}).items


def test_a_stage_whose_inputs_have_not_changed_writes_nothing(workplace):
    for stage in ("embed", "augment", "profile"):
        compare.STAGES[stage](settings(), silent)
    before = {path: path.stat().st_mtime_ns for path in workplace.rglob("*") if path.is_file()}
    for stage in ("embed", "augment", "profile"):
        compare.STAGES[stage](settings(), silent)
    assert before == {path: path.stat().st_mtime_ns for path in workplace.rglob("*") if path.is_file()}
    stages.augment_data(settings(**{"augment.k": 1}), silent)
    inter = workplace / "atomic_files/tiny-edt/tiny-edt.inter"
    assert inter.stat().st_mtime_ns != before[inter]


def test_k_core_holds_in_the_augmented_files_too(workplace):
    data = augmented(k_core=3)
    raw = ~data.generated
    assert np.bincount(data.item[raw], minlength=len(data.items)).min() >= 3
    part = data.user[raw] * 2 + data.item_domain[data.item[raw]]
    assert np.unique(part, return_counts=True)[1].min() >= 3


def test_the_ablation_without_filter_says_that_all_were_kept(workplace):
    said = []
    stages.embed(settings(), silent)
    stages.augment_data(settings(**{"augment.filter": False}), said.append)
    assert "all kept (no filter)" in said[0] and "all kept (no filter)" in said[1]


def test_rows_that_were_made_with_other_settings_are_not_trained_on_without_a_word(workplace):
    augmented()
    said = []
    stages.check_rows(settings(), said.append, ["LLMEDT"])
    assert said == []
    stages.check_rows(settings(**{"augment.k": 2, "augment.filter": False}), said.append, ["LLMEDT"])
    assert said[0].startswith("note: the rows are as they were made, with another augment.filter, augment.k; run")
    (Path("atomic_files/tiny-edt") / "augment.json").unlink()  # then the files are somebody else's
    stages.check_rows(settings(**{"augment.k": 2}), said.append, ["LLMEDT"])
    assert len(said) == 1


def test_profiles_that_were_made_with_other_settings_are_not_read_without_a_word(workplace):
    augmented()
    stages.profile(settings(), silent)
    said = []
    for models in (["LLMEDT"], ["SASRec"]):  # the second reads none
        stages.check_rows(settings(**{"profile.n_words": 2}), said.append, models)
    note = "note: the profiles are as they were made, with another profile.n_words; run profile to make them anew"
    assert said == [note]


@pytest.mark.parametrize("stage", [compare.train, compare.compare, compare.recommend])
def test_rows_that_were_made_of_other_data_are_refused(workplace, stage):
    augmented()
    path = Path("atomic_files/tiny/tiny.inter")
    path.write_text("\n".join(path.read_text(encoding="utf-8").splitlines()[:-1]) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="is not what atomic_files/tiny-edt was made of: run everything again"):
        stage(settings(), silent)
    with pytest.raises(DataError, match="is not what atomic_files/tiny-edt was made of"):  # whatever else differs
        stage(settings(**{"augment.k": 2}), silent)


@pytest.mark.parametrize("stage", [compare.train, compare.compare, compare.recommend])
def test_profiles_of_an_older_split_are_refused(workplace, stage):
    augmented()
    stages.profile(settings(), silent)
    path = Path("atomic_files/tiny/tiny.inter")
    path.write_text("\n".join(path.read_text(encoding="utf-8").splitlines()[:-1]) + "\n", encoding="utf-8")
    augmented()
    with pytest.raises(DataError, match="atomic_files/tiny-edt is not what its profiles were made of: run everything"):
        stage(settings(), silent)
    stages.check_rows(settings(), silent, ["SASRec"])  # reads none


def test_vectors_of_other_texts_or_another_embedder_are_refused(workplace):
    augmented()
    items = stages.read(settings()).items
    table = EmbeddingTable(items, np.zeros(len(items), np.int32), np.ones((1, 4), np.float32), {})
    table.save(Path("own.safetensors"))
    with pytest.raises(DataError, match=r"tiny.itemvec.safetensors: made of other texts, or with other settings"):
        stages.augment_data(settings(**{"embed.vectors": "own.safetensors"}), silent)
    path = Path("atomic_files/tiny/tiny.item")
    path.write_text(path.read_text(encoding="utf-8").rstrip("\n") + " more\n", encoding="utf-8")
    with pytest.raises(DataError, match="made of other texts"):
        stages.augment_data(settings(), silent)
    Path("atomic_files/tiny/embed.json").unlink()  # then the vectors are somebody else's
    stages.augment_data(settings(), silent)
