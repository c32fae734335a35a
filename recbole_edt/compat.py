"""Every repair that RecBole 1.2.1 needs on today's libraries, the check of the hooks we lean on, and registration.

Nothing here runs on import. ``apply`` makes the repairs, ``check`` looks for what we override,
``register`` makes our classes known to RecBole by name.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import warnings
from typing import Any

import numpy as np
import pandas as pd

from recbole_edt.errors import ConfigError

RECBOLE_VERSION = "1.2.1"
NO_RECBOLE = (
    f"RecBole is not installed: pip install recbole=={RECBOLE_VERSION} "
    f"(on Python 3.12 or later: pip install --no-deps recbole=={RECBOLE_VERSION})"
)

# What we override or call, beyond RecBole's documented interface.
HOOKS = {
    "recbole.config.Config": "_load_cmd_line _convert_config_dict _load_internal_config_dict _set_default_parameters",
    "recbole.data.dataset.Dataset": (
        "_load_data _load_feat _fill_nan _get_remap_list _change_feat_format _remove_duplication copy"
    ),
    "recbole.data.dataset.SequentialDataset": "data_augmentation build inter_matrix",
    "recbole.model.abstract_recommender.SequentialRecommender": "gather_indexes get_attention_mask",
    "recbole.trainer.Trainer": "_train_epoch _valid_epoch _save_checkpoint _build_optimizer fit evaluate",
}


def check() -> None:
    """Compare the installed RecBole with what this package was written against.

    Raises: ConfigError naming the version or the missing hook, and the command that mends it.
    """
    try:
        version = importlib.metadata.version("recbole")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(NO_RECBOLE) from None
    if version != RECBOLE_VERSION:
        raise ConfigError(
            f"RecBole {version} is installed, this package works with {RECBOLE_VERSION}: "
            f"pip install recbole=={RECBOLE_VERSION}"
        )
    for path, names in HOOKS.items():
        module, cls = path.rsplit(".", 1)
        owner = getattr(importlib.import_module(module), cls)
        missing = [name for name in names.split() if not hasattr(owner, name)]
        if missing:
            raise ConfigError(
                f"{path} lacks {', '.join(missing)}: this RecBole was changed; "
                f"pip install --force-reinstall recbole=={RECBOLE_VERSION}"
            )


def apply() -> None:
    """Make the repairs, once per process; RecBole's results on its own pinned stack stay the same, but for Pop."""
    _restore_numpy_names()
    from recbole.data.dataset import Dataset, dataset
    from recbole.model.abstract_recommender import AbstractRecommender
    from recbole.trainer import Trainer

    dataset.pd = AtomicPandas()
    Dataset._fill_nan = _fill_nan
    Trainer._save_checkpoint = save_plain_checkpoint
    AbstractRecommender.load_other_parameter = _load_other_parameter
    _restore_dok_update()
    _unslow_training()
    _mend_popularity()
    _hush_warnings()


def _restore_numpy_names() -> None:
    # numpy 2 dropped these; RecBole's Config and Dataset still read them.
    for name, kind in [
        ("float_", np.float64),
        ("complex_", np.complex128),
        ("unicode_", np.str_),
        ("float", np.float64),
    ]:
        if name not in vars(np):
            setattr(np, name, kind)


def _restore_dok_update() -> None:
    # scipy 1.13 dropped the unchecked update that LightGCN, NGCF and others build their graph with.
    from scipy.sparse import dok_matrix

    if not hasattr(dok_matrix, "_update"):
        dok_matrix._update = lambda self, entries: self._dict.update(entries)


def _unslow_training() -> None:
    import recbole.model.sequential_recommender  # noqa: F401
    import torch
    from recbole.model.layers import FeedForward
    from torch.nn.functional import gelu

    # One of these modules (sine.py) turns anomaly detection on for the whole process, when it is imported.
    torch.autograd.set_detect_anomaly(False)
    # The same function in one pass instead of six over the largest tensor of a transformer.
    FeedForward.gelu = lambda self, x: gelu(x)


def _mend_popularity() -> None:
    import torch
    from recbole.model.general_recommender import Pop
    from recbole.utils import InputType

    def count(self: Any, interaction: Any) -> torch.Tensor:
        item = interaction[self.ITEM_ID]
        self.item_cnt.index_add_(0, item, torch.ones_like(item).unsqueeze(1))
        self.max_cnt = self.item_cnt.max(dim=0)[0]
        return torch.nn.Parameter(torch.zeros(1)).to(self.device)

    # The original counts an item once per batch, however often it occurs there, and random negatives with it.
    Pop.calculate_loss, Pop.input_type = count, InputType.PAIRWISE


def _hush_warnings() -> None:
    # Of RecBole's own lines on newer libraries, once per model; nobody who runs them could do anything about it.
    for message in ("`torch.cuda.amp.GradScaler", "The given NumPy array is not writable", r"torch\.sparse\.Sparse"):
        warnings.filterwarnings("ignore", message, module=r"recbole\.")


class AtomicPandas:
    """pandas as RecBole's reader of atomic files needs it: its way to fill sequences does nothing in pandas 3.

    The fast parser reads instead of the one in Python, and every digit as Python does.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(pd, name)

    @staticmethod
    def read_csv(path: str, delimiter: str, usecols: list[str], dtype: dict[str, Any], **keys: Any) -> pd.DataFrame:
        kinds = {name: kind if kind is np.float64 else object for name, kind in dtype.items()}
        keys |= {"engine": "c", "float_precision": "round_trip"}
        frame = pd.read_csv(path, sep=delimiter, usecols=usecols, dtype=kinds, **keys)
        return frame.fillna({name: "" for name in usecols if name.endswith("seq")})


def _fill_nan(self: Any) -> None:
    """RecBole's imputation by assignment: its chained ``fillna(inplace=True)`` does nothing in pandas 3."""
    from recbole.utils import FeatureType

    for feat_name in self.feat_name_list:
        feat = getattr(self, feat_name)
        for field in list(feat):
            ftype = self.field2type[field]
            if ftype == FeatureType.TOKEN:
                feat[field] = feat[field].fillna(0)
            elif ftype == FeatureType.FLOAT:
                feat[field] = feat[field].fillna(feat[field].mean())
            else:
                empty = np.array([], dtype=np.int64 if ftype == FeatureType.TOKEN_SEQ else np.float64)
                feat[field] = [empty if isinstance(value, float) else value for value in feat[field]]


def save_plain_checkpoint(self: Any, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
    """RecBole's checkpoint with plain values only, so that ``torch.load`` reads it with ``weights_only=True``.

    The original pickles the whole ``Config``, which torch 2.6 and later refuse to load.
    """
    if not self.config["single_spec"] and self.config["local_rank"] != 0:
        return
    path = kwargs.pop("saved_model_file", self.saved_model_file)
    state = {
        "config": identity(self.config, self.model),
        "epoch": epoch,
        "cur_step": self.cur_step,
        "best_valid_score": float(self.best_valid_score),
        "state_dict": self.model.state_dict(),
        "other_parameter": {key: _plain(value) for key, value in self.model.other_parameter().items()},
        "optimizer": self.optimizer.state_dict(),
    }
    write_checkpoint(path, state)
    if verbose:
        self.logger.info(f"Saving current: {path}")


def identity(config: Any, model: Any) -> dict[str, str]:
    """What a checkpoint must have in common with the model that takes its weights; a method has a backbone, too."""
    settings = getattr(model, "settings", None)
    backbone = {} if settings is None else {"backbone": settings.backbone}
    return {"model": str(config["model"]), "dataset": str(config["dataset"]), **backbone}


def write_checkpoint(path: Any, state: dict[str, Any]) -> None:
    """Write tensors and plain values as torch does, whole or not at all.

    Raises: DataError if the file cannot be written; torch itself hides a full disk behind a RuntimeError.
    """
    import torch

    from recbole_edt.files import write_safely

    content = io.BytesIO()
    torch.save(state, content)
    with write_safely(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def _plain(value: Any) -> Any:
    """An array or sparse matrix (ItemKNN, EASE and others keep some) as tensors; anything else unchanged."""
    import torch
    from scipy.sparse import issparse

    if issparse(value):
        entries = value.tocoo()
        parts = {name: torch.from_numpy(getattr(entries, name)) for name in ("row", "col", "data")}
        return {"format": value.format, "shape": list(value.shape), **parts}
    if isinstance(value, np.ndarray):
        return {"format": type(value).__name__, "data": torch.from_numpy(np.array(value))}
    return value


def _restored(value: Any) -> Any:
    """The inverse of ``_plain``."""
    from scipy.sparse import coo_matrix

    if not isinstance(value, dict) or "format" not in value:
        return value
    data = value["data"].cpu().numpy()
    if "shape" not in value:
        return np.asmatrix(data) if value["format"] == "matrix" else data
    place = value["row"].cpu().numpy(), value["col"].cpu().numpy()
    return coo_matrix((data, place), shape=value["shape"]).asformat(value["format"])


def _load_other_parameter(self: Any, para: dict[str, Any] | None) -> None:
    """RecBole's, for what ``save_plain_checkpoint`` wrote."""
    for key, value in (para or {}).items():
        setattr(self, key, _restored(value))
