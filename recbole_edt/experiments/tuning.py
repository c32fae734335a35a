"""The search for hyper-parameters: every model gets the same number of trials, judged on validation alone.

A trial is a training that never ranks a test target. Optuna proposes the values and keeps them in a file, so that
a search which is stopped goes on, in the middle of a training too, and ends as if it had not been.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

import recbole_edt
from recbole_edt.config.recbole_config import check_model, model_values
from recbole_edt.config.recbole_keys import RUN_DEFAULTS, is_model, near_model
from recbole_edt.config.settings import BEST_OF, Settings, default_of, with_keys
from recbole_edt.data.split import catalogue_hash
from recbole_edt.errors import ConfigError, DataError, EDTError, LLMError
from recbole_edt.evaluate import results
from recbole_edt.experiments import ablation, compare
from recbole_edt.files import library_versions, read_file, read_json, sha256_of, write_json, write_safely, write_text
from recbole_edt.pipeline import stages
from recbole_edt.pipeline.model_access import llm_identity
from recbole_edt.render import console, figures
from recbole_edt.render.tables import Column, ResultTable
from recbole_edt.train import comparison
from recbole_edt.train.run import validate_model

SPACES = Path(__file__).parent / "spaces"
ANY = "default"
"""Heading of a space file for the models that it does not name."""
DATA_GROUPS = ("augment", "profile")
"""Groups whose keys change rows or profiles, and so other models too."""
COLUMNS = ("model", "trial", "state", "score", "best", "epochs", "seconds", "note")
DONE, REPEAT, FAILED, OPEN = "done", "repeat", "failed", "unfinished"
"""State of a trial; a repeat has the values of an earlier one, and its score."""

Space = dict[str, Any]
"""What to search, by key: a list of values, or a range ``{low, high}``, perhaps with ``log`` or ``step``."""

# ---- what is searched --------------------------------------------------------------------------------------------


def models_of(settings: Settings) -> tuple[str, ...]:
    """The models to tune: ``model`` if it was given, else all of ``models``."""
    return (settings.model,) if "model" in settings.given else settings.models


def read_space(settings: Settings, models: Sequence[str]) -> dict[str, Space]:
    """The space of each model.

    Raises: ConfigError listing every range that is none, and every value that a model does not take.
    """
    path = space_path(settings)
    content = read_file(path)
    faults = [
        f"{path}: {model}: expected keys below it, found {keys!r}"
        for model, keys in content.items()
        if not isinstance(keys, Mapping | None)
    ]
    unknown = [model for model in content if model != ANY and not is_model(model)]
    faults += [f"{path}: unknown model '{model}'{near_model(model)}" for model in unknown]
    if not faults:
        spaces = {model: dict(_named(path, content, model)) for model in models}
        faults = [fault for model, space in spaces.items() for fault in _faults(settings, path, model, space)]
    if faults:
        raise ConfigError("\n".join(dict.fromkeys(faults)))
    return spaces


def space_path(settings: Settings) -> Path:
    """The file with the spaces: one of ours by its name, or the user's."""
    own = SPACES / f"{Path(settings.tune.space).name}.yaml"
    return own if own.stem == settings.tune.space and own.is_file() else Path(settings.tune.space)


def _named(path: Path, content: Mapping[str, Any], model: str) -> Mapping[str, Any]:
    if model not in content and ANY not in content:
        raise ConfigError(f"{path} has no space for {model}; add it, or '{ANY}' for all models not named")
    keys = content.get(model, content.get(ANY)) or {}
    return dict(ablation.flat(keys, stop=_is_range))


def _is_range(value: Any) -> bool:
    return isinstance(value, Mapping) and "low" in value


def _faults(settings: Settings, path: Path, model: str, space: Space) -> Iterator[str]:
    for key, values in space.items():
        where = f"{path}: {model}: {key}"
        if key == "valid_metric":
            yield f"{where} is what trials are judged by, and cannot be searched"
        elif key.partition(".")[0] in DATA_GROUPS and model != "LLMEDT":
            yield f"{where} changes the rows of all models; search it for LLMEDT"
        elif key in COLUMNS:
            yield f"{where} is a column of trials.csv, and cannot be searched; stopping_step ends a training in time"
        elif problem := _range_problem(values) if _is_range(values) else _list_problem(values):
            yield f"{where}: {problem}"
        else:
            for value in _ends(values) if _is_range(values) else values:
                try:
                    check_model(_settings(settings, model, {key: value}), model)
                except ConfigError as error:
                    yield from str(error).splitlines()


def _ends(values: Mapping[str, Any]) -> list[Any]:
    """The ends of a range, and what lies a step above the lower one."""
    step = [values["low"] + values["step"]] if "step" in values else []
    return [values["low"], values["high"], *(one for one in step if one <= values["high"])]


def _list_problem(values: Any) -> str:
    good = isinstance(values, list) and values and all(isinstance(one, str | int | float) for one in values)
    # Neither Optuna's grid (1 is 1.0) nor a table (0.5 is "0.5") tells all values apart.
    if not good or min(len(set(values)), len({str(one) for one in values})) < len(values):
        return f"expected different values such as [0.1, 0.3], or a range {{low: 0.1, high: 0.5}}, found {values!r}"
    return ""


def _range_problem(values: Mapping[str, Any]) -> str:
    if unknown := set(values) - {"low", "high", "log", "step"}:
        return f"a range has low, high, log and step, not {', '.join(sorted(unknown))}"
    low, high, step = values["low"], values.get("high", ""), values.get("step", 1)
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in (low, high, step)):
        return f"low, high and step are numbers, found {dict(values)!r}"
    if not -math.inf < low < high < math.inf:
        return f"low must be below high, found {dict(values)!r}"
    if values.get("log") not in (None, True, False) or (values.get("log") and (low <= 0 or "step" in values)):
        return f"log is true or false, and true goes with low above 0 and no step, found {dict(values)!r}"
    return "" if step > 0 else f"step must be above 0, found {dict(values)!r}"


def _settings(settings: Settings, model: str, values: Mapping[str, Any]) -> Settings:
    """The settings of one trial."""
    own = with_keys(settings, {"model": model}, "models to tune")
    return ablation.settings_of(own, f"{model} in {settings.tune.space}", values, comparison.seed_of(settings))


# ---- the search --------------------------------------------------------------------------------------------------


def tune(settings: Settings, say: stages.Say) -> None:
    """Search for every model; print and write trials, the best values and how they were found.

    Raises: ConfigError without a budget, without Optuna, or for a space that does not fit; before any work.
    """
    import_optuna()
    budget = settings.tune.trials
    if budget is None:
        raise ConfigError("tune needs --trials=N: how many trials each model gets, the same for all")
    models = models_of(settings)
    for model in models:
        check_model(settings, model)
    spaces = read_space(settings, models)
    settings = with_keys(settings, {"models": list(models)}, "models to tune")
    laboratory = compare.Laboratory(settings, say)
    folder = search_folder(laboratory)
    for model in models:
        search(laboratory, folder / model, spaces[model], budget, say)
    write_results(settings, folder, budget, say)


def import_optuna() -> Any:
    """Optuna, which only this stage needs.

    Raises: ConfigError that says how to install it.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(f"tune needs Optuna ({error}): pip install optuna") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def search_folder(laboratory: compare.Laboratory) -> Path:
    """Where a search lives: named after all that its trials have in common, but not after models and budget.

    Its ``search.json`` says what that is.
    """
    settings, base = laboratory.settings, laboratory.base
    shared = {"recbole": settings.recbole, "model_settings": settings.model_settings}
    content = read_file(space_path(settings))
    groups = {str(key).partition(".")[0] for keys in content.values() for key in keys or ()}
    # What trials with rows of their own start from; rows that no trial changes are in the augmented files.
    start = [asdict(settings.augment), asdict(settings.profile)] if groups & {*DATA_GROUPS} else []
    key = sha256_of(
        base.split_hash,
        catalogue_hash(base.dataset.source),
        *stages.augmented_files(settings),
        settings.given.get("profile"),
        llm_identity(settings),
        settings.candidates,
        base.seen_items,
        shared,
        content,
        settings.tune.seed,
        recbole_edt.__version__,
        *start,
    )
    folder = settings.runs_path / f"{settings.dataset}-tuning-{key[:8]}"
    about = {"split_hash": base.split_hash, "candidates": settings.candidates, "seed": comparison.seed_of(settings)}
    about |= {"seen_items": base.seen_items, "sampler_seed": settings.tune.seed}
    about |= {"versions": library_versions(), **shared}
    write_json(folder / "search.json", about)
    return folder


def search(laboratory: compare.Laboratory, folder: Path, space: Space, budget: int, say: stages.Say) -> None:
    """Run the trials of one model that are still to be run, up to ``budget`` in all; ``folder`` is named after it.

    Every trial has a sampler of its own, seeded by its number: what is proposed depends on the trials before it and
    not on how often the search was stopped. Of a space with no more combinations than trials each is tried once, in
    an order that the seed decides.
    """
    optuna = import_optuna()
    study = _study(optuna, folder)
    write_json(folder / "space.json", space)
    grid = _shuffled_grid(laboratory.settings, folder.name, space, budget)
    _write_trials(trials_table(study, folder, space), folder)  # a kill may have come between a trial and its row
    while True:
        begun = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
        if begun and set(begun[0].params) != set(space):  # a kill came before it had its values: it never was a trial
            study.tell(begun[0].number, state=optuna.trial.TrialState.FAIL)
            continue
        if begun:
            number, values = begun[0].number, dict(begun[0].params)
        elif n_missing(_tried(study, space), space, budget):
            number, values = _ask(optuna, study, laboratory.settings, space, grid)
        else:
            break
        score = _run_trial(laboratory, study, folder, number, values)
        study.tell(number, score, None if score is not None else optuna.trial.TrialState.FAIL)
        table = trials_table(study, folder, space)
        say(_line(table[table["trial"] == number + 1].iloc[0], space, budget))
        _write_trials(table, folder)


def _write_trials(table: pd.DataFrame, folder: Path) -> None:
    with write_safely(folder / "trials.csv") as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def _study(optuna: Any, folder: Path) -> Any:
    """The study of one model, from its file if there is one."""
    from sqlalchemy.engine import URL

    path = folder / "study.sqlite"
    folder.mkdir(parents=True, exist_ok=True)
    url = URL.create("sqlite", database=str(path)).render_as_string()
    try:
        return optuna.create_study(storage=url, study_name=folder.name, direction="maximize", load_if_exists=True)
    except Exception as error:  # SQLAlchemy and Optuna raise many kinds for a damaged file
        problem = str(error).partition("\n")[0]
        raise DataError(f"{path} cannot be used ({problem}); delete the folder {folder} to search anew") from None


def n_combinations(space: Space) -> float:
    """How many different trials there can be; infinite with a range."""
    return math.inf if any(map(_is_range, space.values())) else math.prod(map(len, space.values()))


def n_missing(tried: Sequence[Mapping[str, Any]], space: Space, budget: int) -> int:
    """How many trials of the budget are still to come; none once all combinations were tried."""
    distinct = len({str(sorted(one.items())) for one in tried})
    return max(0, int(min(budget - len(tried), n_combinations(space) - distinct)))


def _tried(study: Any, space: Space) -> list[dict[str, Any]]:
    """The values of every trial that has them all; one that waits has none yet."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name != "WAITING"]
    return [trial.params for trial in trials if set(trial.params) == set(space)]


def _shuffled_grid(settings: Settings, model: str, space: Space, budget: int) -> list[dict[str, Any]]:
    """All combinations of a space with no more of them than trials, in the order of the trials; else empty."""
    if n_combinations(space) > budget:
        return []
    grid = [dict(zip(space, one, strict=True)) for one in itertools.product(*space.values())]
    return [grid[place] for place in np.random.default_rng(_seed(settings, model, 0)).permutation(len(grid))]


def _ask(
    optuna: Any, study: Any, settings: Settings, space: Space, grid: Sequence[dict[str, Any]]
) -> tuple[int, dict[str, Any]]:
    """Number and values of the next trial, which the study holds from now on."""
    model, tried, waiting = study.study_name, _tried(study, space), (optuna.trial.TrialState.WAITING,)
    if grid and not study.get_trials(deepcopy=False, states=waiting):  # a kill may have left one
        study.enqueue_trial(next(values for values in grid if values not in tried))
    study.sampler = optuna.samplers.TPESampler(seed=_seed(settings, model, len(tried)))
    kinds = {key: _distribution(optuna, values, default_of(model, key)) for key, values in space.items()}
    try:
        trial = study.ask(kinds)
    except ValueError as error:  # what Optuna raises for a key that it holds values of another kind of
        problem = f"was begun by a version that took a range for another kind of numbers ({error})"
        raise DataError(f"the search for {model} {problem}; delete its folder to search anew") from None
    return trial.number, dict(trial.params)


def _seed(settings: Settings, model: str, number: int) -> int:
    return int(sha256_of(settings.tune.seed, model, number)[:8], 16)


def _distribution(optuna: Any, values: Any, default: Any) -> Any:
    """Optuna's; a range of whole numbers has fractions too, unless the key's default is a whole number."""
    if not _is_range(values):
        return optuna.distributions.CategoricalDistribution(values)
    if all(isinstance(one, int) for one in values.values()) and isinstance(default, int | None):
        return optuna.distributions.IntDistribution(**values)
    as_float = {key: one if isinstance(one, bool) else float(one) for key, one in values.items()}
    return optuna.distributions.FloatDistribution(**as_float)


def _run_trial(
    laboratory: compare.Laboratory, study: Any, folder: Path, number: int, values: dict[str, Any]
) -> float | None:
    """The validation score of one trial; None if its training failed, which its ``failed.json`` explains."""
    earlier = _earlier(study, number, values)
    if earlier is not None:
        return earlier.value
    model, run_dir = folder.name, trial_folder(folder, number)
    try:
        own = _settings(laboratory.settings, model, values)
        check_model(own, model)  # values that fit one by one need not fit together
        experiment = laboratory.experiment(own)
        return float(validate_model(experiment, model, run_dir)["score"])
    except (DataError, LLMError):
        raise  # no fault of the values
    except (EDTError, torch.cuda.OutOfMemoryError) as error:
        note = str(error)
    write_json(run_dir / "failed.json", {"note": " ".join(note.split())})
    return None


def trial_folder(folder: Path, number: int) -> Path:
    """Where a trial's training is logged; people count from 1, Optuna from 0."""
    return folder / f"trial-{number + 1:04d}"


def _earlier(study: Any, number: int, values: Mapping[str, Any]) -> Any:
    """The first trial with the same values, if it came before and is finished."""
    for trial in study.get_trials(deepcopy=False)[:number]:
        if trial.params == values and trial.state.is_finished():
            return trial
    return None


# ---- what was found ----------------------------------------------------------------------------------------------


def trials_table(study: Any, folder: Path, space: Space) -> pd.DataFrame:
    """One row per trial that has its values, in the order of their numbers; ``best`` is the best score so far."""
    rows, best = [], float("nan")
    for trial in study.get_trials(deepcopy=False):
        if set(trial.params) != set(space):
            continue
        score = float("nan") if trial.value is None else trial.value
        best = float(np.fmax(best, score))
        row = {"model": folder.name, "trial": trial.number + 1, "score": score, "best": best}
        earlier = _earlier(study, trial.number, trial.params)
        rows.append({**row, **_about(trial, earlier, trial_folder(folder, trial.number)), **trial.params})
    return pd.DataFrame(rows, columns=[*COLUMNS, *space])


def _about(trial: Any, earlier: Any, run_dir: Path) -> dict[str, Any]:
    """State, epochs, seconds and note of a trial."""
    if not trial.state.is_finished():
        return {"state": OPEN}
    if earlier is not None:
        return {"state": REPEAT, "epochs": 0, "seconds": 0.0, "note": f"the values of trial {earlier.number + 1}"}
    if trial.value is None:
        return {"state": FAILED, "note": read_json(run_dir / "failed.json")["note"]}
    run = read_json(run_dir / "valid.json")
    endings = [phase["ended_by"] for phase in run["phases"]]
    note = results.EPOCH_CAP if results.EPOCH_CAP in endings else endings[-1]
    return {"state": DONE, "epochs": run["epochs"], "seconds": run["seconds"], "note": note}


def _line(row: Any, space: Space, budget: int) -> str:
    values = ", ".join(f"{key} {_short(row[key])}" for key in space)
    place = f"{row['model']}, trial {row['trial']} of {int(min(budget, n_combinations(space)))}"
    place += f" ({values})" if values else ""
    if row["state"] == FAILED:
        return f"{place}: failed, {row['note']}"
    cost = f"{row['epochs']:.0f} epochs, {row['seconds']:.0f} s, " if row["state"] == DONE else ""
    return f"{place}: {row['score']:.4f} on validation, best {row['best']:.4f}; {cost}{row['note']}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def read_trials(folder: Path) -> dict[str, pd.DataFrame]:
    """The trials of every model of a search, by model; from Optuna's file, where values keep their types."""
    optuna = import_optuna()
    models = [path.parent for path in sorted(folder.glob("*/space.json"))]
    return {one.name: trials_table(_study(optuna, one), one, read_json(one / "space.json")) for one in models}


def complete(tables: Mapping[str, pd.DataFrame], spaces: Mapping[str, Space], budget: int) -> dict[str, pd.DataFrame]:
    """The first ``budget`` trials of every model that has had them all, one of them with a score."""
    found = {}
    for model, table in tables.items():
        first = table.iloc[:budget]
        tried = [{key: first[key].iloc[place] for key in spaces[model]} for place in range(len(first))]
        if not n_missing(tried, spaces[model], budget) and OPEN not in set(first["state"]):
            found[model] = first
    return {model: table for model, table in found.items() if table["score"].notna().any()}


def best_values(table: pd.DataFrame) -> dict[str, Any]:
    """The values of the first of the best trials by key, as plain Python values."""
    best = table.iloc[[best_row(table)]]
    return {key: best[key].tolist()[0] for key in table.columns if key not in COLUMNS}


def best_row(table: pd.DataFrame) -> int:
    """Place of the first of the best trials."""
    return int(np.nanargmax(table["score"].to_numpy(float)))


def best_yaml(tables: Mapping[str, pd.DataFrame], budget: int, settings: Settings) -> str:
    """The best values of every model as a configuration file."""
    own: dict[str, dict[str, Any]] = {}
    shared: dict[str, Any] = {}
    for model, table in tables.items():
        for key, value in best_values(table).items():
            group, _, name = key.partition(".")
            if group in DATA_GROUPS:
                shared.setdefault(group, {})[name] = value
            else:
                own.setdefault(model, {})[key] = value
    content = {"tune": {"trials": budget, "tuned": sorted(tables)}, **shared, "model_settings": own}
    heading = f"# {settings.dataset}: {BEST_OF.format(budget)}, with\n# {' '.join(settings.command.split())}\n\n"
    return heading + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def tuning_table(tables: Mapping[str, pd.DataFrame], budget: int, settings: Settings, metric: str) -> ResultTable:
    """One row per model: its trials, the best validation score and the values that gave it."""
    rows: list[tuple[Any, ...]] = []
    for model, table in tables.items():
        states = table["state"].value_counts()
        counts = [len(table), *(int(states.get(state, 0)) for state in (REPEAT, FAILED))]
        scores, best = table["score"].to_numpy(float), best_row(table)
        values = ", ".join(f"{key}={_short(value)}" for key, value in best_values(table).items())
        found = scores[best], best + 1, table["seconds"].sum() / 3600
        rows.append((model, *counts, *found, values or "nothing to search"))
    columns = [Column("model"), Column("trials"), Column("repeats"), Column("failed")]
    columns += [Column(f"best validation {metric}", decimals=4), Column("at trial"), Column("training (h)", decimals=2)]
    note = (
        f"Every model has a budget of {budget} trials; a space with fewer combinations is tried whole. A repeat has "
        "the values of an earlier trial and is not trained again. Test targets are not ranked during the search."
    )
    title = f"{settings.dataset}: {BEST_OF.format(budget)}"
    return ResultTable("tuning", title, (*columns, Column("values")), tuple(rows), note, settings.command)


def write_results(settings: Settings, folder: Path, budget: int, say: stages.Say) -> None:
    """The table of all models, figures, and the configuration with the best values."""
    tables = read_trials(folder)
    spaces = {model: read_json(folder / model / "space.json") for model in tables}
    full = complete(tables, spaces, budget)
    for model in set(tables) - set(full):
        say(f"note: {model} has not had {budget} trials with a score, and is left out; tune it with --models={model}")
    if not full:
        return
    metric = str(model_values(settings, next(iter(full))).get("valid_metric", RUN_DEFAULTS["valid_metric"])).lower()
    table = tuning_table(full, budget, settings, metric)
    table.save(folder, "tuning")
    figures.save(draw_history(full, metric), folder / "tuning.png")
    for model, trials in full.items():
        if spaces[model]:
            figures.save(draw_values(model, trials, spaces[model], metric), folder / model / "values.png")
    write_text(folder / "best.yaml", best_yaml(full, budget, settings))
    console.print_result(table)
    say(f"trials, table and figure: {folder}")
    say(f"best values, to be given as --config_files: {folder / 'best.yaml'}")


def draw_history(tables: Mapping[str, pd.DataFrame], metric: str) -> Any:
    """Validation score of every trial, and the best so far as a step line, by model."""
    figure, axes = figures.new()
    for number, (model, table) in enumerate(tables.items()):
        style = figures.line(number)
        x = table["trial"]
        axes.scatter(x, table["score"], s=18, marker=style["marker"], color=style["color"], alpha=0.6)
        look = {"color": style["color"], "linestyle": style["linestyle"], "linewidth": style["linewidth"]}
        axes.step(x, table["best"], where="post", label=figures.plain(model), **look)
    axes.xaxis.get_major_locator().set_params(integer=True)
    figures.label_axes(axes, "trial", f"validation {metric}", "Trials (marks) and the best so far (lines)")
    figures.legend(axes)
    return figure


def draw_values(model: str, table: pd.DataFrame, space: Space, metric: str) -> Any:
    """Validation score against each value, one panel per key; a ring marks the best trial."""
    figure, axes = figures.new(3.2 * len(space), 3.2, 1, len(space), sharey=True, squeeze=False)
    scores, best = table["score"].to_numpy(float), best_row(table)
    for panel, (key, values) in zip(axes[0], space.items(), strict=True):
        x = table[key].to_numpy() if _is_range(values) else np.array([values.index(one) for one in table[key]])
        panel.scatter(x, scores, s=22, color=figures.COLOURS[0], alpha=0.7)
        panel.scatter(x[best], scores[best], s=90, facecolor="none", edgecolor=figures.COLOURS[1])
        if not _is_range(values):
            panel.set_xticks(range(len(values)), [figures.plain(str(value)) for value in values])
        elif values.get("log"):
            panel.set_xscale("log")
        figures.label_axes(panel, key, f"validation {metric}" if panel is axes[0][0] else "")
    figure.suptitle(figures.plain(f"{model}: a ring marks the best trial"), fontsize=12, x=0.01, ha="left")
    return figure
