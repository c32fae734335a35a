"""The paper's tables and figures: what each trains, what stands beside it, and that nothing is trained twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import toy
from conftest import QUICK, write_tiny
from faulty_server import FaultyServer

from recbole_edt.cli import STUDIES, run
from recbole_edt.config import recbole_config
from recbole_edt.config.settings import budget_note, load_settings
from recbole_edt.data import statistics
from recbole_edt.errors import ConfigError, DataError
from recbole_edt.evaluate import results, significance
from recbole_edt.evaluate.metrics import domain_metrics
from recbole_edt.evaluate.ranking import read_ranks
from recbole_edt.experiments import ablation, audit, paper_figures, paper_numbers, paper_tables, studies, trials
from recbole_edt.experiments.rows import (
    ALPHAS,
    alphas,
    backbones,
    baselines,
    cluster_numbers,
    language_models,
    shares,
    thresholds,
    with_and_without,
)
from recbole_edt.experiments.trials import Bench, Outcome, Row, of_seeds, settings_of
from recbole_edt.files import read_file
from recbole_edt.models.registry import METHODS
from recbole_edt.pipeline import stages
from recbole_edt.render import figures, tables
from recbole_edt.text.vectors import EmbeddingTable
from recbole_edt.train.run import run_directory, train_model

KEYS = {**QUICK, "epochs": 1, "finetune_epochs": 1, "models": "Pop,SASRec,LLMEDT", "seeds": [1, 2]}
FLAGS = ["--dataset=tiny", *(f"--{key}={value}" for key, value in KEYS.items())]
SMALL = ("table1", "table2", "table6", "table7", "figure1", "figure3", "figure4", "figure6", "cost", "audit")


def settings(**keys):
    return load_settings("tiny", [], {**KEYS, **keys})


def snapshot(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.glob("tiny-*/*/result.json")}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory in which the studies that share trainings were run, and their bench."""
    folder = tmp_path_factory.mktemp("studies")
    write_tiny(folder / "atomic_files", "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        own = replace(settings(), command="python run_edt.py experiment all --dataset=tiny")
        bench = Bench(own, ["Pop", "SASRec", "LLMEDT"], lambda line: None)
        for name in SMALL:
            study = studies.STUDIES[name]
            bench.start()
            outcome = study.make(bench, study.rows(own))
            studies.write(outcome, output(folder, name), bench, studies.command_of(own, "all", name))
        yield folder, bench


def output(folder: Path, name: str) -> Path:
    return folder / "runs" / "tiny-experiments" / name


def table_of(place, name: str, stem: str = "table") -> tables.ResultTable:
    return tables.read(output(place[0], name) / f"{stem}.json")


# ---- what is written ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_every_study_writes_its_table_in_all_forms_with_the_command_that_makes_it(place, name):
    folder = output(place[0], name)
    assert all((folder / f"table.{suffix}").stat().st_size for suffix in ("json", "md", "csv", "tex"))
    table = table_of(place, name)
    assert table.command == f"python run_edt.py experiment {name} --dataset=tiny"
    assert table.rows and "tiny" in table.title and table.note


@pytest.mark.parametrize("name", ["table2", "table6", "table7", "figure1", "figure3", "figure4", "figure6", "audit"])
def test_every_figure_is_written_with_the_numbers_it_draws(place, name):
    folder = output(place[0], name)
    assert (folder / "figure.png").stat().st_size > 5_000 and (folder / "figure.pdf").stat().st_size > 3_000
    assert len(pd.read_csv(folder / "figure.csv"))


def test_the_command_line_knows_every_study():
    assert set(STUDIES) == {*studies.STUDIES, studies.ALL}


def test_means_and_deviations_are_those_of_the_runs(place):
    runs = pd.read_csv(output(place[0], "table2") / "runs.csv")
    own = runs[(runs["variant"] == "SASRec") & (runs["domain"] == "food")]["ndcg@10"]
    assert len(own) == 2
    table = table_of(place, "table2")
    column = next(n for n, one in enumerate(table.columns) if (one.group, one.name) == ("food", "ndcg@10"))
    row = next(row for row in table.rows if row[0].startswith("SASRec†"))
    assert row[column] == pytest.approx((own.mean(), own.std()))


def test_the_runs_behind_a_table_are_named(place):
    runs = pd.read_csv(output(place[0], "table2") / "runs.csv")
    assert set(runs["variant"]) == {"Pop", "SASRec", "SASRec from text", "SASRec + text", "LLM-EDT"}
    for row in runs[runs["domain"] == "overall"].to_dict("records"):
        ranks = read_ranks(place[0] / row["run"] / "ranks.csv")
        assert row["ndcg@10"] == pytest.approx(domain_metrics(ranks, (10,)).loc["overall", "ndcg@10"])


def test_table_2_names_the_papers_models_that_were_not_run_and_the_budget(place):
    table = table_of(place, "table2")
    lacking = "C2DSR, TriCDR, SyNCRec, ABXI, LLM-ESR, LLMCDSR"
    assert lacking in table.note and "GRU4Rec" in table.note
    assert "Hyper-parameters: as given, no search." in table.note
    assert "offline: no LLM was called" in table.note and "split " in table.note


def test_both_tests_stand_in_the_table_of_significance(place):
    table = table_of(place, "table2", "tests")
    assert [column.heading for column in table.columns[-4:]] == ["p", "p (Holm)", "over seeds p", "over seeds p (Holm)"]
    assert {row[0] for row in table.rows} == {"Pop", "SASRec", "SASRec from text", "SASRec + text"}
    assert len(table.rows) == 12 and "one-sided Welch t-test" in table.note


@pytest.mark.parametrize(
    ("name", "items"), [("SASRec from text", ("id", "pca")), ("SASRec + text", ("llm", "random"))]
)
def test_text_alone_is_llm_edt_without_rows_profiles_and_fine_tuning(place, name, items):
    folder = pd.read_csv(output(place[0], "table2") / "runs.csv").set_index("variant").loc[name, "run"].iloc[0]
    result = json.loads((place[0] / folder / "result.json").read_text(encoding="utf-8"))
    assert [phase["phase"] for phase in result["phases"]] == ["pretrain"] and not result["sees_generated"]
    used = read_file(place[0] / folder / "config.yaml")
    assert used["alpha"] == 0 and (used["item_representation"], used["item_ids"]) == items


def test_table_1_counts_what_is_there(place):
    table = table_of(place, "table1")
    data = pd.read_csv(place[0] / "atomic_files" / "tiny" / "tiny.inter", sep="\t")
    in_food = data["item_id:token"].str.startswith("f")
    assert table.rows[0][:3] == ("food", data.loc[in_food, "user_id:token"].nunique(), 15)
    assert table.rows[1][:3] == ("kitchen", data.loc[~in_food, "user_id:token"].nunique(), 15)
    assert table.rows[0][5:] == (14858, 8343, 14858, 8742)  # the paper's Food
    assert f"{len(data) / 40:.2f} before" in table.note


def test_figure_1_counts_every_user_once_before_and_after(place):
    table = table_of(place, "figure1")
    assert [sum(column) for column in zip(*[row[1:] for row in table.rows], strict=True)] == [40, 40]
    assert table.rows[-1][0] == "90-100%"


def test_figure_1_has_the_numbers_of_the_data_card(place):
    rows = table_of(place, "figure1").rows
    data = stages.read(place[1].settings), stages.read_augmented(place[1].settings)
    of_card = [statistics.ratio_histogram(one)["users_by_tenth"] for one in data]
    assert [list(column) for column in zip(*[row[1:] for row in rows], strict=True)] == of_card


def test_table_6_compares_profiles_with_those_of_raw_rows(place):
    table = table_of(place, "table6")
    assert [row[0] for row in table.rows] == ["injected 30%", "injected 60%", "injected 100%"]
    assert [row[5] for row in table.rows] == [0.9876, 0.9828, 0.9791]
    users = [row[3] for row in table.rows]
    assert users == sorted(users) and users[-1] > 0  # a larger share only adds
    assert all(row[4] <= row[2] <= 1 for row in table.rows)  # who got nothing has the profile of before


def test_table_7_counts_each_user_under_one_condition(place):
    table = table_of(place, "table7", "table-users")
    assert sum(row[1] for row in table.rows) == 40
    assert [row[0] for row in table.rows] == list(paper_tables.RATIOS)
    assert [column.name for column in table_of(place, "table7").columns[:2]] == ["items", "mean r"]


def test_figure_4_has_all_users_by_domain_and_length(place):
    table = table_of(place, "figure4")
    assert sum(row[2] for row in table.rows) == 40
    assert [column.name for column in table.columns[3:]] == ["LLM-EDT", "w/o Aug."]


def test_figure_6_measures_once_and_keeps_what_it_measured(place, monkeypatch):
    folder, bench = place
    table = table_of(place, "figure6")
    monkeypatch.chdir(folder)
    again = paper_figures.figure6(bench, baselines(bench.settings)).tables["table"]
    assert [row[:4] for row in again.rows] == [row[:4] for row in table.rows]
    assert all(row[2] > 0 for row in table.rows)
    assert "among its candidates (all real items of the target's domain, the user's own earlier" in table.note
    sampled = Bench(settings(candidates="sampled-5", seeds=[1]), ["Pop"], lambda line: None)
    note = paper_figures.figure6(sampled, [Row("Pop", "Pop")]).tables["table"].note
    assert "among its candidates (5 stored negatives of the target's domain)" in note
    assert sampled.note("full", [Row("Pop", "Pop")]).startswith("Seed 1; test targets")
    assert bench.note("full", [Row("Pop", "Pop")]).startswith("Mean ± standard deviation over seeds 1, 2; test targets")


def test_axes_say_whether_they_show_one_seed_or_a_mean():
    drawn = pd.DataFrame({"mean": [0.1, 0.2], "deviation": [np.nan, np.nan]})
    assert of_seeds(drawn) == "one seed"
    assert of_seeds(drawn.assign(deviation=[0.01, np.nan])) == "mean over seeds"


def test_the_audit_has_every_leak_marked(place):
    table = table_of(place, "audit")
    assert table.rows[0][0] == "honest" and all("(not comparable)" in row[0] for row in table.rows[1:])
    assert " Note: 100 negatives and all three leaks are left out: a domain has too few items for" in table.note


def test_the_audits_of_several_seeds_are_noted_once_with_the_seeds_that_are_meant():
    names = [protocol.name for protocol in audit.PROTOCOLS]
    first = pd.DataFrame({"protocol": names[:4], "note": ["", "", "so it is", ""]})
    second = pd.DataFrame({"protocol": names[:4], "note": ""})
    left_out = " Note: all three leaks is left out: a domain has too few items for 100 negatives."
    assert paper_tables.audit_notes({1: first, 2: second}) == f" Note: so it is (seed 1).{left_out}"
    assert paper_tables.audit_notes({1: first, 2: first}) == f" Note: so it is.{left_out}"


def test_costs_stand_beside_the_papers(place):
    assert [(row[0], row[2], row[-1]) for row in table_of(place, "cost").rows] == [
        ("embed", 0, 0.00009),
        ("augment", 0, 0.000194),
        ("profile", 0, 0.000477),
    ]


# ---- resume and refusals -----------------------------------------------------------------------------------------


def test_what_was_trained_is_not_trained_again(place, monkeypatch, capsys):
    folder, _ = place
    monkeypatch.chdir(folder)
    before = snapshot(folder / "runs")
    assert run(["experiment", "table2", *FLAGS]) == 0
    assert snapshot(folder / "runs") == before and len(before) >= 8
    printed = capsys.readouterr().out
    assert "the user's own earlier items among them (" in printed
    assert "Overall comparison: tiny" in printed and "paper: Kitchen" in printed
    assert "note: sampled-100 is left out" in printed


def test_an_experiment_that_is_stopped_goes_on(place, tmp_path, monkeypatch):
    folder, bench = place
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "atomic_files", "tiny")
    trained = []

    def stop_before_the_third(*args, train=train_model):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(args)
        return train(*args)

    flags = [*FLAGS, "--models=Pop,SASRec"]
    with monkeypatch.context() as patch:
        patch.setattr(trials, "train_model", stop_before_the_third)
        assert run(["experiment", "table2", *flags]) == 130
    first = snapshot(tmp_path / "runs")
    assert len(first) == 2
    assert run(["experiment", "table2", *flags]) == 0
    assert len(snapshot(tmp_path / "runs")) == 4 and first.items() <= snapshot(tmp_path / "runs").items()
    ours = {row[0]: row[1:7] for row in tables.read(output(tmp_path, "table2") / "table.json").rows}
    whole = {row[0]: row[1:7] for row in table_of(place, "table2").rows}
    assert ours["SASRec†"] == whole["SASRec†"]


def test_runs_of_different_splits_are_refused_in_one_table(place, monkeypatch):
    folder, bench = place
    monkeypatch.chdir(folder)
    rows = baselines(bench.settings)[:2]
    fresh = Bench(settings(), ["Pop", "SASRec"], lambda line: None)
    path = run_directory(fresh.experiment(rows[1], 1), "SASRec") / "ranks.json"
    original = path.read_text(encoding="utf-8")
    path.write_text(original.replace('"split_hash": "', '"split_hash": "0'), encoding="utf-8")
    try:
        with pytest.raises(DataError, match="rank tables differ in split_hash"):
            fresh.runs(rows)
    finally:
        path.write_text(original, encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment", "table2", "--seeds=42,42"], "seeds: expected different whole numbers"),
        (["experiment"], "experiment: say what to do: experiment table1"),
        (["experiment", "table10"], "unknown action 'table10' of experiment"),
        (["experiment", "table8"], "experiment table8 needs experiment.llms"),
        (["experiment", "table8", "--experiment.llms={a: {modell: x}}"], "unknown key 'llm.modell'"),
        (["experiment", "table8", "--experiment.llms=[a]"], "llms: expected names with keys of llm"),
        (["experiment", "table2", "--models=SASRec,NoModel"], "unknown model 'NoModel'"),
        (["experiment", "table3", "--variants={a: {alhpa: 1}}"], "variant 'a': unknown key"),
        (["experiment", "all", "--dry-run"], "has no dry run of its own"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(workplace, capsys, arguments, message):
    assert run([*arguments, "--dataset=tiny"]) == 2
    assert message in capsys.readouterr().err
    assert not (workplace / "runs").exists()


def test_of_all_studies_those_that_lack_a_setting_are_left_out(workplace):
    said = []
    chosen = studies.chosen_rows(settings(), "all", said.append)
    assert set(studies.STUDIES) - set(chosen) == {"table8"}
    assert said[0].startswith("note: table8 is left out: experiment table8 needs experiment.llms")


# ---- rows --------------------------------------------------------------------------------------------------------


def test_without_models_table_2_has_every_baseline_and_the_method(workplace):
    rows = baselines(load_settings("tiny"))
    assert [row.name for row in rows][:4] == ["Pop", "GRU4Rec", "BERT4Rec", "SASRec"]
    assert [row.name for row in rows][-3:] == ["SASRec from text", "SASRec + text", "LLM-EDT"]
    assert {method.title for method in METHODS.values()} <= {row.name for row in rows}
    assert [row.name for row in baselines(settings(models="SASRec"))] == ["SASRec"]
    other = baselines(settings(**{"models": "LLMEDT", "model_settings.LLMEDT.backbone": "GRU4Rec"}))
    assert [row.name for row in other] == ["GRU4Rec from text", "GRU4Rec + text", "LLM-EDT"]


def test_the_row_with_text_has_text_where_the_method_has_none(workplace):
    ids = settings(**{"models": "LLMEDT", "model_settings.LLMEDT.item_representation": "id"})
    chosen = [settings_of(ids, row, 1) for row in baselines(ids)]
    found = [recbole_config.model_values(one, "LLMEDT")["item_representation"] for one in chosen]
    assert found == ["id", "llm+id", "id"]


def test_table_9_goes_with_pre_norm(workplace):
    both = settings(norm_first=True)
    rows = backbones(both)
    studies.check(both, rows)
    chosen = {row.name: recbole_config.model_values(settings_of(both, row, 1), row.model) for row in rows}
    assert not chosen["LLM-EDT (GRU4Rec)"]["norm_first"] and chosen["LLM-EDT (BERT4Rec)"]["norm_first"]


def test_it_is_said_where_inserted_rows_are_varied_that_the_method_does_not_read(workplace):
    without = settings(**{"model_settings.LLMEDT.use_generated": False})
    varied = [row.keys for row in shares(without)]
    assert "reads no inserted rows (use_generated: false)" in ablation.unread(without, "LLMEDT", varied)
    assert ablation.unread(settings(), "LLMEDT", varied) == ""
    assert ablation.unread(without, "LLMEDT", [row.keys for row in alphas(without)]) == ""
    assert ablation.unread(without, "LLM4CDSR", varied) == ""  # it never reads any


def test_the_given_value_stands_among_the_papers_and_is_the_run_of_table_2(workplace):
    for rows, name, names in (
        (thresholds(settings()), "tau q0.10", ["tau q0.10", "tau q0.50", "tau q0.90"]),
        (thresholds(settings(**{"augment.tau": 0.9})), "tau 0.9", ["tau 0.85", "tau 0.9", "tau 0.95"]),
        (thresholds(settings(**{"augment.tau": "q.5"})), "tau q.5", ["tau q0.10", "tau q.5", "tau q0.90"]),
        (alphas(settings(alpha=0.1 + 0.2)), "alpha 0.3", [f"alpha {one:g}" for one in ALPHAS]),
        (cluster_numbers(settings()), "K 3", ["K 3", "K 5", "K 10", "K 15"]),
        (alphas(settings(alpha=0.01)), "alpha 0.01", None),
        (shares(settings()), "injected 100%", ["injected 30%", "injected 60%", "injected 100%"]),
    ):
        assert [row.name for row in rows if not row.keys] == [name]
        assert names is None or [row.name for row in rows] == names


def test_two_rows_of_one_name_are_refused():
    rows = [Row("a"), Row("b"), Row("a", "SASRec")]
    with pytest.raises(ConfigError, match="table8: two rows are called a; give each a name of its own"):
        studies._check_names("table8", rows)


def test_more_clusters_than_items_are_left_out_of_table_5_and_else_refused_before_any_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "atomic_files", "tiny", n_items=24)
    said: list[str] = []
    bench = Bench(settings(), ["LLMEDT"], said.append)
    rows = cluster_numbers(bench.settings)
    assert [row.name for row in studies.fitting(bench, {"table5": rows})["table5"]] == ["K 3", "K 5", "K 10"]
    assert said[-1] == "note: table5: K 15 is left out: augment.n_clusters: 15 is more than the 12 items of food"
    with pytest.raises(ConfigError, match="table3: K 15: augment.n_clusters: 15 is more than the 12 items of food"):
        studies.fitting(bench, {"table3": rows})
    assert not list(tmp_path.glob("runs/*/*"))


def test_before_augmentation_items_without_text_are_gone_if_they_are_dropped(workplace):
    path = workplace / "atomic_files/tiny/tiny.item"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines[:1], lines[1].rpartition("\t")[0] + "\t", *lines[2:]]) + "\n", encoding="utf-8")
    bench = Bench(settings(**{"embed.missing_text": "drop"}), ["LLMEDT"], lambda line: None)
    table = paper_tables.table1(bench, []).tables["table"]
    assert [row[2] for row in table.rows] == [14, 15] and [row[4] for row in table.rows] == [14, 15]
    figure = paper_figures.figure1(bench, []).tables["table"]
    assert sum(row[1] for row in figure.rows) == len(paper_tables.before_augmentation(bench).users)


def test_what_an_earlier_call_wrote_besides_is_gone_and_other_files_stay(place, tmp_path):
    table = tables.ResultTable("t", "T", ["a"], [("x",)])
    both = Outcome({"table": table, "tests-sampled-100": table})
    for outcome in (both, Outcome({"table": table})):
        (tmp_path / "tables-i-like.txt").write_text("mine", encoding="utf-8")
        studies.write(outcome, tmp_path, place[1], "")
    stems = {path.stem for path in tmp_path.iterdir()}
    assert stems - {"runs"} == {"table", "tables-i-like"}


def test_backbones_stand_alone_and_in_the_method(workplace):
    rows = {row.name: row for row in backbones(settings())}
    assert rows["GRU4Rec"].model == "GRU4Rec" and rows["LLM-EDT (BERT4Rec)"].keys == {"backbone": "BERT4Rec"}
    studies.check(settings(), list(rows.values()))


@pytest.mark.parametrize("name", sorted(set(studies.STUDIES) - {"table8"}))
def test_the_rows_of_every_study_fit_their_models(workplace, name):
    studies.check(settings(), studies.STUDIES[name].rows(settings()))


def test_other_studies_make_their_tables_from_few_rows(place, monkeypatch):
    folder, bench = place
    monkeypatch.chdir(folder)
    given = bench.settings
    table4 = paper_tables.table4(bench, [Row("tau q0.10")]).tables["table"]
    assert [row[0] for row in table4.rows][1:] == [f"tau {tau} (paper alone)" for tau in ("0.85", "0.9", "0.95")]
    assert table4.rows[0][1] > 0  # rows inserted
    table5 = paper_tables.table5(bench, [Row("K 10")]).tables["table"]
    assert table5.rows[0][-2:] == (0.8104, 0.7649)
    assert paper_figures.figure5(bench, [Row("alpha 0.7")]).figure is not None
    table3 = paper_tables.table3(bench, with_and_without(given)).tables
    assert table3["table"].rows[1][-4:] == (0.7919, 0.7311, 0.6854, 0.6291)
    alone = Row("SASRec", "SASRec"), Row("LLM-EDT (SASRec)", "LLMEDT", {"backbone": "SASRec"})
    assert {row[0] for row in paper_tables.table9(bench, alone).tables["tests-SASRec"].rows} == {"SASRec"}


def test_two_language_models_write_items_and_profiles_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "atomic_files", "tiny", n_users=6)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with FaultyServer() as first, FaultyServer() as second:
        llms = {
            name: {"model": name, "base_url": server.url, "max_tokens": 300}
            for name, server in (("small", first), ("large", second))
        }
        keys = {"experiment.llms": llms, "augment.tau": -1, "augment.n_generated": 2, "seeds": [1]}
        own = settings(**keys)
        said: list[str] = []
        studies.experiment(own, said.append, "table8")
        assert first.n_calls and second.n_calls
    table = tables.read(output(tmp_path, "table8") / "table.json")
    assert [row[0] for row in table.rows][:2] == ["small†", "large†"]
    assert "Item vectors are the same in every row" in table.note
    assert "small: LLM: items written by small, profiles by small" in table.note
    assert "large: LLM: items written by large" in table.note and "no LLM was called" not in table.note
    folders = {path.parent.name for path in (tmp_path / "atomic_files").glob("tiny-edt-*/augment.json")}
    assert len(folders) == 2
    source = stages.read_augmented(bench_of(own, "small"))
    assert source.virtual.any()


def bench_of(own, name):
    rows = {row.name: row for row in language_models(own)}
    return settings_of(own, rows[name], 1)


# ---- the paper's numbers -----------------------------------------------------------------------------------------


def test_the_papers_pair_is_found_by_the_names_of_the_domains_in_either_order():
    here = paper_numbers.printed("table2", ("kitchen", "food"))
    assert here.same_domains and here.domains == ("Kitchen", "Food")
    assert here.rows["LLM-EDT"] == [0.5406, 0.4236, 0.4349, 0.3109]
    assert paper_numbers.printed("table2", ("Electronics", "cell_phones")).rows["SASRec"][0] == 0.3501
    other = paper_numbers.printed("table2", ("action", "drama"))
    assert other.domains == ("Cloth", "Sport") and not other.same_domains


@pytest.mark.parametrize("table", [f"table{n}" for n in range(1, 10)])
def test_every_row_of_the_paper_has_a_value_per_metric_and_domain(table):
    for domains in (("cloth", "sport"), ("electronic", "cell phone"), ("food", "kitchen")):
        numbers = paper_numbers.printed(table, domains)
        widths = {len(row) for row in numbers.rows.values()}
        assert widths == ({len(numbers.metrics)} if table == "table6" else {2 * len(numbers.metrics)})


def test_the_improvements_that_the_paper_prints_follow_from_its_numbers():
    rows = paper_numbers.printed("table2", ("cloth", "sport")).rows
    others = np.max([row for name, row in rows.items() if name != "LLM-EDT"], axis=0)
    gain = 100 * (np.array(rows["LLM-EDT"]) / others - 1)
    assert gain == pytest.approx([2.81, 3.93, 7.16, 7.35], abs=0.01)


def test_what_keeps_numbers_from_being_compared_is_said(workplace):
    same = paper_numbers.printed("table2", ("food", "kitchen"))
    assert paper_numbers.difference(settings(), same, "domain", False) == (
        "Not comparable: other files of the same domains, the target competes with 100 sampled items there, "
        "no LLM was called here, its released code augments before it splits."
    )
    assert "100 sampled" not in paper_numbers.difference(settings(), same, "sampled-100", True)


def test_rows_of_the_paper_alone_come_last_and_ours_keep_their_cells():
    ours = tables.ResultTable("t", "t", ["model", "x"], [("SASRec†", 1.0), ("Mine", 2.0)], "Note.")
    values = {"SASRec": [0.1, 0.2], "C2DSR": [0.3, 0.4]}
    numbers = paper_numbers.Printed("Table 2", ("A", "B"), ("hit@10",), values, False)
    both = paper_numbers.beside(ours, numbers, "Not comparable.")
    assert both.rows == (
        ("SASRec†", 1.0, 0.1, 0.2),
        ("Mine", 2.0, None, None),
        ("C2DSR (paper alone)", None, 0.3, 0.4),
    )
    assert both.note.startswith("Note. Paper: Table 2 of LLM-EDT (SIGIR 2026)") and "Not comparable." in both.note


# ---- numbers with a known answer ---------------------------------------------------------------------------------


def ranks(higher, domain="food"):
    table = pd.DataFrame({"user": [f"u{i:03d}" for i in range(len(higher))], "item": "f1", "domain": domain})
    table = table.assign(higher=higher, tied=0)
    about = {"split_hash": "s", "candidates": "domain", "candidates_hash": "", "seen_items": "ranked"}
    table.attrs = {**about, "domains": [domain]}
    return table


def seeds_of(generator, chance, n_seeds=3, n_users=400):
    """Runs in which each user's target is first with this chance, else far below the cut-off."""
    hits = generator.random((n_seeds, n_users)) < chance
    return [results.ModelResult("m", ranks(np.where(row, 0, 100))) for row in hits]


def test_the_one_sided_test_is_small_on_the_side_of_the_better_model():
    a, b = [0.30, 0.31, 0.32], [0.20, 0.21, 0.22]
    # Welch by hand: t = 0.1 / sqrt(2 * 0.0001 / 3) = 12.247 with 4 degrees of freedom.
    assert significance.one_sided(a, b) == pytest.approx(0.000127, abs=1e-6)
    assert significance.one_sided(b, a) == pytest.approx(1 - 0.000127, abs=1e-6)
    assert significance.one_sided(a, a) == pytest.approx(0.5)
    assert significance.one_sided([0.2, 0.2], [0.1, 0.1]) == 0
    assert significance.one_sided([0.1, 0.1], [0.1 + 1e-17, 0.1]) == 1
    assert significance.one_sided([0.1] * 3, [0.1] * 3) == 1 and significance.one_sided([0.1] * 3, [0.2] * 3) == 1
    assert significance.one_sided([0.2] * 3, [0.1] * 3) == 0
    assert np.isnan(significance.one_sided([0.2], [0.1]))


def test_where_nothing_differs_both_tests_err_about_as_often_as_they_say():
    generator = np.random.default_rng(0)
    over_seeds, over_users = [], []
    for _ in range(60):
        runs = {name: seeds_of(generator, 0.3, n_users=60) for name in ("a", "b")}
        over_seeds.append(significance.tests_over_seeds(runs, "a", "hit@10")["p"].iloc[0])
        pair = [[one.ranks for one in several] for several in runs.values()]
        over_users.append(significance.compare_seeds(*pair, "hit@10")["p"])
    # 5 % of 60 is 3, with a standard deviation of 1.7; the mean of 60 uniform values has one of 0.04.
    for found in (over_seeds, over_users):
        assert np.sum(np.array(found) < 0.05) < 9 and 0.36 < np.mean(found) < 0.64


def test_a_difference_that_is_there_is_found_by_both_tests_on_the_right_side():
    generator = np.random.default_rng(1)
    runs = {"good": seeds_of(generator, 0.5), "bad": seeds_of(generator, 0.3)}
    assert significance.tests_over_seeds(runs, "good", "hit@10")["p_holm"].max() < 0.01
    assert significance.tests_over_seeds(runs, "bad", "hit@10")["p"].min() > 0.99
    over_users = significance.paired_tests_over_seeds(runs, "good", "hit@10")
    assert (over_users["p_holm"] < 0.001).all() and (over_users["low"] > 0).all()
    assert (over_users["low"] < 0.2).all() and (over_users["high"] > 0.2).all()


def test_a_reference_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="no model is called 'x'"):
        significance.tests_over_seeds({"a": []}, "x")


def test_domains_that_lie_apart_and_domains_that_are_mixed_are_told_by_their_numbers():
    apart = np.array([[1, 0.01], [1, -0.01], [0.01, 1], [-0.01, 1]])
    domain = np.array([0, 0, 1, 1])
    silhouette, nearest = paper_figures.separation(apart, domain, 1)
    assert silhouette > 0.99 and nearest < 0.05
    silhouette, nearest = paper_figures.separation(apart, np.array([0, 1, 0, 1]), 1)
    assert silhouette < 0 and nearest > 0.99
    with_zeros = np.vstack([apart, np.zeros((2, 2))])
    separation = paper_figures.separation
    assert separation(with_zeros, np.array([*domain, 0, 1]), 1) == separation(apart, domain, 1)


def test_similarity_of_profiles_is_the_cosine_by_user_and_nothing_without_a_profile():
    data = toy.dataset(["f1", "f1", "f1"])
    tokens, rows = data.users, np.arange(3, dtype=np.int32)
    a = EmbeddingTable(tokens, rows, np.array([[1, 0], [1, 1], [0, 0]], np.float32), {"kind": "user"})
    b = EmbeddingTable(tokens[::-1], rows, np.array([[1, 0], [1, -1], [0, 2]], np.float32), {"kind": "user"})
    found = paper_tables.cosines(a, b, data.users)
    assert found[:2] == pytest.approx([0, 0]) and np.isnan(found[2])
    assert paper_tables.cosines(a, a, data.users)[:2] == pytest.approx([1, 1])


def test_few_items_that_must_be_seen_are_drawn_before_others():
    domain, new = np.repeat([0, 1], 3000), np.arange(6000) % 1500 == 0
    chosen = paper_figures.sampled(domain, new, 1)
    assert len(chosen) == 2 * paper_figures.N_MAPPED and new[chosen].sum() == new.sum() == 4
    assert (paper_figures.sampled(domain, new, 1) == chosen).all()
    assert len(paper_figures.sampled(domain[2990:3010], new[2990:3010], 1)) == 20


def test_written_items_stand_out_on_the_map(tmp_path):
    drawn = pd.DataFrame({"panel": [0, 0, 0], "x": [0, 1, 2], "y": [0, 1, 2], "domain": ["food", "food", "_$k$"]})
    figure = figures.maps(drawn.assign(generated=[False, True, False]), ["before", "after"])
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert labels[:2] == ["food", "food, written"]
    figures.save(figure, tmp_path / "map")
    assert (tmp_path / "map.pdf").is_file()


def test_tables_state_the_budget_of_a_search(workplace):
    own = settings(**{"tune.trials": 20, "tune.tuned": ["LLMEDT"]})
    assert "best of 20 trials per model" in budget_note(own, ["LLMEDT"])


def test_domains_with_dollar_signs_are_drawn(tmp_path):
    both = {"tau": "$\\foo$", "metric": "hit@10", "mean": 0.1, "deviation": 0.0}
    drawn = pd.DataFrame({**both, "domain": ["a$\\foo$", "b"]})
    figures.save(figures.curves(drawn, "tau", "metric", "mean over seeds"), tmp_path / "figure.png")


def test_times_that_were_damaged_are_measured_anew(tmp_path, monkeypatch):
    evaluator = SimpleNamespace(ranks=[1, 2])
    trainer = SimpleNamespace(evaluate=lambda *args, **keys: None, evaluator=evaluator)
    monkeypatch.setattr(paper_figures, "run_directory", lambda opened, name: tmp_path)
    monkeypatch.setattr(paper_figures, "open_run", lambda opened, name, run_dir: (None, trainer, None))
    (tmp_path / "speed.json").write_text("[]")
    assert paper_figures.speed_of(None, "SASRec")["users"] == 2
