"""One finished model: its name, its ranks, and how its training ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

EARLY_STOPPING, EPOCH_CAP = "early stopping", "epoch cap"


@dataclass(frozen=True)
class ModelResult:
    """What a report needs of one trained model.

    Attributes:
        name: as shown.
        ranks: rank table of the test targets, with ``attrs`` as `evaluation.read_ranks` gives it.
        epochs: a row per epoch in the order of training: ``phase``, ``train_loss`` and validation metrics.
        status: what ended training: `EARLY_STOPPING`, `EPOCH_CAP`, or a word for models that are not trained.
        best_epoch: 1-based row of ``epochs`` whose weights were tested.
        seconds: of training, without validation and testing.
        n_parameters: trainable or not, without fixed text vectors.
        note: free text.
        max_epochs: most epochs that the settings allow; None if it is not known.
        valid_metric: which chose the epoch that was tested.
    """

    name: str
    ranks: pd.DataFrame
    epochs: pd.DataFrame | None = None
    status: str = EARLY_STOPPING
    best_epoch: int | None = None
    seconds: float = float("nan")
    n_parameters: int = 0
    note: str = ""
    max_epochs: int | None = None
    valid_metric: str = "ndcg@10"


def marked_names(runs: Sequence[ModelResult]) -> list[str]:
    return [run.name + "†" * (run.status == EPOCH_CAP) for run in runs]

METRIC = "ndcg@10"
