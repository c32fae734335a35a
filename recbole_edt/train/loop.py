"""RecBole's trainer with exact resume and a log per epoch.

A run that is killed continues from the start of the epoch it was in, random state included, and ends with the
same weights, bit for bit on a CPU.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from recbole.data.interaction import Interaction
from recbole.model.layers import TransformerLayer
from recbole.utils import ModelType
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from recbole_edt.compat import identity, write_checkpoint
from recbole_edt.errors import ConfigError, EDTError
from recbole_edt.files import write_text
from recbole_edt.models.parts.states import PreNormLayer, bfloat16_by_default
from recbole_edt.train.checkpoints import load_checkpoint, random_state, set_random_state, take_weights
from recbole_edt.train.dataset import SequenceLoader

NOT_RESUMED = {"DiffRec", "LDiffRec", "LINE", "MacridVAE", "MultiVAE", "RecVAE"}
"""Models of RecBole with counters or optimisers outside of their weights: one that was stopped is trained anew."""


class ResumableTraining:
    """First base of any RecBole trainer: saves its state at each epoch's start, logs each epoch, shows one bar.

    Set ``run_dir`` before ``fit`` to get ``last.pth`` (for resume) and ``epochs.csv``; without it (RecBole's own
    runner) nothing is written but RecBole's checkpoint. ``collectors`` holds one collector per part
    (``validation``, ``test``) instead of RecBole's.
    """

    run_dir: Path | None = None
    collectors: dict[str, Any] | None = None
    phase = "train"
    own_steps = False
    """Whether the losses stay outside of mixed precision with any loader, which RecBole's loop would put inside."""

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
        ended_by = "early stopping" if self.cur_step > self.stopping_step else "epoch cap"
        if self.config["MODEL_TYPE"] == ModelType.TRADITIONAL:
            ended_by = "no training"  # it only counts
        self.phases.append({"phase": self.phase, "ended_by": ended_by})
        return result

    def _train_epoch(self: Any, train_data: Any, epoch_idx: int, *args: Any, **kwargs: Any) -> Any:
        if self.run_dir is not None and self.config["model"] not in NOT_RESUMED:
            self._save_state(train_data, epoch_idx)
        start = time.perf_counter()
        if (self.own_steps and self.config["single_spec"]) or isinstance(train_data, SequenceLoader):
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
        state = {
            "config": identity(self.config, self.model),
            "phase": self.phase,
            "epoch": epoch,
            "cur_step": self.cur_step,
            "best_valid_score": float(self.best_valid_score),
            "state_dict": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        write_checkpoint(self.run_dir / "last.pth", {**state, **self.progress(train_data)})

    def progress(self: Any, train_data: Any) -> dict[str, Any]:
        """How far training has come, beside its weights: the log, and the state of all random numbers."""
        generator = getattr(train_data, "generator", None)
        return {
            "best_valid_result": dict(self.best_valid_result or {}),
            "epoch_log": self.epoch_log,
            "phases": self.phases,
            "random": random_state(),
            "generator": None if generator is None else generator.get_state(),
        }

    def go_on_from(self: Any, progress: dict[str, Any], train_data: Any) -> None:
        """Training as it stood when its `progress` was taken."""
        self.best_valid_result = progress["best_valid_result"] or None
        self.epoch_log, self.phases = progress["epoch_log"], progress["phases"]
        if progress["generator"] is not None:
            train_data.generator.set_state(progress["generator"].cpu())
        set_random_state(progress["random"])

    def _saved_state(self: Any) -> dict[str, Any] | None:
        path = None if self.run_dir is None else self.run_dir / "last.pth"
        if path is None or not path.is_file():
            return None
        return load_checkpoint(path)  # not to the device: Adam's counters belong in the host's memory

    def _restore(self: Any, state: dict[str, Any], train_data: Any) -> None:
        self.start_epoch, self.cur_step = state["epoch"], state["cur_step"]
        self.best_valid_score = state["best_valid_score"]
        take_weights(self.model, state, self.config, self.run_dir / "last.pth")
        self.optimizer.load_state_dict(state["optimizer"])
        self.go_on_from(state, train_data)


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
