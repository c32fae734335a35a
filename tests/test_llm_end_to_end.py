"""A whole run with a small real language model behind a real server, from prompts to a trained model."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from llm_runs import arguments, left

from recbole_edt.cli import run
from recbole_edt.config.recbole_config import recbole_config
from recbole_edt.config.settings import load_settings
from recbole_edt.files import read_yaml
from recbole_edt.pipeline import dry_run
from recbole_edt.train import comparison
from recbole_edt.train.run import loaders

FOOD = {
    "f1": "Organic Green Tea Bags",
    "f2": "Dark Roast Whole Bean Coffee",
    "f3": "Extra Virgin Olive Oil",
    "f4": "Whole Wheat Spaghetti Pasta",
    "f5": "Raw Wildflower Honey",
    "f6": "Basmati Rice",
}
KITCHEN = {
    "k1": "Cast Iron Skillet",
    "k2": "Stainless Steel Tea Kettle",
    "k3": "Burr Coffee Grinder",
    "k4": "Pasta Maker Machine",
    "k5": "Bamboo Cutting Board",
    "k6": "Glass Storage Bowl Set",
}
HISTORIES = {"ann": "f1 f2 k3 f5 k2 f6", "bob": "f2 f5 f1 k2 f3 k1"}
"""Both users have the same domain ratio, so that one reformed text serves both, and the run is short."""


def write_pantry(folder: Path) -> None:
    """Two users and twelve items with names that a language model can make something of."""
    place = folder / "pantry"
    place.mkdir(parents=True)
    named = {"food": FOOD, "kitchen": KITCHEN}
    items = [f"{item}\t{domain}\t{title}" for domain, titles in named.items() for item, title in titles.items()]
    head = "item_id:token\tdomain:token\ttitle:token_seq"
    (place / "pantry.item").write_text("\n".join([head, *items]) + "\n", encoding="utf-8")
    rows = [f"{user}\t{item}\t{time}" for user, all in HISTORIES.items() for time, item in enumerate(all.split())]
    head = "user_id:token\titem_id:token\ttimestamp:float"
    (place / "pantry.inter").write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def whole(local_llm, tmp_path_factory):
    """Working directory, arguments and estimates of a run that was done and then given again without a key."""
    place = tmp_path_factory.mktemp("local")
    write_pantry(place / "atomic_files")
    keys = {
        "augment__directions": "minority",
        "augment__tau": -1.0,  # the model is too small for what it writes to be like anything
        "augment__n_generated": 3,
        "embed__embedder": "wordllama",
        "llm__model": local_llm.model,
        "llm__temperature": 1.0,  # at less it repeats what it was told
        "llm__max_tokens": 250,
        "llm__seed": 1,
    }
    given = arguments(local_llm.base_url, "pantry", **keys)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("OPENAI_API_KEY", local_llm.key)
        overrides = dict(one[2:].split("=", 1) for one in given[1:])
        settings = load_settings("pantry", [], {key: read_yaml(value) for key, value in overrides.items()})
        estimates = [dry_run.rehearse(settings, "profile", longest) for longest in (False, True)]
        assert run(given) == 0
        yield SimpleNamespace(place=place, given=given, settings=settings, estimates=estimates, key=local_llm.key)


def trace(place: Path) -> list[dict]:
    path = place / "atomic_files/pantry-edt/augment_trace.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def stored(place: Path) -> list[str]:
    with sqlite3.connect(place / "atomic_files/llm_cache.sqlite") as db:
        return [text for (text,) in db.execute("SELECT text FROM answers WHERE template LIKE 'generate%'")]


def test_an_item_that_the_language_model_wrote_is_kept_inserted_and_trained_on(whole):
    kept = {one["item"]: one for one in trace(whole.place) if one["fate"] == "kept"}
    written = [token for token, one in kept.items() if token.startswith("edt-virtual-")]
    assert written, "nothing that the model wrote was kept"
    said = " ".join(stored(whole.place))
    items = pd.read_csv(whole.place / "atomic_files/pantry-edt/pantry-edt.item", sep="\t", dtype=str)
    titles = dict(zip(items["item_id:token"], items["title:token_seq"], strict=True))
    rows = pd.read_csv(whole.place / "atomic_files/pantry-edt/pantry-edt.inter", sep="\t", dtype=str)
    inserted = set(rows.loc[rows.iloc[:, -1] == "1", "item_id:token"])
    experiment = comparison.open_experiment(whole.settings)
    own = recbole_config(whole.settings, "LLMEDT", "pantry-edt", experiment.folder)
    batches = list(loaders(experiment, own, "LLMEDT")[0])
    trained_on = {int(item) for batch in batches for item in batch["target_list"].flatten()}
    tokens = list(experiment.dataset.field2id_token["item_id"])
    for token in written:
        assert titles[token] in said or titles[token].split(". ")[0].split(",")[0] in said
        assert token in inserted
        assert tokens.index(token) in trained_on
    (result,) = whole.place.glob("runs/*/LLMEDT-*/result.json")
    assert json.loads(result.read_text())["sees_generated"] is True


def counts(place: Path) -> dict[str, dict]:
    folder = place / "atomic_files/pantry-edt"
    return {stage: json.loads((folder / f"{stage}.json").read_text())["counts"] for stage in ("augment", "profile")}


def test_every_question_is_accounted_for(whole):
    augment, profile = counts(whole.place).values()
    assert augment["asked"] == 2 and augment["failed"] == {}
    assert len(trace(whole.place)) == sum(augment["fates_food_to_kitchen"].values()) >= 2
    assert profile["asked"] in (5, 6)  # two summaries, a reformed text for each ratio, two profiles
    assert profile["profiles"] + profile["users_failed"] == 2
    for used in (augment["used"]["chat"], profile["used"]["chat"]):
        assert used["prompt_tokens"] > 100 and used["completion_tokens"] > 20 and used["cost_usd"] == 0


def test_a_second_run_asks_nothing_and_leaves_the_same_files(whole, monkeypatch, capsys):
    folder = whole.place / "atomic_files"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if "llm_cache" not in path.name}
    files = left(folder)
    monkeypatch.delenv("OPENAI_API_KEY")  # the server answers nobody without it
    assert run(whole.given) == 0
    printed = capsys.readouterr().out
    assert "LLM: items written by smollm2-135m-instruct, profiles by smollm2-135m-instruct" in printed
    assert "no LLM was called" not in printed
    assert left(folder) == files and len(files) > 10
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_dry_run_foresaw_the_prompts(whole):
    least, most = whole.estimates
    found = counts(whole.place)
    spent = {stage: one["used"]["chat"] for stage, one in found.items()}
    assert spent["augment"]["calls"] == found["augment"]["asked"], "an answer had to be asked for again: other seed?"
    (generate,) = (one for name, one in least.items() if name.startswith("generate"))
    assert generate.prompt_tokens == pytest.approx(spent["augment"]["prompt_tokens"], rel=0.1)
    assert spent["profile"]["calls"] == found["profile"]["asked"]
    later = [sum(one.prompt_tokens for name, one in steps.items() if name != "generate@1") for steps in (least, most)]
    assert later[0] <= spent["profile"]["prompt_tokens"] <= later[1]


def test_no_file_of_the_run_holds_the_key(whole):
    paths = [path for path in whole.place.rglob("*") if path.is_file()]
    assert len(paths) > 15
    assert [path for path in paths if whole.key.encode() in path.read_bytes()] == []
