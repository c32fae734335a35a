"""The report of finished runs: one page that loads nothing, opened in a real browser, and its other forms."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import QUICK, write_tiny

from recbole_edt.cli import run
from recbole_edt.config.settings import load_settings
from recbole_edt.errors import DataError
from recbole_edt.pipeline.manifest import cost_parts, llm_note, made_with
from recbole_edt.render.figures import new, save
from recbole_edt.render.tables import Column, ResultTable, read
from recbole_edt.report import page
from recbole_edt.report.runs import differing_keys, read_runs, runs_over_seeds

OPTIONS = {**QUICK, "epochs": 2, "finetune_epochs": 1}
TINY = ["--dataset=tiny", *(f"--{key}={value}" for key, value in OPTIONS.items())]
EVIL = (
    "</script><script>document.title='broken'</script><img src=x onerror=document.title='broken'>\\input{x} & $x$ _a_ |"
)
LONG = "a-name-that-does-not-end-" * 12


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with four runs, two of them of one model, and an experiment with names of the worst kind."""
    place = tmp_path_factory.mktemp("page")
    write_tiny(place / "atomic_files", "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert run([*TINY, "--models=Pop,SASRec,LLMEDT"]) == 0
        assert run(["train", *TINY, "--model=SASRec", "--learning_rate=0.01"]) == 0
        folder = Path("runs/tiny-experiments/evil")
        columns = ["name", Column(EVIL, "a <b>", 3, "max"), Column("n", "a <b>")]
        rows = [(EVIL, 0.5, 10), (LONG, 0.25, 9), ("no value", None, None), ("small", -1.5, 100)]
        ResultTable(EVIL, EVIL, columns, rows, EVIL, f"python run_edt.py experiment --x={EVIL}").save(folder)
        save(new()[0], folder / "figure.png")
        assert run(["report", *TINY, "--models=Pop,SASRec,LLMEDT"]) == 0
    return place


def report_of(place: Path) -> Path:
    (folder,) = (place / "runs").glob("tiny-*/report")
    return folder


def runs_of(place: Path) -> list[Path]:
    return sorted(path.parent for path in report_of(place).parent.glob("*/result.json"))


@pytest.fixture
def there(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


# ---- what is written ---------------------------------------------------------------------------------------------


def test_the_page_the_tables_and_the_figures_are_all_there(place):
    folder = report_of(place)
    names = {path.stem for path in (folder / "tables").iterdir()}
    assert {"results", "groups", "tests", "models", "data", "settings", "versions"} < names
    assert {path.suffix for path in (folder / "tables").iterdir()} == {".json", ".md", ".csv", ".tex"}
    assert {path.name for path in (folder / "figures").iterdir()} == {
        "results.png", "results.pdf", "curves.png", "curves.pdf"
    }  # fmt: skip
    assert read(folder / "tables/results.json").shown()[0][0].startswith("Pop")


def test_numbers_are_those_of_the_runs_and_runs_of_one_model_are_told_apart(place):
    table = read(report_of(place) / "tables/results.json")
    assert [row[0].rstrip("†") for row in table.rows] == [
        "Pop", "SASRec (learning_rate=0.001)", "SASRec (learning_rate=0.01)", "LLMEDT"
    ]  # fmt: skip
    place_of = [column.heading for column in table.columns].index("overall ndcg@10")
    for folder in runs_of(place):
        result = json.loads((folder / "result.json").read_text())
        assert any(row[place_of] == pytest.approx(result["test"]["ndcg@10"]) for row in table.rows)


def test_the_run_under_the_settings_as_they_are_is_tested_against_all_others(there, tmp_path):
    assert read(report_of(there) / "tables/tests.json").title == "LLMEDT against the others, ndcg@10"
    ResultTable("old", "Of an earlier report", ["a"], [("x",)]).save(tmp_path / "tables", "old")
    (tmp_path / "tables/mine.csv").write_text("a\n")
    assert run(["report", *TINY, "--model=SASRec", "--learning_rate=0.01", f"--output={tmp_path}"]) == 0
    table = read(tmp_path / "tables/tests.json")
    assert table.title == "SASRec (learning_rate=0.01) against the others, ndcg@10"
    assert (tmp_path / "tables/mine.csv").exists() and not list(tmp_path.glob("tables/old.*"))


def test_one_html_file_holds_everything_and_names_no_address_but_its_own(place):
    text = (report_of(place) / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text and text.count("<script>") == 1
    assert text.count("data:image/png;base64,") == 3
    assert not re.search(r"<(link|iframe|object|embed|base|form)\b|url\(|@import|https?://|\son\w+=(?!document)", text)
    assert not re.search(r"(src|href)=\"(?!data:image/png;base64,|#)", text)
    assert EVIL not in text and str(html.escape(EVIL, quote=False)).replace("'", "&#39;") in text


def test_markdown_links_its_figures_and_escapes_names(place):
    folder = report_of(place)
    text = (folder / "report.md").read_text(encoding="utf-8")
    links = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)
    assert len(links) == 3 and all((folder / link).is_file() for link in links)
    obeyed = "\n".join(line for line in text.splitlines() if not line.startswith("    "))  # the rest is code
    assert "<script" not in obeyed and "<img" not in obeyed


def test_figures_of_the_data_have_three_decimals_and_before_stands_ahead_of_after(place):
    rows = read(report_of(place) / "tables/data.json").rows
    names = [name for name, _ in rows]
    assert names.index("mean ratio before") + 1 == names.index("mean ratio after")
    assert all(value == round(value, 3) for _, value in rows if isinstance(value, float))


def test_settings_and_commands_in_markdown_can_be_read_and_run_as_they_stand(place):
    text = (report_of(place) / "report.md").read_text(encoding="utf-8")
    blocks = text.partition("\n## How to reproduce")[0].split("### All settings of ")[1:]
    runs = read_runs([report_of(place).parent], ("Pop", "SASRec", "LLMEDT"))
    for run_, block in zip(runs, blocks, strict=True):
        lines = [line[4:] for line in block.splitlines()[2:] if line.startswith("    ")]
        assert yaml.safe_load("\n".join(lines)) == run_.config
        assert isinstance(run_.config["eval_args"], dict)  # a nested key keeps its indent
    shown = f"    {shlex.join(['python', 'run_edt.py', *TINY, '--models=Pop,SASRec,LLMEDT'])}"
    assert shown in text.splitlines()


def commands_in(report: Path) -> list[list[str]]:
    """The arguments of every command that a report shows."""
    lines = report.read_text(encoding="utf-8").partition("\n## How to reproduce\n")[2].splitlines()
    return [shlex.split(line)[2:] for line in lines if line.startswith("    python run_edt.py")]


def test_the_commands_that_a_report_shows_make_the_same_runs_from_the_raw_data_again(place, tmp_path, monkeypatch):
    commands = commands_in(report_of(place) / "report.md")
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "atomic_files", "tiny")
    for command in sorted(commands, key=lambda command: command[0] == "train"):  # which reads the data of the others
        assert run(command) == 0
    assert [path.name for path in runs_of_all(tmp_path)] == [path.name for path in runs_of(place)]


def runs_of_all(place: Path) -> list[Path]:
    return sorted(path.parent for path in place.glob("runs/*/*/result.json"))


def test_the_keys_of_files_are_kept_with_the_run_for_the_time_when_the_files_have_changed(workplace):
    Path("dataset_configs").mkdir()
    Path("dataset_configs/tiny.yaml").write_text("augment: {k: 7}\nmodel_settings: {SASRec: {epochs: 3}}\n")
    assert run([*TINY, "--augment.tau=0.5", "--model=SASRec"]) == 0
    (folder,) = runs_of_all(workplace)
    given = json.loads((folder / "result.json").read_text())["given"]
    assert given["augment"] == {"k": 7, "n_clusters": 3, "tau": 0.5}
    Path("dataset_configs/tiny.yaml").unlink()
    Path("keys.yaml").write_text(yaml.safe_dump(given))
    assert run(["train", "--dataset=tiny", "--config_files=keys.yaml"]) == 0
    assert runs_of_all(workplace) == [folder]


def test_a_variant_with_rows_of_its_own_has_the_command_of_its_study_and_says_what_its_data_were_made_with(workplace):
    flags = ["ablate", *TINY, "--seeds=1", "--augment.tau=0", "--variants={few: {augment.k: 1, alpha: 0.2}}"]
    assert run(flags) == 0
    folders = runs_of_all(workplace)
    assert run(["report", f"--runs={','.join(map(str, folders))}", "--output=out"]) == 0
    assert commands_in(Path("out/report.md")) == [flags]
    text = Path("out/report.md").read_text(encoding="utf-8").partition("### Settings of the stages before")[2]
    assert {line.strip() for line in text.splitlines() if line.startswith("      k: ")} == {"k: 3", "k: 1"}


def test_a_run_that_kept_no_command_is_given_none(there, tmp_path):
    shutil.copytree(runs_of(there)[0], tmp_path / "run")
    result = json.loads((tmp_path / "run/result.json").read_text())
    del result["command"]
    (tmp_path / "run/result.json").write_text(json.dumps(result))
    assert run(["report", f"--runs={tmp_path}/run", f"--output={tmp_path}/out"]) == 0
    text = (tmp_path / "out/report.md").read_text(encoding="utf-8")
    assert "trained before runs kept their command" in text and commands_in(tmp_path / "out/report.md") == []


def test_the_embedder_that_is_named_is_that_of_the_data(there, tmp_path, monkeypatch):
    shutil.copytree(there / "atomic_files", tmp_path / "atomic_files")
    path = tmp_path / "atomic_files/tiny/embed.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "config": {**manifest["config"], "vectors": "v.itememb"}}))
    settings = load_settings("tiny", [], {"data_path": str(tmp_path / "atomic_files")})
    assert llm_note(settings).endswith("texts embedded by v.itememb")


def test_what_a_language_model_cost_stands_beside_what_the_paper_paid(place, tmp_path):
    shutil.copytree(place / "atomic_files", tmp_path / "atomic_files")
    path = tmp_path / "atomic_files/tiny-edt/augment.json"
    manifest = json.loads(path.read_text())
    used = {"calls": 80, "prompt_tokens": 9000, "completion_tokens": 1000, "cost_usd": 0.02}
    manifest["counts"] |= {"users": 40, "used": {"chat": used, "vectors": {**used, "cost_usd": None}}}
    path.write_text(json.dumps(manifest))
    settings = load_settings("tiny", [], {"data_path": str(tmp_path / "atomic_files")})
    (table,) = cost_parts(settings, {stage: one["counts"] for stage, one in made_with(settings).items()})
    assert [column.heading for column in table.columns][:3] == ["stage", "of", "calls"]
    assert table.shown() == [
        ["augment", "answers", "80", "9,000", "1,000", "0.020000", "0.000500", "0.000194"],
        ["augment", "vectors", "80", "9,000", "1,000", "n/a", "n/a", "n/a"],
    ]


# ---- which runs --------------------------------------------------------------------------------------------------


def test_named_folders_of_runs_make_a_report_elsewhere(there):
    sasrec = [str(path) for path in runs_of(there) if path.name.startswith("SASRec")]
    assert run(["report", f"--runs={','.join(sasrec)}"]) == 0
    table = read(there / "runs/report/tables/results.json")
    assert len(table.rows) == 2 and not (there / "runs/report/tables/tests.json").exists()
    assert len(read_runs([report_of(there).parent])) == 4


def test_runs_without_their_data_are_reported_without_a_data_card(there, tmp_path):
    shutil.copytree(runs_of(there)[0], tmp_path / "run")
    result = json.loads((tmp_path / "run/result.json").read_text())
    result |= {"data_path": str(tmp_path / "gone"), "dataset": "other-edt"}
    (tmp_path / "run/result.json").write_text(json.dumps(result))
    assert run(["report", f"--runs={tmp_path}/run", f"--output={tmp_path}/out"]) == 0
    assert "The data set is not at hand" in (tmp_path / "out/report.md").read_text(encoding="utf-8")


def made_otherwise(folder: Path, stage: str, config: dict, counts: dict) -> None:
    """Let a run note that a stage before it had other settings, and asked something."""
    result = json.loads((folder / "result.json").read_text())
    result["made_with"][stage]["config"] |= config
    result["made_with"][stage]["counts"] |= counts
    (folder / "result.json").write_text(json.dumps(result))


def test_runs_say_themselves_how_their_data_were_made(there, tmp_path):
    pop, sasrec = (next(one for one in runs_of(there) if one.name.startswith(name)) for name in ("Pop", "SASRec"))
    for run_dir in (pop, sasrec):
        shutil.copytree(run_dir, tmp_path / run_dir.name)
    used = {"calls": 80, "prompt_tokens": 9000, "completion_tokens": 1000, "cost_usd": 0.02}
    llm = {"model": "small", "base_url": "http://localhost/v1"}
    keys = {"generator": "llm", "k": 1, "llm": llm}
    made_otherwise(tmp_path / sasrec.name, "augment", keys, {"asked": 80, "failed": {}, "used": {"chat": used}})
    for gone in (tmp_path / pop.name, tmp_path / sasrec.name):  # nothing but the runs was copied
        result = json.loads((gone / "result.json").read_text())
        (gone / "result.json").write_text(json.dumps({**result, "data_path": str(tmp_path / "gone")}))
    assert run(["report", f"--runs={tmp_path}", f"--output={tmp_path}/out"]) == 0
    text = (tmp_path / "out/report.md").read_text(encoding="utf-8")
    assert "Pop: offline: no LLM was called; items proposed by co-occurrence" in text
    assert "SASRec: LLM: items written by small, profiles made of telling words" in text
    assert read(tmp_path / "out/tables/cost-1.json").rows[0][:3] == ("augment", "answers", 80)
    blocks = text.split("### Settings of the stages before training: ")[1:]
    assert [block.partition("\n")[0] for block in blocks] == ["SASRec", "Pop"]
    for block, told in zip(blocks, (True, False), strict=True):
        assert list(yaml.safe_load(block.partition("\n\n")[2].partition("## ")[0])) == [
            "embed", "augment", "profile"
        ]  # fmt: skip
        assert told == ("model: small" in block)


def test_runs_of_data_that_nobody_noted_are_no_proof_that_no_model_was_called(there, tmp_path):
    shutil.copytree(runs_of(there)[0], tmp_path / "run")
    result = json.loads((tmp_path / "run/result.json").read_text())
    del result["made_with"]  # as runs were before
    settings = load_settings("tiny")
    (tmp_path / "run/result.json").write_text(json.dumps(result))
    runs = read_runs([tmp_path / "run"])
    assert page._written(runs, settings) == "not known how rows and profiles were made"
    assert list(page._cost(runs, settings)) == ["It is not known whether a language model was called."]


def test_runs_of_other_candidates_are_refused_and_named(there, tmp_path, capsys):
    one, other = runs_of(there)[:2]
    shutil.copytree(other, tmp_path / "other")
    about = json.loads((tmp_path / "other/ranks.json").read_text())
    (tmp_path / "other/ranks.json").write_text(json.dumps({**about, "candidates_hash": "other"}))
    assert run(["report", f"--runs={one},{tmp_path}/other"]) == 1
    error = capsys.readouterr().err
    assert "differ in candidates_hash" in error and str(tmp_path / "other") in error


def test_folders_without_runs_and_models_for_production_are_refused_all_at_once(there, tmp_path):
    full = tmp_path / "all-data"
    shutil.copytree(runs_of(there)[0], full)
    result = json.loads((full / "result.json").read_text())
    (full / "result.json").write_text(json.dumps({**result, "trained_on": "everything"}))
    with pytest.raises(DataError, match="(?s)nothing: no finished run.*can be compared with nothing"):
        read_runs([tmp_path / "nothing", full])


def test_runs_over_the_same_seeds_get_their_means_and_are_tested_by_them(there, tmp_path):
    for model in ("Pop", "LLMEDT"):
        source = next(path for path in runs_of(there) if path.name.startswith(model))
        for seed in (42, 44):
            shutil.copytree(source, tmp_path / f"{model}-{seed}")
            path = tmp_path / f"{model}-{seed}/config.yaml"
            path.write_text(re.sub(r"(?m)^seed: .*$", f"seed: {seed}", path.read_text()))
    runs = read_runs([tmp_path])
    assert [one.name for one in runs] == ["LLMEDT (seed=42)", "LLMEDT (seed=44)", "Pop (seed=42)", "Pop (seed=44)"]
    assert list(runs_over_seeds(runs)) == ["LLMEDT", "Pop"] and runs_over_seeds(runs[:3]) == {}
    assert run(["report", f"--runs={tmp_path}", f"--output={tmp_path}/out"]) == 0
    assert read(tmp_path / "out/tables/means.json").shown()[0][1].endswith("± 0.0000")
    tests = read(tmp_path / "out/tables/tests.json")
    assert tests.title == "LLMEDT against the others, ndcg@10, each user's mean over seeds" and len(tests.rows) == 3


def test_runs_that_read_other_rows_are_no_seeds_of_one_model(there, tmp_path):
    source = next(path for path in runs_of(there) if path.name.startswith("LLMEDT"))
    for seed in (42, 44):
        folder = tmp_path / f"LLMEDT-{seed}"
        shutil.copytree(source, folder)
        path = folder / "config.yaml"
        path.write_text(re.sub(r"(?m)^seed: .*$", f"seed: {seed}", path.read_text()))
    assert len(runs_over_seeds(read_runs([tmp_path]))["LLMEDT"]) == 2
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**result, "artefacts_hash": "0123456789abcdef"}))
    runs = read_runs([tmp_path])
    assert runs_over_seeds(runs) == {} and differing_keys(runs) == ["seed", "artefacts"]
    assert runs[1].name == "LLMEDT (seed=44, artefacts=01234567)"


def many_runs(there: Path, folder: Path, seeds: tuple[int, ...]) -> None:
    """Runs of twelve learning rates and these seeds in the folder: SASRec, the lower the rate the better, and LLMEDT,
    which ranks as badly as the worst of them and lacks only seeds of its own."""
    for number in range(12):
        model = "SASRec" if number else "LLMEDT"
        source = next(path for path in runs_of(there) if path.name.startswith(model))
        for seed in seeds:
            copy = folder / f"{model}-{number:02}-{seed}"
            shutil.copytree(source, copy)
            text = re.sub(r"(?m)^learning_rate: .*\n", "", (copy / "config.yaml").read_text())
            text = re.sub(r"(?m)^seed: .*$", f"seed: {seed}", text)
            (copy / "config.yaml").write_text(f"{text}\nlearning_rate: {number / 100}\n")
            ranks = pd.read_csv(copy / "ranks.csv").assign(tied=0)
            ranks["higher"] = (ranks.index % 2) * 50 + (number - 1 if number else 11)
            ranks.to_csv(copy / "ranks.csv", index=False)


def drawn_in(monkeypatch) -> list[list[str]]:
    """Names of the runs of every figure that a report draws from now on."""
    drawn: list[list[str]] = []
    for module, name in ((page, "plot_results"), (page, "plot_curves")):
        draw = getattr(module, name)

        def keep(results, path, draw=draw):
            drawn.append([one.name for one in results])
            draw(results[:1], path)

        monkeypatch.setattr(module, name, keep)
    return drawn


def test_of_more_than_ten_runs_figures_and_tests_show_the_best_and_the_reference(there, tmp_path, monkeypatch):
    many_runs(there, tmp_path / "many", (42,))
    drawn = drawn_in(monkeypatch)
    order = "--models=LLMEDT,SASRec"
    assert run(["report", f"--runs={tmp_path}/many", f"--output={tmp_path}/out", order]) == 0
    best = ["LLMEDT", *(f"SASRec (learning_rate={number / 100})" for number in range(1, 10))]
    assert drawn == [best, best]
    tests = read(tmp_path / "out/tables/tests.json")
    assert list(dict.fromkeys(row[0] for row in tests.rows)) == best[1:]
    assert tests.note.endswith(" The others are the 9 of 11 with the highest ndcg@10.")
    assert len(read(tmp_path / "out/tables/results.json").rows) == 12
    said = "Of 12 runs, figures and tests show LLMEDT and the 9 others with the highest ndcg@10; tables of results have"
    assert said in (tmp_path / "out/report.html").read_text(encoding="utf-8")


def test_of_many_runs_over_seeds_the_first_seed_is_drawn_and_groups_are_tested(there, tmp_path, monkeypatch):
    many_runs(there, tmp_path, (42, 44))
    drawn = drawn_in(monkeypatch)
    runs = read_runs([tmp_path], ("LLMEDT",))
    shown = page.contents(runs, runs[1].name, load_settings("tiny"), [], tmp_path / "out")
    assert runs[1].name == "LLMEDT (seed=44)" and len(drawn[0]) == 10
    assert drawn[0][0] == "LLMEDT (seed=42)" and all("seed=42" in name for name in drawn[0])
    (tests,) = next(section.parts for section in shown.sections if section.title == "Significance")
    assert tests.title == "LLMEDT against the others, ndcg@10, each user's mean over seeds"
    assert len({row[0] for row in tests.rows}) == 9
    assert shown.lines[-1].startswith("Of 12 groups of seeds, figures and tests show LLMEDT and the 9 others with the ")
    half = [one for one in runs if one.config["learning_rate"] < 0.06]
    shown = page.contents(half, None, load_settings("tiny"), [], tmp_path / "out")
    assert shown.lines[-1].startswith("Of 12 runs, figures show those with the first seed; ") and len(drawn[-1]) == 6
    assert page._left_out(12, 12, None).startswith("Of 12 runs, figures show the 10 with the highest ndcg@10; ")
    assert page._left_out(10, 10, "LLMEDT") == page._left_out(10, 5, None) == ""


def test_a_result_that_lacks_something_is_named(there, tmp_path):
    shutil.copytree(runs_of(there)[0], tmp_path / "run")
    result = json.loads((tmp_path / "run/result.json").read_text())
    (tmp_path / "run/result.json").write_text(json.dumps({"model": result["model"], "dataset": "tiny-edt"}))
    with pytest.raises(DataError, match=r"run/result.json: lacks data_path, settings, phases, .*delete its folder"):
        read_runs([tmp_path / "run"])


def test_copies_of_a_run_are_named_by_their_folders_and_never_by_a_whole_path(there, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(runs_of(there)[0], tmp_path / name / "run")
    names = [one.name for one in read_runs([tmp_path / "one", tmp_path / "two"])]
    assert names == ["one/run", "two/run"]


def test_an_experiments_folder_of_another_data_set_is_left_alone(tmp_path):
    table = ResultTable("t", "T", ["a"], [("x",)])
    for name in ("tiny-experiments/one", "tiny-more-experiments/one", "tiny-tuning-0123abcd", "tiny-01234567/x"):
        table.save(tmp_path / name)
    (tmp_path / "tiny-experiments/empty").mkdir()
    (tmp_path / "tiny-experiments/empty/list.json").write_text('[{"columns": 1}]')
    settings = load_settings("tiny", [], {"runs_path": str(tmp_path)})
    found = [path.relative_to(tmp_path).as_posix() for path in page.experiment_folders(settings)]
    assert found == ["tiny-experiments/one", "tiny-tuning-0123abcd"]


def test_tables_of_one_study_that_share_a_name_are_both_in_the_report(tmp_path):
    table = ResultTable("tests", "T", ["a"], [("x",)])
    for stem in ("tests-GRU4Rec", "tests-BERT4Rec"):
        table.save(tmp_path / "table9", stem)
    names = [part.name for part in page._experiment(tmp_path / "table9").parts]
    assert names == ["table9-tests-bert4rec", "table9-tests-gru4rec"]
    table.save(tmp_path / "cost")
    assert page._experiment(tmp_path / "cost").anchor == "experiment-cost"  # there is a section Cost, too


def test_runs_that_many_settings_tell_apart_have_the_names_of_their_experiment(workplace):
    keys = {"alpha": 0, "finetune_epochs": 0, "use_generated": False, "item_representation": "id"}
    variants = json.dumps({"plain": keys, "the same": {**keys, "adapter_size": 3}})
    assert run(["ablate", *TINY, "--model=LLMEDT", "--seeds=42", f"--variants={variants}"]) == 0
    assert run(["report", *TINY]) == 0
    (folder,) = Path("runs").glob("tiny-*/report")
    names = {row[0].rstrip("†") for row in read(folder / "tables/results.json").rows}
    assert names == {"LLMEDT (LLM-EDT)", "LLMEDT (plain)", "LLMEDT (the same)"}
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "## Variants of LLMEDT on tiny, leave-one-out, test targets, seed 42: 40 users, candidates: all" in text
    next(Path("runs").glob("tiny-ablation-*/ablation.csv")).write_text("seed\n1\n")
    with pytest.raises(DataError, match=r"ablation\.csv: not a table of runs .*; delete it, or its folder"):
        page.make(load_settings("tiny", [], OPTIONS), print)


def test_a_damaged_table_of_an_experiment_is_named(there, tmp_path):
    table = ResultTable("t", "T", ["a"], [("x",)])
    table.save(tmp_path)
    text = (tmp_path / "table.json").read_text().replace('"x"', "{}")
    (tmp_path / "table.json").write_text(text)
    with pytest.raises(DataError, match="table.json: no table of results"):
        page._experiment(tmp_path)


# ---- in a browser ------------------------------------------------------------------------------------------------

TABLE = "document.querySelector('table#table-results')"
EVIL_TABLE = "document.querySelector('section#experiment-evil table')"


def column(table: str, place: int) -> str:
    return f"Array.from({table}.tBodies[0].rows).map(row => row.cells[{place}].textContent)"


def test_the_browser_loads_one_file_and_has_nothing_to_complain_about(place, browser):
    browser.open(report_of(place) / "report.html")
    assert [url[:5] for url in browser.requests() if not url.startswith("data:image/png")] == ["file:"]
    assert browser.complaints() == []
    assert browser.evaluate("document.title") == "tiny: 4 runs"
    assert browser.evaluate("Array.from(document.images).every(image => image.naturalWidth > 300 && image.alt)")


def test_names_from_data_are_text_and_nothing_else(place, browser):
    browser.open(report_of(place) / "report.html")
    assert browser.evaluate("document.querySelectorAll('script').length") == 1
    assert browser.evaluate(f"{EVIL_TABLE}.tBodies[0].rows[0].cells[0].textContent") == EVIL
    assert browser.evaluate("document.querySelector('section#experiment-evil h2').textContent") == EVIL
    assert "broken" not in browser.evaluate("document.title")


def test_a_click_sorts_numbers_and_what_is_missing_stays_last(place, browser):
    browser.open(report_of(place) / "report.html")
    click = f"{EVIL_TABLE}.querySelector('button[data-place=\"2\"]').click()"
    orders = []
    for _ in range(3):
        browser.evaluate(click)
        orders.append(browser.evaluate(column(EVIL_TABLE, 2)))
    assert orders == [["100", "10", "9", "n/a"], ["9", "10", "100", "n/a"], ["100", "10", "9", "n/a"]]
    assert browser.evaluate(f"{EVIL_TABLE}.querySelectorAll('[aria-sort=descending]').length") == 1
    browser.evaluate(f"{EVIL_TABLE}.querySelector('button[data-place=\"0\"]').click()")
    assert browser.evaluate(column(EVIL_TABLE, 0))[-1] == "small"
    assert browser.evaluate(column(TABLE, 0))[0].startswith("Pop")  # another table stays as it is


def test_the_keyboard_alone_sorts_too(place, browser):
    browser.open(report_of(place) / "report.html")
    browser.evaluate(f"{TABLE}.querySelector('button[data-place=\"0\"]').focus()")
    browser.press("Tab")
    assert browser.evaluate("document.activeElement.dataset.place") == "1"
    for key in ("Enter", " "):
        browser.press(key)
    values = [float(text) for text in browser.evaluate(column(TABLE, 1))]
    assert values == sorted(values) and len(set(values)) > 1
    assert browser.evaluate("document.activeElement.parentElement.getAttribute('aria-sort')") == "ascending"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_it_fits_narrow_and_wide_windows_and_can_be_read_in_light_and_dark(place, browser, scheme, width):
    browser.open(report_of(place) / "report.html", width, 900, scheme)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    colours = browser.evaluate(
        "['color', 'backgroundColor'].map(key => getComputedStyle(document.body)[key].match(/\\d+/g).map(Number))"
    )
    assert contrast(*colours) > 7
    best = browser.evaluate(f"getComputedStyle({TABLE}.querySelector('strong')).color.match(/\\d+/g).map(Number)")
    cell = browser.evaluate(
        "getComputedStyle(document.querySelector('.card')).backgroundColor.match(/\\d+/g).map(Number)"
    )
    assert contrast(best, cell) > 4.5


def contrast(one: list[float], other: list[float]) -> float:
    """Contrast ratio of two colours as WCAG 2 defines it."""

    def luminance(colour: list[float]) -> float:
        parts = [value / 255 for value in colour[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
