"""Variants of one model over several seeds: what they share, what they do not, and what is said about them."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import QUICK

from recbole_edt.cli import run
from recbole_edt.config.recbole_config import recbole_config
from recbole_edt.config.settings import load_settings
from recbole_edt.errors import ConfigError, DataError
from recbole_edt.evaluate import results, significance
from recbole_edt.evaluate.metrics import domain_metrics
from recbole_edt.evaluate.ranking import read_ranks
from recbole_edt.experiments import ablation, compare
from recbole_edt.files import read_json
from recbole_edt.render import console
from recbole_edt.report import curves, result_tables
from recbole_edt.train import comparison
from recbole_edt.train.checkpoints import load_checkpoint
from recbole_edt.train.run import ranks_under, run_directory, train_model

FLAGS = [f"--{key}={value}" for key, value in {**QUICK, "epochs": 1, "finetune_epochs": 1}.items()]
TINY = ["--dataset=tiny", *FLAGS, "--seeds=1,2"]
TWO = '--variants={"w/o DFT": , "wide": {adapter_size: 128, augment: {k: 1}}}'


def settings(**keys):
    return load_settings("tiny", [], {**QUICK, "epochs": 2, "finetune_epochs": 2, **keys})


def snapshot(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# ---- what a variant is -------------------------------------------------------------------------------------------


def test_without_a_choice_the_variants_are_those_of_table_3_after_the_whole_model(workplace):
    names = ["w/o Aug.", "w/o Filtering", "w/o Inserting", "Random Inserting", "w/o DFT", "w/o Profiling", "w/o S-R-A"]
    assert list(ablation.variants_of(settings())) == ["LLM-EDT", *names]
    ablation.check(settings())


def test_any_other_model_is_tried_on_raw_and_on_augmented_rows(workplace):
    assert ablation.variants_of(settings(model="SASRec")) == {
        "raw rows": {"use_generated": False},
        "augmented rows": {"use_generated": True},
    }


def test_another_language_model_writes_files_of_its_own_and_another_speed_does_not(workplace):
    both = {"augment": {"generator": "llm"}, "llm": {"model": "small"}}
    names = [
        ablation.settings_of(settings(**both), "x", keys, 1).augmented
        for keys in ({}, {"llm.concurrency": 2}, {"llm.model": "large"}, {"llm.temperature": 0.1})
    ]
    assert names[0] == names[1] == "tiny-edt"
    assert len(set(names)) == 3


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("w/o DFT, w/o Aug.", {"w/o DFT": {"finetune_epochs": 0}, "w/o Aug.": {"augment.insertion": "none"}}),
        (["w/o DFT"], {"w/o DFT": {"finetune_epochs": 0}}),
        ({"w/o DFT": None, "t": {"augment.tau": 1}}, {"w/o DFT": {"finetune_epochs": 0}, "t": {"augment.tau": 1}}),
        ({"t": {"augment": {"tau": 1, "k": 2}, "alpha": 1}}, {"t": {"augment.tau": 1, "augment.k": 2, "alpha": 1}}),
    ],
)
def test_variants_are_names_of_table_3_or_names_with_keys(workplace, given, expected):
    assert ablation.variants_of(settings(variants=given)) == {"LLM-EDT": {}, **expected}


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ("w/o DTF", r"variants: 'w/o DTF' has no keys and is not one of w/o Aug., .* \(did you mean 'w/o DFT'\?\)"),
        ("5", "variants: expected names such as 'w/o DFT', or names with keys, found 5"),
        ("[{x: {alpha: 0}}]", r"variants: expected names such as .*, found \[\{'x': \{'alpha': 0\}\}\]"),
        ("{}", "variants: expected names"),
        ("{a: {augment.tua: 1}}", r"variant 'a': unknown key 'augment.tua' \(did you mean 'augment.tau'\?\)"),
        ("{a: {alhpa: 1}}", "variant 'a': unknown key 'model_settings.LLMEDT.alhpa'"),
        ("{a: {augment.k: 0}}", "variant 'a': augment.k: 0 is not a whole number of at least 1"),
        ("{a: {loss_type: XE}}", "variant 'a': model_settings.LLMEDT.loss_type: 'XE' is not one of BPR"),
        ("{a: {hidden_size: 9}}", "hidden_size: 9 is not a multiple of n_heads, 2"),
        ("{a: {embed.vectors: x}}", "variants: a: embed.vectors is the same for all variants"),
        ("{a: {candidates: all}}", "variants: a: candidates is the same for all variants"),
        ("{a: {seed: 3}}", "variants: a: seed is the same for all variants"),
        ("{a: {k_core: 3}}", "variants: a: k_core is the same for all variants"),
        ("{LLM-EDT: {alpha: 0}}", "variants: 'LLM-EDT' is the first row, LLMEDT as it is; give yours another name"),
    ],
)
def test_a_wrong_variant_is_refused_before_any_work(workplace, capsys, variants, message):
    before = snapshot(workplace)
    assert run(["ablate", *TINY, f"--variants={variants}"]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert snapshot(workplace) == before


def test_a_variant_with_more_clusters_than_items_is_named_before_any_training(workplace, capsys):
    variants = "{K: {augment.n_clusters: 99}, P: {profile.n_clusters: 98}}"
    before = snapshot(workplace)
    assert run(["ablate", *TINY, f"--variants={variants}"]) == 2
    assert capsys.readouterr().err.removeprefix("error: ").splitlines() == [
        "variants: K: augment.n_clusters: 99 is more than the 15 items of food",
        "variants: P: profile.n_clusters: 98 is more than the 15 items of food",
    ]
    assert snapshot(workplace) == before


def test_the_faults_of_all_variants_come_at_once(workplace):
    with pytest.raises(ConfigError) as error:
        ablation.check(settings(variants={"a": {"augment.k": 0}, "b": {"adapter_size": 0}}))
    assert "augment.k: 0" in str(error.value) and "adapter_size: 0" in str(error.value)


@pytest.mark.parametrize("seeds", ["", "1,1", "a", "-1", "[1.5]"])
def test_wrong_seeds_are_refused(workplace, capsys, seeds):
    assert run(["ablate", "--dataset=tiny", f"--seeds={seeds}"]) == 2
    assert "seeds: expected different whole numbers such as [42, 44, 46]" in capsys.readouterr().err


def test_a_variants_keys_win_over_the_models_own_settings(workplace):
    base = settings(**{"model_settings.LLMEDT": {"alpha": 0.9, "seed": 7}, "alpha": 0.1})
    own = ablation.settings_of(base, "a", {"alpha": 0.5}, seed=3)
    assert recbole_config(own, "LLMEDT", "tiny", Path("x"))["alpha"] == 0.5
    assert recbole_config(own, "LLMEDT", "tiny", Path("x"))["seed"] == 3
    assert recbole_config(base, "LLMEDT", "tiny", Path("x"))["alpha"] == 0.9


def test_a_variant_with_rows_of_its_own_writes_profiles_for_its_own_model_alone(workplace):
    base = settings(models=["LLMEDT", "LLM4CDSR"], model="LLMEDT")
    assert base.pipelines == ("sra", "hierarchical")
    assert ablation.settings_of(base, "x", {"augment.k": 1}, 1).pipelines == ("sra",)
    assert ablation.settings_of(base, "x", {"alpha": 0}, 1).pipelines == base.pipelines


def test_only_variants_with_other_rows_or_profiles_have_data_files_of_their_own(workplace):
    base = settings()
    names = {
        name: ablation.settings_of(base, name, keys, 1).augmented for name, keys in ablation.variants_of(base).items()
    }
    shared = {"LLM-EDT", "w/o DFT", "w/o Profiling"}
    assert {name for name, augmented in names.items() if augmented == "tiny-edt"} == shared
    assert len(set(names.values())) == 1 + len(names) - len(shared)
    # Another base gives other files for a variant of the same name.
    other = ablation.settings_of(settings(**{"augment.k": 1}), "w/o Inserting", {"augment.insertion": "append"}, 1)
    assert other.augmented not in names.values()


# ---- the stage ---------------------------------------------------------------------------------------------------


def test_every_variant_and_seed_is_trained_once_and_the_tables_follow_from_their_ranks(workplace, capsys):
    assert run(["ablate", *TINY, TWO]) == 0
    printed = capsys.readouterr().out
    folder = next(Path("runs").glob("tiny-ablation-*"))
    table = pd.read_csv(folder / "ablation.csv")
    assert table["variant"].unique().tolist() == ["LLM-EDT", "w/o DFT", "wide"]
    assert table["seed"].unique().tolist() == [1, 2] and table["run"].nunique() == 6
    for _, row in table.iterrows():
        metrics = domain_metrics(read_ranks(Path(row["run"]) / "ranks.csv")).loc[row["domain"]]
        assert row["hit@10"] == pytest.approx(metrics["hit@10"]) and row["users"] == metrics["users"]
    text = (folder / "ablation.md").read_text(encoding="utf-8")
    for name, rows in table[table["domain"] == "overall"].groupby("variant"):
        mean, deviation = rows["ndcg@10"].mean(), rows["ndcg@10"].std()
        line = next(line for line in printed.splitlines() if line.startswith((f"{name} ", f"{name}† ")))
        assert f"{mean:.4f} ± {deviation:.4f}" in line
        line = next(line for line in text.splitlines() if line.startswith(f"| {name}"))
        assert f"{mean:.4f} ± {deviation:.4f}" in line
    for part in ("augment.k=1", "run_edt.py ablate", "p (Holm)", "torch ", "seeds 1, 2"):
        assert part in text, part
    before = snapshot(Path("runs")) | snapshot(Path("atomic_files"))
    assert run(["ablate", *TINY, TWO]) == 0  # nothing is trained or written again but the report
    again = snapshot(Path("runs")) | snapshot(Path("atomic_files"))
    assert {path for path in again if again[path] != before.get(path)} == {
        str(path) for path in folder.iterdir()
    }
    assert {path.name for path in folder.glob("*.json")} == {"means.json", "tests.json"}
    assert f"{mean:.4f} ± {deviation:.4f}" in (folder / "means.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out == printed


def test_a_variant_that_ranks_as_another_is_said(workplace, capsys):
    same = '"no more": {alpha: 0, align_temperature: 0.5}'
    variants = f"--variants={{w/o Profiling: {{alpha: 0}}, {same}, other: {{learning_rate: 0.05}}}}"
    assert run(["ablate", *TINY, "--alpha=0", "--seeds=1", variants]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if "ranks every target" in line]
    assert notes == [
        f"note: {name} ranks every target as LLM-EDT does"
        for name in ("w/o Profiling", "no more")
    ]


def test_variants_that_differ_in_finetuning_alone_pretrain_once_and_end_as_if_each_had(workplace, capsys):
    for stage in ("embed", "augment", "profile"):
        compare.STAGES[stage](settings(), lambda line: None)
    keys = [{"finetune_learning_rate": 0.05}, {"finetune_learning_rate": 0.01}, {"adapter_size": 3}]
    keys.append({"finetune_epochs": 0})
    weights = {}
    for share in (False, True):
        for number, own in enumerate(keys):
            one = settings(runs_path=f"runs-{share}", **own)
            experiment = comparison.experiment_on(comparison.open_experiment(one).dataset, one)
            experiment = replace(experiment, share_pretraining=share)
            train_model(experiment, "LLMEDT")
            run_dir = run_directory(experiment, "LLMEDT")
            state = load_checkpoint(run_dir / "best.pth")["state_dict"]
            epochs = pd.read_csv(run_dir / "epochs.csv").drop(columns="train_seconds")
            weights[share, number] = state, (run_dir / "ranks.csv").read_bytes(), epochs
    assert len(list(Path("runs-True").rglob("pretraining-*.pth"))) == 2  # adapters of another size are built first
    assert not list(Path("runs-False").rglob("pretraining-*.pth"))
    for number in range(len(keys)):
        one, other = weights[False, number], weights[True, number]
        assert all(torch.equal(one[0][key], other[0][key]) for key in one[0]) and one[1] == other[1]
        pd.testing.assert_frame_equal(one[2], other[2])
    assert not all(torch.equal(weights[True, 0][0][key], value) for key, value in weights[True, 1][0].items())


def test_ranks_among_sampled_candidates_are_those_of_a_run_that_had_them_from_the_start(workplace):
    for stage in ("embed", "augment", "profile"):
        compare.STAGES[stage](settings(), lambda line: None)
    # Without a choice among epochs both runs end with the same weights.
    keys = {"epochs": 1, "finetune_epochs": 0}
    full = comparison.open_experiment(settings(**keys))
    train_model(full, "LLMEDT")
    ranks = ranks_under(full, "LLMEDT", "sampled-5")
    sampled = train_model(comparison.open_experiment(settings(candidates="sampled-5", **keys)), "LLMEDT").ranks
    pd.testing.assert_frame_equal(ranks, sampled)
    (run_directory(full, "LLMEDT") / "ranks-sampled-5.json").unlink()  # stopped before it was written
    pd.testing.assert_frame_equal(ranks_under(full, "LLMEDT", "sampled-5"), sampled)
    assert ranks.attrs == sampled.attrs and ranks.attrs["candidates"] == "sampled-5"
    with pytest.raises(DataError, match="cannot draw 100 candidates"):
        ranks_under(full, "LLMEDT", "sampled-100")
    assert list(ablation.ranked(full, "LLMEDT", results.ModelResult("LLMEDT", ranks))) == ["domain"]
    with pytest.MonkeyPatch.context() as patch:  # damaged candidates are not too few items
        patch.setattr(ablation, "SAMPLED", "sampled-5")
        (comparison.under(full, "sampled-5").folder / "candidates-test.npy").write_bytes(b"damaged")
        with pytest.raises(DataError, match="candidates-test.npy: cannot be read as stored candidates"):
            ablation.ranked(full, "LLMEDT", results.ModelResult("LLMEDT", ranks))


def test_the_papers_candidates_stand_beside_the_full_ranking_if_there_are_enough_items(workplace, capsys, monkeypatch):
    assert run(["ablate", *TINY, "--variants=w/o DFT"]) == 0
    assert "note: sampled-100 is left out, a domain has too few items for it" in capsys.readouterr().out
    monkeypatch.setattr(ablation, "SAMPLED", "sampled-5")
    assert run(["ablate", *TINY, "--variants=w/o DFT"]) == 0
    printed = capsys.readouterr().out
    assert "candidates: all real items of the target's domain" in printed
    assert "candidates: 5 stored negatives of the target's domain" in printed
    tables = [pd.read_csv(path) for path in Path("runs").glob("tiny-ablation-*/ablation.csv")]
    assert {*tables[-1]["candidates"]} <= {"domain", "sampled-5"}


def test_does_the_augmentation_help_another_model(workplace, capsys):
    assert run(["ablate", "--model=SASRec", *TINY]) == 0
    printed = capsys.readouterr().out
    assert "\nraw rows† " in printed and "\naugmented rows† " in printed  # ended by the cap of one epoch
    table = pd.read_csv(next(Path("runs").glob("tiny-ablation-*")) / "ablation.csv")
    sees = {
        name: {read_json(Path(run_dir) / "result.json")["sees_generated"] for run_dir in rows["run"]}
        for name, rows in table.groupby("variant")
    }
    assert sees == {"raw rows": {False}, "augmented rows": {True}}
    for run_dir in table["run"].unique():  # virtual or not: the same real candidates for both
        ranks = read_ranks(Path(run_dir) / "ranks.csv")
        assert (ranks["higher"] + ranks["tied"]).between(0, 14).all() and len(ranks) == 40


def test_a_finished_variant_with_data_of_its_own_recommends_after_loading(workplace, capsys):
    from recbole_edt.recommend.recommender import load

    assert run(["ablate", *TINY, '--variants={"one": {augment.k: 1}}']) == 0
    table = pd.read_csv(next(Path("runs").glob("tiny-ablation-*")) / "ablation.csv")
    run_dir = table.loc[table["variant"] == "one", "run"].iloc[0]
    assert len(load(run_dir).recommend(["f1", "k2"], k=3, domain="food")) == 3


def test_means_and_deviations_by_hand(workplace):
    def model(name, *higher):
        user = np.array([f"u{i}" for i in range(len(higher))], object)
        ranks = pd.DataFrame({"user": user, "item": user, "domain": "food", "higher": higher, "tied": 0})
        about = {"candidates": "domain", "candidates_hash": "", "seen_items": "ranked", "split_hash": "s"}
        ranks.attrs = {"domains": ["food"], **about}
        return results.ModelResult(name, ranks)

    runs = {"a": [model("a", 0, 99), model("a", 0, 0)], "b": [model("b", 99, 99)] * 2}
    mean, deviation = result_tables.seeds_table(runs, k=10)
    assert mean.loc["a", ("food", "hit@10")] == 0.75 and mean.loc["b", ("overall", "hit@10")] == 0
    assert deviation.loc["a", ("food", "hit@10")] == pytest.approx(np.sqrt(0.125))
    assert np.isnan(result_tables.seeds_table({"a": runs["a"][:1]})[1].to_numpy()).all()
    tests = significance.paired_tests_over_seeds(runs, "a", "hit@10")
    assert tests["difference"].tolist() == [0.75, 0.75] and tests["users"].tolist() == [2, 2]
    assert tests["low"].min() == pytest.approx(0.5) and tests["high"].max() == pytest.approx(1.0)
    runs["b"] = [replace(runs["b"][0], status=results.EPOCH_CAP), runs["b"][1]]
    shown = io.StringIO()
    console.print_result(result_tables.mean_table(runs, title="title"), file=shown)
    marked = [line.split()[0] for line in shown.getvalue().splitlines() if line.startswith(("a ", "b"))]
    assert marked == ["a", "b†"]
    assert "standard deviation over seeds" in shown.getvalue()
    assert f"† in at least one seed {curves.CAP_LEGEND}" in shown.getvalue()
    one = result_tables.variant_tables({name: several[:1] for name, several in runs.items()}, "title")
    assert one["means"].note.startswith("one seed; †") and "over seeds" not in one["tests"].title


@pytest.mark.parametrize("models", ["LLM4CDSR,LLMEDT", "SASRec,LLM4CDSR"])
def test_the_profiles_are_those_of_the_model_whatever_models_are_named(workplace, models):
    assert run(["ablate", *TINY, f"--models={models}", "--variants=w/o DFT", "--seeds=42"]) == 0
    assert [path.name for path in Path("atomic_files/tiny-edt").glob("profile.*json")] == ["profile.json"]
    assert not list(Path("atomic_files").glob("tiny-edt-*"))
