"""The stages in their order: prepare, embed, augment, profile, and then train, compare or recommend."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_edt.config.settings import Settings, topk_of
from recbole_edt.errors import ConfigError
from recbole_edt.files import library_versions, write_json, write_text
from recbole_edt.llm.prices import Usage
from recbole_edt.models.registry import DEFAULT
from recbole_edt.pipeline import manifest, needed, stages
from recbole_edt.pipeline.model_access import LiveWriter
from recbole_edt.recommend import histories, recommender
from recbole_edt.report import page, result_tables
from recbole_edt.report.runs import read_runs
from recbole_edt.train import comparison, run, run_files


class Laboratory:
    """Experiments under settings that start from the same: rows and profiles of their own are made when first needed.

    Args:
        settings: what all start from; their data are made, or found, at once.
        say: for what the stages before training say.

    Attributes:
        base: the experiment under ``settings``.
    """

    def __init__(self, settings: Settings, say: stages.Say) -> None:
        self.settings, self._say = settings, say
        self._opened = partial(LiveWriter, spent=Usage())  # one account for all
        stages.prepare(settings, say, goes_on=True)
        stages.embed(settings, say, self._opened)
        self._made: set[str] = set()
        self.make(settings)
        self.base = self._last = comparison.open_experiment(settings)

    def make(self, own: Settings, name: str = "") -> None:
        """Run the stages augment and profile for settings with other rows or profiles, once."""
        if own.augmented not in self._made:
            for stage in (stages.augment_data, stages.profile):
                stage(own, lambda line: self._say(f"{name}: {line}" if name else line), self._opened)
            self._made.add(own.augmented)

    def experiment(self, own: Settings, name: str = "") -> comparison.Experiment:
        """The experiment under other settings; the data of the base, and those used last, are kept loaded."""
        self.make(own, name)
        loaded = {one.settings.augmented: one for one in (self.base, self._last)}
        if own.augmented not in loaded:
            self._last = loaded[own.augmented] = comparison.open_experiment(own)
        return comparison.experiment_on(loaded[own.augmented].dataset, own)


def train(settings: Settings, say: stages.Say) -> None:
    """Train the model named by ``model`` and print its metrics."""
    stages.check_rows(settings, say, [settings.model])
    experiment = comparison.open_experiment(settings)
    result = run.train_model(experiment, settings.model)
    result_tables.print_table([result], title_of(experiment), manifest.llm_note(settings))
    say(f"run directory: {run.run_directory(experiment, settings.model)}")


def compare(settings: Settings, say: stages.Say) -> None:
    """Train all of ``models`` and report on them."""
    stages.check_rows(settings, say, settings.models)
    experiment = comparison.open_experiment(settings)
    results = [run.train_model(experiment, name) for name in settings.models]
    title, note = title_of(experiment), manifest.about(settings, settings.models)
    result_tables.print_table(results, title, note)
    folder = experiment.folder
    result_tables.write_metrics(results, folder, topk_of(settings))
    runs = read_runs([run.run_directory(experiment, name) for name in settings.models], settings.models)
    reference = DEFAULT if DEFAULT in settings.models else None
    report = page.contents(runs, reference, settings, [], folder, title)
    write_text(folder / "report.md", report.markdown(folder))
    shared = {"split_hash": experiment.split_hash, "candidates": settings.candidates}
    made = {"seen_items": experiment.seen_items, "models": settings.models, "versions": library_versions()}
    write_json(folder / "comparison.json", {**shared, **made})
    say(f"report: {folder / 'report.md'}")


def recommend(settings: Settings, say: stages.Say) -> None:
    """Top items for all users, listed users or new histories, from the trained run of ``model``."""
    stages.check_rows(settings, say, [settings.model])
    experiment, options = comparison.open_experiment(settings), settings.recommend
    run_dir = run.finished_run(experiment, settings.model)
    _check_domain(options.domain, experiment.dataset.domain_names)
    frames = _recommended(run_dir, settings)  # refuses what is unknown before anything is trained
    if options.train_on_all:
        run_dir = run.train_on_all(experiment, settings.model)
        say(f"trained on {run_files.EVERYTHING}: {run_dir}")
        frames = _recommended(run_dir, settings)
    path = Path(options.output or run_dir / options.default_output)
    n_users = recommender.write(path, frames)
    say(f"recommendations for {n_users} users: {path}")


def _check_domain(domain: str | None, known: Sequence[str]) -> None:
    """Raises: ConfigError if ``recommend.domain`` is no domain of the data set."""
    if domain is not None and domain not in known:
        near = difflib.get_close_matches(domain, known, n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise ConfigError(f"recommend.domain: {domain!r} is not one of {', '.join(known)}{hint}")


def _recommended(run_dir: Path, settings: Settings) -> Iterator[pd.DataFrame]:
    """Frames for those who are asked for."""
    options, model = settings.recommend, recommender.load(run_dir, settings.data_path)
    chosen: Any = {"k": options.k, "domain": options.domain, "seen": options.seen}
    if options.histories:
        return model.for_histories(histories.read(Path(options.histories), model.item_id), **chosen)
    listed = None if options.users is None else options.user_list
    if listed and len(listed) == 1 and listed[0].endswith(".txt"):
        listed = histories.read_users(Path(listed[0]))
    return model.all_users(users=listed, **chosen)


def title_of(experiment: comparison.Experiment) -> str:
    """Data set, split and part, as a heading."""
    return f"{experiment.settings.dataset}, leave-one-out (split {experiment.split_hash[:8]}), test targets"


STAGES: dict[str, Callable[[Settings, stages.Say], Any]] = {
    "prepare": stages.prepare,
    "embed": stages.embed,
    "augment": stages.augment_data,
    "profile": stages.profile,
    "train": train,
    "compare": compare,
    "recommend": recommend,
}


def run_all(settings: Settings, last: str, say: stages.Say) -> None:
    """What the models need of the stages up to profile, and then ``last``: ``train`` or ``compare``."""
    stages.prepare(settings, say, goes_on=True)
    needed.make_for(settings, [settings.model] if last == "train" else settings.models, say)
    STAGES[last](settings, say)
