"""A small two-domain data set, made anew for every test run, and what several test files need."""

from __future__ import annotations

import os

# Before torch loads: threads that wait by spinning slow down everything else on the machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny, and each core has a process of its own

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import browser  # noqa: F401  (a fixture)
from hypothesis import HealthCheck, settings
from local_llm import local_llm  # noqa: F401  (a fixture)
from recbole.data.interaction import Interaction

from recbole_edt.config.recbole_config import recbole_config
from recbole_edt.config.settings import load_settings
from recbole_edt.experiments import compare
from recbole_edt.models.parts.batch_fields import DOMAIN_SEQ, DOMAIN_SEQ_LEN, LAST_WINDOW, TARGET_SEQ
from recbole_edt.models.registry import METHODS
from recbole_edt.train import comparison, run

# The machine may be busy.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

WORDS = {
    "food": ["tea", "honey", "coffee", "pasta", "rice", "olive", "pepper", "sugar", "bean", "soup"],
    "kitchen": ["pan", "knife", "kettle", "bowl", "spoon", "grater", "oven", "mug", "plate", "whisk"],
}


def write_tiny(folder: Path, name: str, n_users: int = 40, n_items: int = 30, seed: int = 0) -> Path:
    """Atomic files of two domains in ``folder/name``: every user walks through items in both; ties in time."""
    rng = np.random.default_rng(seed)
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    items = [
        (f"{domain[0]}{i}", domain, f"{WORDS[domain][i % 10]} {WORDS[domain][(i * 7 + 3) % 10]} no {i}")
        for domain in WORDS
        for i in range(n_items // 2)
    ]
    lines = ["item_id:token\tdomain:token\ttitle:token_seq", *("\t".join(item) for item in items)]
    (place / f"{name}.item").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(n_users):
        start = rng.integers(n_items)
        for step in range(int(rng.integers(3, 14))):
            item = items[(start + step * 5 + rng.integers(2)) % n_items][0]
            rows.append(f"u{user}\t{item}\t{1_000_000_000 + step // 2}")
    (place / f"{name}.inter").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return place


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with the data set ``tiny`` under ``atomic_files/``."""
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "atomic_files", "tiny")
    return tmp_path


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of data sets with ``tiny``, and all that the stages before training make of it for every method."""
    folder = tmp_path_factory.mktemp("prepared")
    write_tiny(folder, "tiny")
    settings = load_settings("tiny", [], {**QUICK, "models": [*METHODS], "data_path": str(folder)})
    for stage in ("embed", "augment", "profile"):
        compare.STAGES[stage](settings, lambda line: None)
    return folder


@pytest.fixture
def opener(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function from a method and keys to one that opens it with further keys: model, training and test loader."""
    monkeypatch.chdir(tmp_path)

    def make(model: str, **quick):
        def settings(**keys):
            return load_settings("tiny", [], {**QUICK, **quick, "data_path": str(prepared), "model": model, **keys})

        def open_model(**keys):
            experiment = comparison.open_experiment(settings(**keys))
            view = recbole_config(experiment.settings, model, "tiny-edt", tmp_path / "saved")
            train_data, _, test_data, cls = run.loaders(experiment, view, model)
            torch.manual_seed(0)
            return cls(view, train_data._dataset), train_data, test_data

        return open_model

    return make


def one_sequence(model: Any, items: list[int], targets: list[int]) -> Interaction:
    """A batch of one user with the domains' own sequences, as the data set makes it."""
    fields = {
        "user_id": torch.tensor([1]),
        "item_id": torch.tensor([targets[-1]]),
        "item_id_list": torch.tensor([items]),
        "item_length": torch.tensor([len(items)]),
        TARGET_SEQ: torch.tensor([targets]),
        LAST_WINDOW: torch.tensor([True]),
    }
    for d in (0, 1):
        own = [i for i in items if model.item_domain[i] == d + 1]
        fields[DOMAIN_SEQ[d]] = torch.tensor([own or [0]])
        fields[DOMAIN_SEQ_LEN[d]] = torch.tensor([len(own)])
    return Interaction(fields)


# Settings under which a run on the tiny data set takes a second or two.
QUICK = {
    "epochs": 2,
    "finetune_epochs": 2,
    "hidden_size": 16,
    "inner_size": 16,
    "n_heads": 2,
    "MAX_ITEM_LIST_LENGTH": 8,
    "train_batch_size": 16,
    "augment.n_clusters": 3,
    "profile.n_clusters": 3,
}
