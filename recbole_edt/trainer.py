"""RecBole's trainer with exact resume and a log per epoch, and LLM-EDT's two phases on top of it.

A run that is killed continues from the start of the epoch it was in, random state included, and ends with the
same weights, bit for bit on a CPU.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.interaction import Interaction
from recbole.model.layers import TransformerLayer
from recbole.trainer import Trainer
from recbole.utils import ModelType, get_trainer
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from recbole_edt.compat import identity, write_checkpoint
from recbole_edt.dataset import SequenceLoader
from recbole_edt.errors import ConfigError, DataError, EDTError
from recbole_edt.files import write_text
from recbole_edt.layers import PreNormLayer, bfloat16_by_default
from recbole_edt.methods import METHODS, named
from recbole_edt.model import STATE
from recbole_edt.split import TRAIN
from recbole_edt.two_domain import read_settings

# Frozen states of fine-tuning are kept in memory up to this size, and else computed for each batch.
STATE_CACHE_BYTES = 2**31

NOT_RESUMED = {"DiffRec", "LDiffRec", "LINE", "MacridVAE", "MultiVAE", "RecVAE"}
"""Models of RecBole with counters or optimisers outside of their weights: one that was stopped is trained anew."""


@dataclass(frozen=True)
class PhaseConfig:
    """Fine-tuning's own settings; pre-training uses RecBole's ``learning_rate``, ``epochs``, ``stopping_step``."""

    finetune_learning_rate: float = 1e-5
    """Adam's learning rate for the user adapters, above 0. Paper: 1e-5; released scripts: 1e-4."""
    finetune_epochs: int = 100
    """Most epochs of fine-tuning; 0 leaves the phase out (table 3, w/o DFT)."""
    finetune_stopping_step: int = 20
    """Validations without a new best before fine-tuning stops."""

    @classmethod
    def read(cls, config: Any) -> PhaseConfig:
        """Take the keys from a RecBole configuration, with defaults for those it lacks.

        Raises: ConfigError listing every value that is out of range.
        """
        return read_settings(cls, config)

    def faults(self) -> list[str]:
        """What is wrong with these values, one sentence each."""
        found = []
        if not self.finetune_learning_rate > 0:
            found.append(f"finetune_learning_rate: {self.finetune_learning_rate!r} is not above 0")
        for key in ("finetune_epochs", "finetune_stopping_step"):
            value = getattr(self, key)
            if not isinstance(value, int) or value < 0:
                found.append(f"{key}: {value!r} is not a whole number of at least 0")
        return found


def random_state() -> dict[str, Any]:
    """State of every global generator that training draws from, as plain values."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    version, words, gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "python": [version, list(words), gauss],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Go on drawing where ``random_state`` was taken."""
    torch.set_rng_state(state["torch"].cpu())
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])


class ResumableTraining:
    """First base of any RecBole trainer: saves its state at each epoch's start, logs each epoch, shows one bar.

    Set ``run_dir`` before ``fit`` to get ``last.pth`` (for resume) and ``epochs.csv``; without it (RecBole's own
    runner) nothing is written but RecBole's checkpoint. ``collectors`` holds one collector per part
    (``validation``, ``test``) instead of RecBole's.
    """

    run_dir: Path | None = None
    collectors: dict[str, Any] | None = None
    phase = "train"

    def __init__(self: Any, config: Any, model: Any) -> None:
        super().__init__(config, model)
        self.epoch_log: list[dict[str, Any]] = []
        self.phases: list[dict[str, str]] = []
        self.bar: Any = tqdm(disable=True)
        if config["reproducibility"] and self.device.type == "cuda":
            # RecBole sees to cuDNN alone; sums into an index would still differ from run to run.
            torch.use_deterministic_algorithms(True, warn_only=True)
        if config["compile"]:
            compile_layers(model)

    def fit(self: Any, train_data: Any, valid_data: Any = None, *args: Any, **kwargs: Any) -> Any:
        """RecBole's ``fit``; continues from ``last.pth`` if the run directory has one."""
        state = self._saved_state()
        if state is not None and state["phase"] == self.phase:
            self._restore(state, train_data)
        title = f"{self.config['model']} {self.phase}"
        quiet = True if self.run_dir is None else None  # None: no bar unless in a terminal
        with tqdm(total=self.epochs, initial=self.start_epoch, desc=title, leave=False, disable=quiet) as self.bar:
            result = super().fit(train_data, valid_data, *args, **kwargs)
        self._write_log()  # the last epochs need not have been validated
        self.phases.append({"phase": self.phase, "ended_by": self._ended_by()})
        return result

    def _ended_by(self: Any) -> str:
        if self.config["MODEL_TYPE"] == ModelType.TRADITIONAL:
            return "no training"  # it only counts
        return "early stopping" if self.cur_step > self.stopping_step else "epoch cap"

    def _train_epoch(self: Any, train_data: Any, epoch_idx: int, *args: Any, **kwargs: Any) -> Any:
        if self.run_dir is not None and self.config["model"] not in NOT_RESUMED:
            self._save_state(train_data, epoch_idx)
        start = time.perf_counter()
        # Of a method's own steps the losses stay outside of mixed precision, which RecBole's loop would put inside.
        own = self.config["model"] in METHODS and self.config["single_spec"]
        if own or isinstance(train_data, (SequenceLoader, FrozenStates)):
            losses = self._steps(train_data)
        else:
            with bfloat16_by_default(self.device):
                losses = super()._train_epoch(train_data, epoch_idx, *args, **kwargs)
        total = sum(losses) if isinstance(losses, tuple) else losses
        row = {"phase": self.phase, "epoch": epoch_idx, "train_loss": total / max(len(train_data), 1)}
        self.epoch_log.append({**row, "train_seconds": time.perf_counter() - start})
        self.bar.update()
        return losses

    def _steps(self: Any, train_data: Any) -> tuple[float, ...]:
        """One epoch; the sum over batches of each part of the loss. On a GPU nothing waits for it until the end."""
        self.model.train()
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.enable_scaler)
        total: Any = 0.0
        for batch in prefetched(train_data, self.device):
            self.optimizer.zero_grad()
            losses = self.model.calculate_loss(batch)
            parts = losses if isinstance(losses, tuple) else (losses,)
            scaler.scale(torch.stack(parts).sum()).backward()
            if self.clip_grad_norm:
                scaler.unscale_(self.optimizer)
                clip_grad_norm_(self.model.parameters(), **self.clip_grad_norm)
            scaler.step(self.optimizer)
            scaler.update()
            total = total + torch.stack([part.detach().double() for part in parts])
        self._check_nan(total.sum())
        return tuple(total.tolist())

    def _check_nan(self: Any, loss: torch.Tensor) -> None:
        """Raises: EDTError where RecBole raises a ValueError."""
        if torch.isnan(loss):
            raise EDTError(f"{self.config['model']}: the loss is nan: the training diverged; lower learning_rate")

    def _valid_epoch(self: Any, *args: Any, **kwargs: Any) -> Any:
        score, result = super()._valid_epoch(*args, **kwargs)
        self.epoch_log[-1].update(result)
        self._write_log()
        best = max(float(self.best_valid_score), float(score))
        self.bar.set_postfix({self.valid_metric: f"{score:.4f}", "best": f"{best:.4f}"})
        return score, result

    def _write_log(self: Any) -> None:
        if self.run_dir is not None and self.epoch_log:
            write_text(self.run_dir / "epochs.csv", pd.DataFrame(self.epoch_log).to_csv(index=False))

    def evaluate(self: Any, eval_data: Any, *args: Any, **kwargs: Any) -> Any:
        """RecBole's ``evaluate``, with the part's own collector if there is one."""
        if self.collectors is not None and eval_data:
            self.eval_collector = self.collectors[eval_data._dataset.phase]
        return super().evaluate(eval_data, *args, **kwargs)

    def _full_sort_batch_eval(self: Any, batched_data: Any) -> Any:
        """RecBole's; a model whose scores are products gives their factors instead, if our collector ranks them."""
        if self.collectors is None or not hasattr(self.model, "vector_scores"):
            return super()._full_sort_batch_eval(batched_data)
        interaction, _, positive_u, positive_i = batched_data
        return interaction, self.model.vector_scores(interaction.to(self.device)), positive_u, positive_i

    # ---- resume --------------------------------------------------------------------------------------------------

    def _save_state(self: Any, train_data: Any, epoch: int) -> None:
        generator = getattr(train_data, "generator", None)
        state = {
            "config": identity(self.config),
            "phase": self.phase,
            "epoch": epoch,
            "cur_step": self.cur_step,
            "best_valid_score": float(self.best_valid_score),
            "best_valid_result": dict(self.best_valid_result or {}),
            "epoch_log": self.epoch_log,
            "phases": self.phases,
            "state_dict": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": random_state(),
            "generator": None if generator is None else generator.get_state(),
        }
        write_checkpoint(self.run_dir / "last.pth", state)

    def _saved_state(self: Any) -> dict[str, Any] | None:
        path = None if self.run_dir is None else self.run_dir / "last.pth"
        if path is None or not path.is_file():
            return None
        return load_checkpoint(path)  # not to the device: Adam's counters belong in the host's memory

    def _restore(self: Any, state: dict[str, Any], train_data: Any) -> None:
        self.start_epoch, self.cur_step = state["epoch"], state["cur_step"]
        self.best_valid_score = state["best_valid_score"]
        self.best_valid_result = state["best_valid_result"] or None
        self.epoch_log, self.phases = state["epoch_log"], state["phases"]
        take_weights(self.model, state, self.config, self.run_dir / "last.pth")
        self.optimizer.load_state_dict(state["optimizer"])
        if state["generator"] is not None:
            train_data.generator.set_state(state["generator"].cpu())
        set_random_state(state["random"])


def load_checkpoint(path: Path, device: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint without unpickling anything but tensors and plain values.

    Raises: DataError if the file is missing, damaged or holds anything else.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises several kinds for a damaged file
        why = str(error).partition("\n")[0]
        damaged = path.parent if path.name == "best.pth" else path  # the run counts as done, as long as it is there
        raise DataError(f"{path} is not a readable checkpoint ({why}); delete {damaged} to train anew") from None


def load_weights(model: Any, config: Any, path: Path) -> None:
    """Give a model the weights of a finished run, and leave it in evaluation mode.

    Raises: DataError for a damaged checkpoint, or one of another model, backbone or data set.
    """
    checkpoint = load_checkpoint(path, config["device"])
    take_weights(model, checkpoint, config, path)
    model.load_other_parameter(checkpoint.get("other_parameter"))
    model.eval()


def take_weights(model: Any, checkpoint: dict[str, Any], config: Any, path: Path) -> None:
    """The weights of a checkpoint that was read.

    Raises: DataError if it is of another model, backbone or data set.
    """
    own, found = identity(config), checkpoint.get("config", {})
    other = [f"{key} {found.get(key)!r}, not {value!r}" for key, value in own.items() if found.get(key) != value]
    if other:
        raise DataError(f"{path} is of another run ({'; '.join(other)}); put its own back, or train anew")
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except (KeyError, RuntimeError):
        raise DataError(
            f"{path} does not fit the model, its sizes or the data in {config['data_path']}, which may have changed "
            "since training; train anew"
        ) from None


def prefetched(batches: Iterable[Interaction], device: Any) -> Iterator[Interaction]:
    """Batches on the device; for a GPU the next one is put together, and copied, while this one is worked on."""
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    source = iter(batches)

    def fetch() -> dict[str, torch.Tensor] | None:
        batch = next(source, None)
        columns = None if batch is None else batch.interaction.items()
        return None if columns is None else {key: x if x.is_cuda else x.pin_memory() for key, x in columns}

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(fetch)
        while (columns := waiting.result()) is not None:
            waiting = pool.submit(fetch)
            yield Interaction({key: x.to(device, non_blocking=True) for key, x in columns.items()})


def compile_layers(model: Any) -> None:
    """Compile a model's transformer layers with ``torch.compile``, for any batch size and length.

    Raises: ConfigError if there are none, or if torch finds no compiler on this machine.
    """
    layers = [module for module in model.modules() if isinstance(module, TransformerLayer | PreNormLayer)]
    if not layers:
        raise ConfigError(f"compile: {type(model).__name__} has no transformer layers; leave the key out for it")
    device = next(model.parameters()).device
    try:
        torch.compile(torch.exp)(torch.zeros(2, device=device))
    except Exception as error:  # torch raises many kinds
        needed = "a C++ compiler such as g++" if device.type == "cpu" else "triton and a C compiler"
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"compile: torch.compile does not work here, it needs {needed} ({reason})") from error
    for layer in layers:
        layer.compile(dynamic=True)


def resumable(trainer: type) -> type:
    """A RecBole trainer class with exact resume, under its own name."""
    return type(trainer.__name__, (ResumableTraining, trainer), {})


def trainer_class(model_type: Any, name: str) -> type:
    """A method's own trainer, or RecBole's for ``name`` with exact resume."""
    if name in METHODS and METHODS[name].trainer:
        return named(METHODS[name].trainer)
    return resumable(get_trainer(model_type, name))


class FrozenStates:
    """Training batches of fine-tuning: single targets with their frozen states, which are computed once.

    Args:
        model: frozen.
        train_data: the loader of pre-training; its number of batches is kept.
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
        n_targets = int((train_data._dataset.sequences.mark == TRAIN).sum())
        return 8 * n_targets * model.settings.hidden_size


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
