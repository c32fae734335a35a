"""The phases that a method declares, one after the other, and states of a frozen part that are computed once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.interaction import Interaction
from recbole.trainer import Trainer
from recbole.utils import get_trainer
from tqdm import tqdm

from recbole_edt.compat import write_checkpoint
from recbole_edt.errors import DataError
from recbole_edt.models.base import read_settings
from recbole_edt.models.parts.batch_fields import STATE
from recbole_edt.models.registry import METHODS, Phase
from recbole_edt.train.checkpoints import load_checkpoint, take_weights
from recbole_edt.train.dataset import SequenceLoader
from recbole_edt.train.loop import ResumableTraining

# Frozen states are kept in memory up to this size, and else computed for each batch.
STATE_CACHE_BYTES = 2**31


class FrozenStates:
    """Training batches of a phase over frozen states: single targets, whose states are computed once.

    Args:
        model: frozen.
        train_data: the loader of the phase before; its number of batches is kept.
    """

    shuffle = True

    def __init__(self, model: Any, train_data: Any) -> None:
        self._dataset = self.dataset = train_data._dataset.for_finetuning()
        self.generator = train_data.generator
        model.eval()
        row, first = self._dataset.row, self._dataset.sequences.first
        rows = (row - first[row]).argsort(stable=True)  # always in the same order, for resume
        bar = tqdm(rows.split(256), desc="frozen states", delay=1, leave=False, disable=None)
        parts = [model.frozen_states(self._dataset[index].to(model.device)) for index in bar]
        self.targets = Interaction({key: torch.cat([part[key] for part in parts]) for key in parts[0].columns})
        self.n_batches = len(train_data)

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[Interaction]:
        order = torch.randperm(len(self.targets), generator=self.generator)
        for index in order.tensor_split(self.n_batches):
            index = index.to(self.targets[STATE].device)
            yield Interaction({key: column[index] for key, column in self.targets.interaction.items()})

    @staticmethod
    def n_bytes(model: Any, train_data: Any) -> int:
        """Memory that the states of all training targets take, at most."""
        return 8 * len(train_data._dataset.training_pairs[0]) * model.settings.hidden_size


class FrozenHistories(FullSortEvalDataLoader):
    """Validation batches of such a phase: histories' frozen states, which are computed once, instead of histories.

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


def over_frozen_states(model: Any, train_data: Any, valid_data: Any) -> tuple[Any, Any]:
    """Loaders of a phase whose batches are states of a frozen part: kept, where they fit into memory."""
    if FrozenStates.n_bytes(model, train_data) <= STATE_CACHE_BYTES:
        train_data = FrozenStates(model, train_data)
    else:
        train_data = single_targets(train_data)
    full = isinstance(valid_data, FullSortEvalDataLoader)
    if full and FrozenHistories.n_bytes(model, valid_data) <= STATE_CACHE_BYTES:
        valid_data = FrozenHistories(model, valid_data)
    return train_data, valid_data


def single_targets(train_data: Any) -> Any:
    """The loader itself, or where it masks, one of single targets in as many batches."""
    part = train_data._dataset.for_finetuning()
    if part is train_data._dataset:
        return train_data
    loader = SequenceLoader(part, -(-len(part) // len(train_data)), 0)
    loader.generator = train_data.generator
    return loader


class PhaseTrainer(ResumableTraining, Trainer):
    """Trains a method in the phases that it declares; each begins with the best weights of the one before.

    A phase's checkpoint is replaced only by a better one, so that one which does not help changes nothing. That of the
    last is the result; those of the others stand beside it, with the name of the phase at the end.
    """

    own_steps = True
    shared: Path | None = None
    """File of all phases but the last, finished; read if it is there, written if not."""

    def __init__(self, config: Any, model: Any) -> None:
        self.values: dict[str, Any] = {}
        for cls in model.method.settings:
            self.values |= vars(read_settings(cls, config))
        super().__init__(config, model)
        self.phase = model.trained_phases[0].name

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Any = None,
    ) -> tuple[float, Any]:
        """All phases; RecBole's signature and result."""
        phases, state, final = self.model.trained_phases, self._saved_state(), self.saved_model_file
        files = [*(f"{final}.{phase.name}" for phase in phases[:-1]), final]
        n_shared = len(phases) - (phases[-1] is self.model.method.phases[-1]) if self.shared else 0
        begun = 0 if state is None else [phase.name for phase in phases].index(state["phase"])
        if state is None and n_shared and self.shared.is_file():  # type: ignore[union-attr]
            self._take_shared(files[n_shared - 1], train_data)
            begun = n_shared
        for place in range(begun, len(phases)):
            self.saved_model_file = files[place]
            if place:
                self._take_best(files[place - 1])
                if saved and state is None:
                    self._save_checkpoint(-1, verbose=verbose)
            if place or phases[0].prefix or phases[0].trains:
                self.begin(phases[place])
            loaders = train_data, valid_data
            if phases[place].keeps_states:
                loaders = over_frozen_states(self.model, *loaders)
            super().fit(*loaders, verbose, saved or place < len(phases) - 1, show_progress, callback_fn)
            state = None
            if place == n_shared - 1:  # with the state of all random numbers, so that what follows is the same
                checkpoint = load_checkpoint(Path(files[place]), self.device)
                write_checkpoint(self.shared, {"checkpoint": checkpoint, **self.progress(train_data)})
        return self.best_valid_score, self.best_valid_result

    def _take_best(self, path: str) -> None:
        """The best weights of the phase before, and their score."""
        if not Path(path).is_file():
            raise DataError(f"{path} does not exist: the pre-trained weights are lost; delete last.pth to train anew")
        checkpoint = load_checkpoint(Path(path), self.device)
        take_weights(self.model, checkpoint, self.config, Path(path))
        self.best_valid_score = checkpoint["best_valid_score"]
        if self.run_dir is None:
            Path(path).unlink()  # kept only where a run may have to be resumed

    def begin(self, phase: Phase) -> None:
        """What a phase trains, how long and how fast. It must beat the score so far, unless it starts at others."""
        self.phase = phase.name
        if self.values.get(phase.new_scores):
            self.best_valid_score = -np.inf if self.valid_metric_bigger else np.inf
        self.model.start(phase)
        self.epochs = self._value(phase, "epochs")
        self.eval_step = min(self.config["eval_step"], self.epochs)  # RecBole looked at its own key for epochs
        self.stopping_step = self._value(phase, "stopping_step")
        self.start_epoch = self.cur_step = 0
        trained = [one for one in self.model.parameters() if one.requires_grad]
        self.optimizer = self._build_optimizer(params=trained, learning_rate=self._value(phase, "learning_rate"))

    def _value(self, phase: Phase, name: str) -> Any:
        key = phase.key(name)
        return self.values.get(key, self.config[key])

    def _take_shared(self, path: str, train_data: Any) -> None:
        assert self.shared is not None
        state = load_checkpoint(self.shared, self.device)
        write_checkpoint(path, state["checkpoint"])
        self.best_valid_score = state["checkpoint"]["best_valid_score"]
        self.go_on_from(state, train_data)
        self._write_log()  # nothing else does where the last phase has no epochs


def trainer_class(model_type: Any, name: str) -> type:
    """The trainer of a method's phases, or RecBole's for ``name`` with exact resume, under its own name."""
    if name in METHODS:
        return PhaseTrainer
    trainer = get_trainer(model_type, name)
    return type(trainer.__name__, (ResumableTraining, trainer), {})
