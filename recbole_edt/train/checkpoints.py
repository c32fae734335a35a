"""Weights, optimizer and random state, read back for an exact resume."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_edt.compat import identity
from recbole_edt.errors import DataError


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
    if hasattr(model, "to_last_phase"):
        model.to_last_phase()
    take_weights(model, checkpoint, config, path)
    model.load_other_parameter(checkpoint.get("other_parameter"))
    model.eval()


def take_weights(model: Any, checkpoint: dict[str, Any], config: Any, path: Path) -> None:
    """The weights of a checkpoint that was read.

    Raises: DataError if it is of another model, backbone or data set.
    """
    own, found = identity(config, model), checkpoint.get("config", {})
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
