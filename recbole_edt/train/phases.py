"""Training in the phases that a method declares; states of what a phase freezes are computed once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.interaction import Interaction
from recbole.trainer import Trainer
from recbole.utils import get_trainer
from tqdm import tqdm

from recbole_edt.compat import write_checkpoint
from recbole_edt.errors import DataError
from recbole_edt.models.base import Phase
from recbole_edt.models.registry import METHODS
from recbole_edt.train.checkpoints import load_checkpoint, random_state, set_random_state, take_weights
from recbole_edt.train.dataset import SequenceLoader
from recbole_edt.train.loop import ResumableTraining, resumable
from recbole_edt.train.sequences import FrozenStates

# Frozen states of fine-tuning are kept in memory up to this size, and else computed for each batch.
STATE_CACHE_BYTES = 2**31


class FrozenHistories(FullSortEvalDataLoader):
    """Validation batches of fine-tuning: histories' frozen states, which are computed once, instead of histories.

    Args:
        model: frozen.
        valid_data: RecBole's loader, whose batches are always the same.
    """

    def __init__(self, model: Any, valid_data: Any) -> None:
        vars(self).update(vars(valid_data))
        model.eval()
        bar = tqdm(valid_data, desc="frozen states", delay=1, leave=False, disable=None)
        self.batches = []
        for batch, *targets in bar:
            states = model.last_states(batch.to(model.device))
            states.update(Interaction({model.USER_ID: batch[model.USER_ID]}))
            self.batches.append((states, *targets))

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.batches)

    @staticmethod
    def n_bytes(model: Any, valid_data: Any) -> int:
        """Memory that the three states of all histories take."""
        return 12 * len(valid_data._dataset) * model.settings.hidden_size


def finetuning_loader(train_data: Any) -> Any:
    """The loader of pre-training, or where that one masks, one of single targets in as many batches."""
    part = train_data._dataset.for_finetuning()
    if part is train_data._dataset:
        return train_data
    loader = SequenceLoader(part, -(-len(part) // len(train_data)), 0)
    loader.generator = train_data.generator
    return loader


class PhasedTrainer(ResumableTraining, Trainer):
    """Runs the phases that a method declares, each from the best weights of the one before.

    LLM-EDT pre-trains, loads the best weights, freezes them, and fine-tunes the user adapters (section 3.5).
    """

    shared_first: Path | None = None
    """File of a finished first phase; read if it is there, written if not."""

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        self.plan = model.active_phases
        self.phase = self.plan[0].name
        defaults = {one.name: one.default for cls in model.settings_classes for one in fields(cls)}
        self.own = {key: value if config[key] is None else config[key] for key, value in defaults.items()}

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Any = None,
    ) -> tuple[float, Any]:
        """All phases; RecBole's signature and result. The checkpoint kept is the best of the last phase.

        A phase whose states are frozen in part starts at the scores before it, and its checkpoint is replaced only by
        a better one.
        """
        options = verbose, True, show_progress, callback_fn
        final, state = self.saved_model_file, self._saved_state()
        at = 0 if state is None else [phase.name for phase in self.plan].index(state["phase"])
        before = final
        for place, phase in enumerate(self.plan):
            own_file = final if phase is self.plan[-1] else f"{final}.{phase.name}"
            before, self.saved_model_file = self.saved_model_file, own_file
            if place < at:
                continue
            if place > 0:
                self._load_best(before)
                if saved and place > at:
                    self._save_checkpoint(-1, verbose=verbose)
                if self.run_dir is None:
                    Path(before).unlink()  # kept only where a run may have to be resumed
                self._begin(phase)
                train_data, valid_data = self._with_frozen_states(train_data, valid_data)
            elif state is None and self.shared_first is not None and self.shared_first.is_file():
                self._take_first(self.shared_first, train_data)
                continue
            super().fit(train_data, valid_data, *options)
            if place == 0 and self.shared_first is not None:
                self._share_first(self.shared_first, train_data)
        return self.best_valid_score, self.best_valid_result

    def _with_frozen_states(self, train_data: Any, valid_data: Any) -> tuple[Any, Any]:
        """Loaders of states instead of sequences, as far as these fit into memory."""
        if FrozenStates.n_bytes(self.model, train_data) <= STATE_CACHE_BYTES:
            train_data = FrozenStates(self.model, train_data)
        else:
            train_data = finetuning_loader(train_data)
        full = isinstance(valid_data, FullSortEvalDataLoader)
        if full and FrozenHistories.n_bytes(self.model, valid_data) <= STATE_CACHE_BYTES:
            valid_data = FrozenHistories(self.model, valid_data)
        return train_data, valid_data

    def _share_first(self, shared: Path, train_data: Any) -> None:
        """Keep the best weights, the log, and the state of all random numbers, so that what follows is the same."""
        state = {
            "checkpoint": load_checkpoint(Path(self.saved_model_file), self.device),
            "best_valid_result": dict(self.best_valid_result or {}),
            "epoch_log": self.epoch_log,
            "phases": self.phases,
            "random": random_state(),
            "generator": train_data.generator.get_state(),
        }
        write_checkpoint(shared, state)

    def _take_first(self, shared: Path, train_data: Any) -> None:
        state = load_checkpoint(shared, self.device)
        write_checkpoint(self.saved_model_file, state["checkpoint"])
        self.best_valid_score = state["checkpoint"]["best_valid_score"]
        self.best_valid_result = state["best_valid_result"] or None
        self.epoch_log, self.phases = state["epoch_log"], state["phases"]
        train_data.generator.set_state(state["generator"].cpu())
        set_random_state(state["random"])
        self._write_log()  # without a second phase nothing else writes it

    def _load_best(self, path: str) -> None:
        if not Path(path).is_file():
            raise DataError(f"{path} does not exist: its weights are lost; delete last.pth to train anew")
        checkpoint = load_checkpoint(Path(path), self.device)
        take_weights(self.model, checkpoint, self.config, Path(path))
        self.best_valid_score = checkpoint["best_valid_score"]

    def _begin(self, phase: Phase) -> None:
        """Settings, counters and optimizer of a later phase."""
        self.phase = phase.name
        if not self.model.goes_on_from_scores:
            self.best_valid_score = -np.inf if self.valid_metric_bigger else np.inf
        self.model.start_phase(phase)
        self.epochs = self.own[f"{phase.prefix}epochs"]
        self.eval_step = min(self.config["eval_step"], self.epochs)  # RecBole looked at the first phase's epochs
        self.stopping_step = self.own[f"{phase.prefix}stopping_step"]
        self.start_epoch = self.cur_step = 0
        trained = getattr(self.model, phase.trained) if phase.trained else self.model
        rate = self.own[f"{phase.prefix}learning_rate"]
        self.optimizer = self._build_optimizer(params=trained.parameters(), learning_rate=rate)


def trainer_class(model_type: Any, name: str) -> type:
    """The trainer of a method with several phases, or RecBole's for ``name`` with exact resume."""
    if name in METHODS and len(METHODS[name].phases) > 1:
        return PhasedTrainer
    return resumable(get_trainer(model_type, name))
