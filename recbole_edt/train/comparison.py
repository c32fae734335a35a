"""What the runs of one comparison share: data, split, candidates and seed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from recbole_edt.config.recbole_config import recbole_config
from recbole_edt.config.recbole_keys import RUN_DEFAULTS
from recbole_edt.config.settings import Settings
from recbole_edt.data import split
from recbole_edt.data.split import catalogue_hash
from recbole_edt.data.two_domains import TwoDomainData
from recbole_edt.evaluate.candidates import CandidateTable, SeenItems
from recbole_edt.files import sha256_of
from recbole_edt.models.registry import DEFAULT
from recbole_edt.pipeline import stages
from recbole_edt.train.dataset import EDTDataset


@dataclass(frozen=True)
class Experiment:
    """What every model of one comparison shares: the data, the split, the candidates, and the folder."""

    settings: Settings
    folder: Path
    dataset: EDTDataset
    """Loaded, not yet split; each model gets its own view of it."""
    split_hash: str
    candidates: dict[str, CandidateTable]
    """Drawn candidates of the parts ``validation`` and ``test``; empty unless they are sampled."""
    seen_items: str
    """``masked`` or ``ranked``: whether a user's own earlier items are no candidates, or are."""
    seen_why: str
    """Why, for the title of a table."""
    share_pretraining: bool = False
    """Whether runs that differ in fine-tuning alone pre-train once."""

    @property
    def candidates_hash(self) -> str:
        return sha256_of(*(table.hash for table in self.candidates.values())) if self.candidates else ""


def open_experiment(settings: Settings) -> Experiment:
    """Load the augmented data set, fix split and candidates, and name the run directory after them."""
    stages.read_augmented(settings)  # checks the files
    dataset = EDTDataset(recbole_config(settings, DEFAULT, settings.augmented, settings.runs_path))
    dataset._change_feat_format()
    return experiment_on(dataset, settings)


def experiment_on(dataset: EDTDataset, settings: Settings) -> Experiment:
    """The experiment on a loaded data set, under settings that leave its rows as they are."""
    data = dataset.source
    split_hash = split.split_hash(data, split.leave_one_out(data))
    seed = seed_of(settings)
    seen_items, seen_why = seen_items_of(data, settings.seen_items, settings.candidates)
    key = sha256_of(split_hash, catalogue_hash(data), settings.candidates, seen_items, seed)
    folder = settings.runs_path / f"{settings.dataset}-{key[:8]}"
    candidates = stored_candidates(dataset, settings.candidates, seed, folder)
    return Experiment(settings, folder, dataset, split_hash, candidates, seen_items, seen_why)


def seen_items_of(data: TwoDomainData, chosen: str, candidates: str = "domain") -> tuple[str, str]:
    """Whether own earlier items are ``masked`` or ``ranked``, and why.

    Where nobody has an item twice, what a user has can never be the target. Only training rows decide.
    """
    if candidates.startswith("sampled-"):
        return "masked", "stored negatives hold none"
    if chosen != "auto":
        return chosen, f"seen_items: {chosen}"
    train = split.training_rows(data)
    raw = ~train.generated
    pairs = train.user[raw].astype(np.int64) * len(train.items) + train.item[raw]
    repeats = len(pairs) - len(np.unique(pairs))
    if repeats:
        return "ranked", f"{repeats:,} training rows repeat one"
    return "masked", "no training row repeats one"


def seen_before(dataset: EDTDataset, mark: int) -> SeenItems:
    """What each user had before the target of a part, ``split.VALID`` or ``split.TEST``; no inserted item."""
    rows = dataset.sequences.raw(dataset.item_domain)
    before = rows.mark < mark
    return SeenItems.build(rows.user[before], rows.item[before], dataset.user_num)


def seed_of(settings: Settings) -> int:
    """The seed of sampled candidates and, unless a model has its own, of training."""
    return int(settings.recbole.get("seed", RUN_DEFAULTS["seed"]))


def stored_candidates(dataset: EDTDataset, candidates: str, seed: int, folder: Path) -> dict[str, CandidateTable]:
    """For ``sampled-N``: N negatives of each target's domain, outside all the user's interactions, per part.

    Drawn by the first run in a folder, and read by all others.
    """
    if not candidates.startswith("sampled-"):
        return {}
    n = int(candidates.partition("-")[2])
    rows = dataset.sequences.raw(dataset.item_domain)
    real = ~dataset.virtual
    pools = [torch.nonzero(real & (dataset.item_domain == d)).squeeze(1).numpy() for d in (1, 2)]
    tables = {}
    # Seeds of their own, so that early stopping does not select on the candidates of the test.
    for part, mark, part_seed in (("validation", split.VALID, seed + 1), ("test", split.TEST, seed)):
        path = folder / f"candidates-{part}.npy"
        if not path.is_file():
            user, target = rows.user[rows.mark == mark], rows.item[rows.mark == mark]
            domain = dataset.item_domain[target] - 1
            history = rows.user.numpy(), rows.item.numpy()
            CandidateTable.build(user.numpy(), domain.numpy(), pools, *history, n, part_seed).save(path)
        tables[part] = CandidateTable.load(path)
    return tables


def under(experiment: Experiment, candidates: str) -> Experiment:
    """The same with other candidates, which are stored where comparisons among them look for them.

    Raises: DataError if a user has fewer items left in the target's domain.
    """
    settings = dataclasses.replace(experiment.settings, candidates=candidates)
    return experiment_on(experiment.dataset, settings)
