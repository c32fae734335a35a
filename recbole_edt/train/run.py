"""One model: the experiment that it is part of, its folder, its training, its ranks and its result.

Runs live under ``runs/DATASET-HASH/``, where the hash stands for the split, the candidates and the seed, so that
everything in one folder can be compared.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from recbole.data import create_samplers
from recbole.data.utils import get_dataloader
from recbole.trainer import trainer as recbole_trainer
from recbole.utils import ModelType, get_model, init_seed

import recbole_edt
from recbole_edt.config.recbole_config import by_sequence, model_values, recbole_config
from recbole_edt.data import split
from recbole_edt.data.split import catalogue_hash
from recbole_edt.errors import DataError
from recbole_edt.evaluate import results
from recbole_edt.evaluate.metrics import standard_groups
from recbole_edt.evaluate.ranking import RankCollector, RankEvaluator, read_ranks, write_ranks
from recbole_edt.files import alone_in, library_versions, read_bytes, read_json, sha256_of, write_json, write_text
from recbole_edt.models.recbole_models import SEQUENCE_ROWS, trained_on
from recbole_edt.models.registry import METHODS, phases_of
from recbole_edt.pipeline import manifest
from recbole_edt.train import run_files
from recbole_edt.train.checkpoints import load_weights
from recbole_edt.train.comparison import Experiment, seen_before, under
from recbole_edt.train.dataset import EDTDataset, SequenceLoader, artefacts_hash, eval_loader, rows_for, sees_generated
from recbole_edt.train.phases import trainer_class
from recbole_edt.train.run_files import as_yaml, chosen_epochs, read_result, resolved_config


def run_directory(experiment: Experiment, name: str) -> Path:
    """A model's folder, named after everything its result depends on."""
    settings = experiment.settings
    config = recbole_config(settings, name, settings.augmented, experiment.folder)
    return experiment.folder / f"{name}-{sha256_of(*_depends_on(experiment, config))[:8]}"


def _depends_on(experiment: Experiment, config: Any, without: Collection[str] = ()) -> tuple[Any, ...]:
    """Everything that a run's result depends on, but for the keys ``without``."""
    plain = {key: value for key, value in resolved_config(config).items() if key not in without}
    return plain, experiment.split_hash, artefacts_hash(config), recbole_edt.__version__


def train_model(experiment: Experiment, name: str) -> results.ModelResult:
    """Train, or resume, or just read one model; its ranks on the test targets.

    A model's folder holds ``config.yaml``, ``epochs.csv``, ``best.pth``, ``log.txt``, ``ranks.csv`` and, once all
    is done, ``result.json``.

    Raises: DataError if another process is training it.
    """
    run_dir = run_directory(experiment, name)
    _unless_there(run_dir / "result.json", lambda: _run(experiment, name, run_dir))
    return read_result(run_dir)


def _unless_there(result: Path, make: Callable[[], None]) -> None:
    """Make a folder's result, once and by one process alone."""
    if not result.is_file():
        with alone_in(result.parent):
            if not result.is_file():  # another process may have ended just before
                make()


def finished_run(experiment: Experiment, name: str) -> Path:
    """Folder of a model that is trained.

    Raises: DataError naming what there is instead.
    """
    run_dir = run_directory(experiment, name)
    if not (run_dir / "result.json").is_file():
        others = sorted(path.parent.name for path in experiment.folder.glob(f"{name}-*/result.json"))
        hint = f"; with other settings there is {', '.join(others)}: give its options again" if others else ""
        raise DataError(f"{run_dir} is no finished run of {name}: run the stage train first{hint}")
    return run_dir

ALL_DATA = "all-data"
"""Folder, in that of a run, of the same model trained on everything."""


def train_on_all(experiment: Experiment, name: str) -> Path:
    """Train a finished run's model once more on all interactions, for as many epochs as validation chose.

    Nothing can be measured with it any more: there are no ranks, and no command compares it.

    Returns: its folder; a training that is done is not repeated.
    """
    run_dir = finished_run(experiment, name)
    folder = run_dir / ALL_DATA
    _unless_there(folder / "result.json", lambda: _run_on_all(experiment, name, run_dir, folder))
    return folder


def _run_on_all(experiment: Experiment, name: str, run_dir: Path, folder: Path) -> None:
    values = {**(experiment.settings.model_settings.get(name) or {}), **chosen_epochs(run_dir)}
    models = {**experiment.settings.model_settings, name: values}
    settings = dataclasses.replace(experiment.settings, model_settings=models)
    shared = dataclasses.replace(experiment, settings=settings, share_pretraining=False)
    trainer, part, _ = _fitted(shared, name, folder, everything=True)
    measured = ("test", "best_valid", "valid_metric", "candidates", "candidates_hash", "seen_items")
    validated = {key: value for key, value in read_json(run_dir / "result.json").items() if key not in measured}
    own = {
        "trained_on": run_files.EVERYTHING,
        "settings": model_values(settings, name),
        "phases": [{**phase, "ended_by": "as many epochs as validation chose"} for phase in trainer.phases],
    }
    write_json(folder / "result.json", {**validated, **_training_of(trainer, part), **own})
    _remove_leftovers(folder)


def ranks_under(experiment: Experiment, name: str, candidates: str) -> pd.DataFrame:
    """Ranks of a finished run's test targets among other candidates than it was trained with, kept beside its own."""
    run_dir = run_directory(experiment, name)
    path = run_dir / f"ranks-{candidates}.csv"
    if not (path.is_file() and path.with_suffix(".json").is_file()):
        other = under(experiment, candidates)
        _, trainer, test_data = open_run(other, name, run_dir)
        with _log_to(run_dir / "log.txt"):
            trainer.evaluate(test_data, load_best_model=False)
        _write_ranks(other, trainer.evaluator.ranks, path)
    return read_ranks(path)


def open_run(experiment: Experiment, name: str, run_dir: Path) -> tuple[Any, Any, Any]:
    """Model with its weights, trainer and test loader of a finished run."""
    config = recbole_config(experiment.settings, name, experiment.settings.augmented, run_dir)
    init_seed(config["seed"], config["reproducibility"])
    train_data, _, test_data, cls = loaders(experiment, config, name)
    model = cls(config, train_data._dataset).to(config["device"])
    load_weights(model, config, run_dir / "best.pth")
    return model, make_trainer(experiment, config, model, run_dir, train_data._dataset, trains=False), test_data


def _write_ranks(experiment: Experiment, ranks: pd.DataFrame, path: Path) -> None:
    """With labels of each test row for the report's groups, from raw training rows."""
    dataset = experiment.dataset
    rows = dataset.sequences.raw(dataset.item_domain)
    train, domain = rows.mark == split.TRAIN, dataset.item_domain.numpy()
    real = ~dataset.virtual.numpy() & (domain > 0)
    groups = standard_groups(ranks, rows.user[train].numpy(), rows.item[train].numpy(), domain, real)
    about = {**ranks.attrs, "split_hash": experiment.split_hash, "seen_why": experiment.seen_why}
    ranks = ranks.assign(**groups)
    ranks.attrs = about
    tokens = dataset.field2id_token
    write_ranks(ranks, path, tokens[dataset.uid_field], tokens[dataset.iid_field])


def validate_model(experiment: Experiment, name: str, run_dir: Path) -> dict[str, Any]:
    """Train, or resume, or just read one model that is judged on validation alone; its test targets are not ranked.

    The folder ends up with ``config.yaml``, ``epochs.csv``, ``log.txt`` and ``valid.json``, without weights. What it
    holds of other settings, left by a search that was begun anew, is not read.

    Returns: what ``valid.json`` holds: ``score`` (the validation metric of the best epoch), ``metric``, ``epochs``,
        ``seconds`` of training, ``phases``, ``parameters``, ``targets_per_epoch`` and ``versions``.
    """
    path = run_dir / "valid.json"
    config = recbole_config(experiment.settings, name, experiment.settings.augmented, run_dir)
    if not (path.is_file() and _is_of(config, run_dir)):
        with alone_in(run_dir):
            if not _is_of(config, run_dir):
                for old in (path, *run_dir.glob("*.pth*")):
                    old.unlink(missing_ok=True)
            if not path.is_file():
                _run_to_validate(experiment, name, run_dir)
    return read_json(path)


def _is_of(config: Any, run_dir: Path) -> bool:
    """Whether what a folder holds, if anything, was trained with these settings."""
    path = run_dir / "config.yaml"
    try:
        then = yaml.safe_load(read_bytes(path)) if path.is_file() else {}
        now = yaml.safe_load(as_yaml(config))
        return all(key in now and now[key] == value for key, value in then.items())
    except (yaml.YAMLError, AttributeError):  # damaged
        return False


def _run_to_validate(experiment: Experiment, name: str, run_dir: Path) -> None:
    trainer, part, _ = _fitted(experiment, name, run_dir)
    result = {"score": float(trainer.best_valid_score), "metric": trainer.valid_metric.lower()}
    write_json(run_dir / "valid.json", {**result, "epochs": len(trainer.epoch_log), **_training_of(trainer, part)})
    for weights in run_dir.glob("*.pth*"):
        weights.unlink()


def _fitted(experiment: Experiment, name: str, run_dir: Path, everything: bool = False) -> tuple[Any, EDTDataset, Any]:
    """Trainer after training, the training part, and the loader of the test targets; None on everything."""
    config = recbole_config(experiment.settings, name, experiment.settings.augmented, run_dir)
    write_text(run_dir / "config.yaml", as_yaml(config))
    init_seed(config["seed"], config["reproducibility"])
    train_data, valid_data, test_data, cls = loaders(experiment, config, name, everything)
    part = train_data._dataset
    model = cls(config, part).to(config["device"])
    trainer = make_trainer(experiment, config, model, run_dir, part)
    with _log_to(run_dir / "log.txt"):
        trainer.fit(train_data, valid_data)
    return trainer, part, test_data


def _training_of(trainer: Any, part: EDTDataset) -> dict[str, Any]:
    """How training went, and what it was of."""
    model = trainer.model
    return {
        "phases": trainer.phases,
        "seconds": sum(row["train_seconds"] for row in trainer.epoch_log),
        "parameters": sum(one.numel() for one in getattr(model, "used_parameters", model.parameters)()),
        "targets_per_epoch": _n_targets(part),
        "versions": library_versions(),
    }


def _run(experiment: Experiment, name: str, run_dir: Path) -> None:
    trainer, part, test_data = _fitted(experiment, name, run_dir)
    with _log_to(run_dir / "log.txt"):
        test = trainer.evaluate(test_data, load_best_model=True)
    _write_ranks(experiment, trainer.evaluator.ranks, run_dir / "ranks.csv")
    result = {
        "model": name,
        "dataset": experiment.settings.augmented,
        "data_path": str(experiment.settings.data_path),
        "domains": experiment.dataset.domain_names,
        "settings": model_values(experiment.settings, name),
        "command": experiment.settings.command,
        "given": experiment.settings.given,
        "made_with": manifest.made_with(experiment.settings),
        "rows": part.training,
        "sees_generated": sees_generated(trainer.config),
        **_training_of(trainer, part),
        "best_valid": dict(trainer.best_valid_result or {}),
        "valid_metric": trainer.valid_metric,
        "test": dict(test),
        "split_hash": experiment.split_hash,
        "catalogue_hash": catalogue_hash(experiment.dataset.source),
        "artefacts_hash": artefacts_hash(trainer.config),
        "candidates": experiment.settings.candidates,
        "candidates_hash": experiment.candidates_hash,
        "seen_items": experiment.seen_items,
    }
    write_json(run_dir / "result.json", result)
    _remove_leftovers(run_dir)


def _remove_leftovers(run_dir: Path) -> None:
    # Hidden files are what a kill left of a checkpoint half written.
    for leftover in [run_dir / "last.pth", *run_dir.glob("best.pth.*"), *run_dir.glob(".*.pth*")]:
        leftover.unlink(missing_ok=True)


def loaders(experiment: Experiment, config: Any, name: str, everything: bool = False) -> tuple[Any, Any, Any, type]:
    """Loaders of the three parts, or of all rows for training alone, and the class of this model on such rows."""
    whole = by_sequence(name, config["training"])
    if whole:
        rows = rows_for(config) if name in METHODS else SEQUENCE_ROWS[name]
    else:
        rows = "prefix" if config["MODEL_TYPE"] == ModelType.SEQUENTIAL else "pairs"
    view, generated = experiment.dataset.for_model(config), sees_generated(config)
    train, *held_out = [view.everything(generated, rows)] if everything else view.parts(generated, rows)
    if whole:
        train_data, cls = SequenceLoader(train, config["train_batch_size"], config["seed"]), trained_on(rows, name)
    else:
        sampler = create_samplers(config, train, [train] * 3)[0]  # by popularity it would count held-out rows, too
        loader, cls = get_dataloader(config, "train"), get_model(name)
        train_data = loader(config, train, sampler, shuffle=config["shuffle"])
    valid_data, test_data = [eval_loader(config, part) for part in held_out] or (None, None)
    return train_data, valid_data, test_data, cls


def make_trainer(
    experiment: Experiment, config: Any, model: Any, run_dir: Path, part: EDTDataset, trains: bool = True
) -> Any:
    """The model's trainer, writing into ``run_dir`` and ranking by our rules; one that only evaluates keeps no log."""
    with _tensorboard_in(run_dir if trains else None):
        trainer = trainer_class(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.run_dir, trainer.saved_model_file = run_dir, str(run_dir / "best.pth")
    if experiment.share_pretraining and len(phases := phases_of(config["model"])) > 1:
        last = {phases[-1].key(name) for name in ("epochs", "learning_rate", "stopping_step")}
        key = sha256_of(*_depends_on(experiment, config, without=last))
        trainer.shared = experiment.folder / f"pretraining-{key[:8]}.pth"
    device = config["device"]
    trainer.collectors = {
        phase: RankCollector(
            part.item_domain.to(device),
            ~part.virtual.to(device) & (part.item_domain > 0).to(device),
            "sampled" if experiment.candidates else experiment.settings.candidates,
            experiment.candidates.get(phase),
            part.domain_names,
            part.uid_field,
            config["model"],
            seen_before(experiment.dataset, mark),
            experiment.seen_items == "masked",
        )
        for phase, mark in (("validation", split.VALID), ("test", split.TEST))
    }
    trainer.evaluator = RankEvaluator(config["topk"])
    return trainer


def _n_targets(part: EDTDataset) -> int:
    """Distinct training targets that one epoch covers."""
    train = part.sequences.mark == split.TRAIN
    if part.config["inserted_as_targets"] is False:
        train &= ~part.sequences.generated
    first = part.sequences.first == torch.arange(len(train))
    return int((train & ~first).sum() if part.training in ("sequence", "prefix") else train.sum())


class _PlainFormatter(logging.Formatter):
    """RecBole colours its messages for a terminal; a file wants none of that."""

    def format(self, record: logging.LogRecord) -> str:
        return re.sub(r"\x1b\[[0-9;]*m", "", super().format(record))


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """RecBole logs to the root logger: into the run directory, and not to the screen."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(_PlainFormatter("%(asctime)s %(levelname)s %(message)s"))
    root.handlers = [file]
    root.setLevel(logging.INFO)  # unlike an assignment, it also forgets which levels were off
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"recbole\.")  # its old names of torch
            yield
    finally:
        root.handlers = handlers
        root.setLevel(level)
        file.close()


@contextmanager
def _tensorboard_in(run_dir: Path | None) -> Iterator[None]:
    """RecBole's trainer opens its TensorBoard files in the working directory; ours go to the run's, or nowhere."""
    from torch.utils.tensorboard import SummaryWriter

    original = recbole_trainer.get_tensorboard
    recbole_trainer.get_tensorboard = lambda logger: run_dir and SummaryWriter(str(run_dir / "tensorboard"))
    try:
        yield
    finally:
        recbole_trainer.get_tensorboard = original
