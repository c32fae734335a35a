"""Fine-tuning on a frozen backbone: states computed once, one small adapter per domain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.interaction import Interaction
from recbole.trainer import Trainer
from tqdm import tqdm

from recbole_edt.compat import write_checkpoint
from recbole_edt.errors import DataError
from recbole_edt.models.llmedt import PhaseConfig
from recbole_edt.train.checkpoints import load_checkpoint, random_state, set_random_state, take_weights
from recbole_edt.train.dataset import SequenceLoader
from recbole_edt.train.loop import ResumableTraining
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


class LLMEDTTrainer(ResumableTraining, Trainer):
    """Pre-trains, loads the best weights, freezes them, and fine-tunes the user adapters (section 3.5)."""

    phase = "pretrain"
    shared_pretraining: Path | None = None
    """File of a finished pre-training; read if it is there, written if not."""

    def __init__(self, config: Any, model: Any) -> None:
        self.phase_config = PhaseConfig.read(config)
        super().__init__(config, model)

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Any = None,
    ) -> tuple[float, Any]:
        """Both phases; RecBole's signature and result. The checkpoint kept is the best of the last phase.

        Fine-tuning starts at the pre-trained scores, and its checkpoint is replaced only by a better one.
        """
        final, pretrained = self.saved_model_file, f"{self.saved_model_file}.pretrain"
        state, shared = self._saved_state(), self.shared_pretraining
        if state is None and shared is not None and shared.is_file():
            self._take_pretraining(shared, pretrained, train_data)
        elif state is None or state["phase"] == "pretrain":
            self.saved_model_file = pretrained
            super().fit(train_data, valid_data, verbose, True, show_progress, callback_fn)
            if shared is not None:
                self._share_pretraining(shared, pretrained, train_data)
        self.saved_model_file = final
        self._load_pretrained(pretrained)
        if saved and (state is None or state["phase"] == "pretrain"):
            self._save_checkpoint(-1, verbose=verbose)
        if self.run_dir is None:
            Path(pretrained).unlink()  # kept only where a run may have to be resumed
        if self.phase_config.finetune_epochs == 0:
            return self.best_valid_score, self.best_valid_result
        self._start_finetuning()
        if FrozenStates.n_bytes(self.model, train_data) <= STATE_CACHE_BYTES:
            train_data = FrozenStates(self.model, train_data)
        else:
            train_data = finetuning_loader(train_data)
        full = isinstance(valid_data, FullSortEvalDataLoader)
        if full and FrozenHistories.n_bytes(self.model, valid_data) <= STATE_CACHE_BYTES:
            valid_data = FrozenHistories(self.model, valid_data)
        return super().fit(train_data, valid_data, verbose, saved, show_progress, callback_fn)

    def _share_pretraining(self, shared: Path, pretrained: str, train_data: Any) -> None:
        """Keep the best weights, the log, and the state of all random numbers, so that what follows is the same."""
        state = {
            "checkpoint": load_checkpoint(Path(pretrained), self.device),
            "best_valid_result": dict(self.best_valid_result or {}),
            "epoch_log": self.epoch_log,
            "phases": self.phases,
            "random": random_state(),
            "generator": train_data.generator.get_state(),
        }
        write_checkpoint(shared, state)

    def _take_pretraining(self, shared: Path, pretrained: str, train_data: Any) -> None:
        state = load_checkpoint(shared, self.device)
        write_checkpoint(pretrained, state["checkpoint"])
        self.best_valid_result = state["best_valid_result"] or None
        self.epoch_log, self.phases = state["epoch_log"], state["phases"]
        train_data.generator.set_state(state["generator"].cpu())
        set_random_state(state["random"])
        self._write_log()  # without fine-tuning nothing else writes it

    def _load_pretrained(self, path: str) -> None:
        if not Path(path).is_file():
            raise DataError(f"{path} does not exist: the pre-trained weights are lost; delete last.pth to train anew")
        checkpoint = load_checkpoint(Path(path), self.device)
        take_weights(self.model, checkpoint, self.config, Path(path))
        self.best_valid_score = checkpoint["best_valid_score"]

    def _start_finetuning(self) -> None:
        """A new phase: fine-tuning must beat the pre-trained scores, which it starts from, to replace them.

        Except with ``adapter_residual``, where it starts from others.
        """
        self.phase = "finetune"
        if self.model.settings.adapter_residual:
            self.best_valid_score = -np.inf if self.valid_metric_bigger else np.inf
        self.model.start_finetuning()
        self.epochs = self.phase_config.finetune_epochs
        self.eval_step = min(self.config["eval_step"], self.epochs)  # RecBole looked at pre-training's epochs
        self.stopping_step = self.phase_config.finetune_stopping_step
        self.start_epoch = self.cur_step = 0
        self.optimizer = self._build_optimizer(
            params=self.model.user_adapters.parameters(),
            learning_rate=self.phase_config.finetune_learning_rate,
        )
