"""What `run.py` measures: one task per process, named on the command line, its figures as one line of JSON."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

# The bare imports, above which peak memory is counted.
import recbole.data
import recbole.model.sequential_recommender
import recbole.trainer  # noqa: F401
import torch
from recbole.utils import init_seed

from recbole_edt.augment import augment
from recbole_edt.config.recbole_config import recbole_config
from recbole_edt.config.settings import load_settings
from recbole_edt.experiments import compare
from recbole_edt.pipeline import stages
from recbole_edt.text.vectors import EmbeddingTable
from recbole_edt.train import comparison, run
from recbole_edt.train.dataset import EDTDataset, SequenceLoader
from recbole_edt.train.phases import FrozenStates

# torch's first optimizer imports its compiler, 67 MB.
torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])

SMALL = {"item_representation": "id", "alpha": 0, "hidden_size": 32, "inner_size": 64, "n_layers": 1, "n_heads": 1}
Figures = dict[str, Any]


def peak_mb() -> float:
    """Peak resident memory of this process so far, in MB."""
    try:  # the other figure counts what the parent had when it started this process
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextmanager
def timed(figures: Figures, name: str) -> Iterator[None]:
    """Seconds of the block, under ``name``; of several times the median."""
    start = time.perf_counter()
    yield
    figures.setdefault(name, []).append(time.perf_counter() - start)


def open_model(folder: str, dataset: str, model: str, keys: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
    """A trainer with untrained weights, its loaders of training and test, and the experiment."""
    settings = load_settings(dataset, [], {"data_path": folder, "runs_path": f"{folder}/runs", **keys})
    experiment = comparison.open_experiment(settings)
    view = recbole_config(settings, model, settings.augmented, experiment.folder)
    init_seed(view["seed"], view["reproducibility"])
    train_data, _, test_data, cls = run.loaders(experiment, view, model)
    network = cls(view, train_data._dataset).to(view["device"])
    trainer = run.make_trainer(experiment, view, network, Path(folder) / "run", train_data._dataset)
    trainer.run_dir = None
    return trainer, train_data, test_data, experiment


def prepare(folder: str, dataset: str, last: str = "profile") -> Figures:
    """The stages before training, untimed; files that are there already are kept."""
    source = {"prepare.source": "ml-100k"} if dataset == "ml-100k-cross" else {}
    settings = load_settings(dataset, [], {"data_path": folder, **source})
    names = ["prepare", "embed", "augment", "profile"]
    for stage in names[: names.index(last) + 1]:
        compare.STAGES[stage](settings, lambda line: None)
    return {}


# ---- LLM-EDT -----------------------------------------------------------------------------------------------------


def llmedt(folder: str, dataset: str, epochs: int, **keys: Any) -> Figures:
    """Both phases of training and the ranking of all users after each."""
    found: Figures = {}
    with timed(found, "build_s"):
        trainer, train_data, test_data, _ = open_model(folder, dataset, "LLMEDT", keys)
    for epoch in range(epochs):
        with timed(found, "pretrain_s"):
            trainer._train_epoch(train_data, epoch)
    with timed(found, "rank_s"):
        trainer.evaluate(test_data, load_best_model=False)
    trainer.begin(trainer.model.method.phases[1])
    with timed(found, "frozen_states_s"):
        frozen = FrozenStates(trainer.model, train_data)
    for epoch in range(epochs):
        with timed(found, "finetune_s"):
            trainer._train_epoch(frozen, epoch)
    with timed(found, "rank_finetuned_s"):
        trainer.evaluate(test_data, load_best_model=False)
    return {**found, "targets": len(frozen.targets), "users": len(test_data._dataset.row)}


def profile(folder: str, dataset: str, **keys: Any) -> Figures:
    """Share of a pre-training epoch by kind of work, from torch's profiler."""
    trainer, train_data, _, _ = open_model(folder, dataset, "LLMEDT", keys)
    trainer._train_epoch(train_data, 0)
    with torch.profiler.profile() as profiler:
        trainer._train_epoch(train_data, 1)
    shares: dict[str, float] = {}
    for event in profiler.key_averages():
        kind = next((kind for kind, names in KINDS.items() if any(name in event.key for name in names)), "rest")
        shares[kind] = shares.get(kind, 0.0) + event.self_cpu_time_total
    total = sum(shares.values())
    return {"shares": {kind: share / total for kind, share in shares.items()}}


# Parts of the names of torch's operations; the first kind that fits counts.
KINDS = {
    "linear maps": ["aten::mm", "aten::addmm"],
    "attention": ["bmm", "softmax", "scaled_dot", "masked_fill"],
    "dropout": ["random_", "QuickDropout", "bernoulli", "aten::ge"],
    "activation and normalisation": ["gelu", "layer_norm"],
    "gathering items": ["index", "embedding", "unique", "sort", "nonzero", "gather"],
    "optimizer": ["Adam", "addcmul", "addcdiv", "lerp", "sqrt"],
    "copies": ["copy_", "cat", "fill_", "zero", "empty"],
}


# ---- SASRec ------------------------------------------------------------------------------------------------------

SASREC = {"MAX_ITEM_LIST_LENGTH": 50, "hidden_size": 64, "loss_type": "CE"}


def sasrec(folder: str, epochs: int) -> Figures:
    """RecBole's SASRec on whole sequences."""
    found: Figures = {}
    with timed(found, "build_s"):
        trainer, train_data, *_ = open_model(
            folder, "ml-100k-cross", "SASRec", {**SASREC, "train_batch_size": 64, "use_generated": False}
        )
    for epoch in range(epochs):
        with timed(found, "epoch_s"):
            trainer._train_epoch(train_data, epoch)
    return {**found, "targets": run._n_targets(train_data._dataset)}


def stock(folder: str, batches: int, anomaly: bool) -> Figures:
    """RecBole's own data set, loader and trainer on ml-100k; an epoch's time from its first ``batches`` batches.

    ``anomaly``: with autograd's anomaly mode, which importing RecBole's models switches on.
    """
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer

    torch.autograd.set_detect_anomaly(anomaly)
    os.chdir(folder)  # RecBole writes where it stands
    sys.argv = sys.argv[:1]  # and reads every command line
    found: Figures = {}
    keys = {**SASREC, "train_batch_size": 2048, "train_neg_sample_args": None, "show_progress": False}
    with timed(found, "build_s"):
        view = Config(model="SASRec", dataset="ml-100k", config_dict=keys)
        init_seed(view["seed"], view["reproducibility"])
        train_data, *_ = data_preparation(view, create_dataset(view))
    trainer = get_trainer(view["MODEL_TYPE"], "SASRec")(view, get_model("SASRec")(view, train_data._dataset))
    n_batches = len(train_data)
    with timed(found, "sample_s"):
        trainer._train_epoch(_First(train_data, batches), 0)
    share = min(batches, n_batches) / n_batches
    return {"build_s": found["build_s"], "epoch_s": [found["sample_s"][0] / share], "targets": len(train_data._dataset)}


class _First:
    """The first batches of a loader."""

    shuffle = True

    def __init__(self, loader: Any, n: int) -> None:
        self.loader, self.n = loader, n

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[Any]:
        for _, batch in zip(range(self.n), self.loader, strict=False):
            yield batch


# ---- data --------------------------------------------------------------------------------------------------------


def build(folder: str, dataset: str) -> Figures:
    """Atomic files to a split data set and its first training batch, at maximum length 200."""
    found: Figures = {}
    settings = load_settings(dataset, [], {"data_path": folder, "MAX_ITEM_LIST_LENGTH": 200})
    with timed(found, "build_s"):
        data = EDTDataset(recbole_config(settings, "SASRec", dataset, Path(folder)))
        train = data.build()[0]
        next(iter(SequenceLoader(train, 512, 42)))
    return {**found, "interactions": len(data.sequences.item)}


def augmentation(folder: str, dataset: str) -> Figures:
    """Offline augmentation of a data set whose items are embedded."""
    settings = load_settings(dataset, [], {"data_path": folder})
    data, table = stages.read(settings), EmbeddingTable.load(stages.item_vectors(settings))
    found: Figures = {}
    with timed(found, "augment_s"):
        augment.augment(data, table, settings.augment)
    return {**found, "users": len(data.users), "items": len(data.items)}


def scaling(folder: str, dataset: str, max_length: int) -> Figures:
    """Reading, one epoch and ranking with a small LLM-EDT on ids."""
    found: Figures = {}
    settings = load_settings(
        dataset, [], {"data_path": folder, "MAX_ITEM_LIST_LENGTH": max_length, "train_batch_size": 512, **SMALL}
    )
    view = recbole_config(settings, "LLMEDT", dataset, Path(folder))
    with timed(found, "build_s"):
        data = EDTDataset(view)
        data._change_feat_format()
    experiment = comparison.Experiment(settings, Path(folder), data, "", {})
    init_seed(view["seed"], view["reproducibility"])
    train_data, _, test_data, cls = run.loaders(experiment, view, "LLMEDT")
    network = cls(view, train_data._dataset).to(view["device"])
    trainer = run.make_trainer(experiment, view, network, Path(folder) / "run", train_data._dataset)
    repeats = 3 if len(train_data) <= 200 else 1
    for epoch in range(repeats):
        with timed(found, "epoch_s"):
            trainer._train_epoch(train_data, epoch)
    with timed(found, "rank_s"):
        trainer.evaluate(test_data, load_best_model=False)
    return {**found, "targets": run._n_targets(train_data._dataset), "users": len(test_data._dataset.row)}


# ---- inference ---------------------------------------------------------------------------------------------------


def inference(folder: str, dataset: str, model: str, **keys: Any) -> Figures:
    """Top ten of all items: users per second in batches, and milliseconds for one user alone."""
    trainer, _, test_data, _ = open_model(folder, dataset, model, keys)
    network, part = trainer.model, test_data._dataset
    if model == "LLMEDT":
        network.start(network.method.phases[1])
    network.eval()
    candidates = [torch.nonzero(~part.virtual & (part.item_domain == d)).squeeze(1) for d in (1, 2)]
    tables: list[torch.Tensor] = []
    found: Figures = {}
    with torch.no_grad():
        batches = [batch[0].to(network.device) for batch in test_data]
        top_ten(network, batches[0], candidates, tables)
        for _ in range(3):
            with timed(found, "all_users_s"):
                for batch in batches:
                    top_ten(network, batch, candidates, tables)
        for row in range(0, len(part.row), max(1, len(part.row) // 200)):
            one = part[torch.tensor([row])].to(network.device)
            with timed(found, "latency_s"):
                top_ten(network, one, candidates, tables)
    parameters = sum(p.numel() for p in network.parameters())
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    frozen_vectors = sum(b.numel() for b in network.buffers() if b.is_floating_point())
    counts = {"parameters": parameters, "trainable": trainable, "frozen_vectors": frozen_vectors}
    return {**found, "users": len(part.row), "items": sum(map(len, candidates)), **counts}


def top_ten(network: Any, batch: Any, candidates: list[torch.Tensor], tables: list[torch.Tensor]) -> torch.Tensor:
    """``[B, 10]`` item ids; ``tables`` keeps the candidates' vectors from call to call."""
    if not hasattr(network, "vector_scores"):
        return network.full_sort_predict(batch).topk(10).indices
    scores = network.vector_scores(batch)
    if not tables:
        tables += [scores.item[ids] for ids in candidates]
    parts = [(scores.of_domain(d) @ tables[d - 1].T).topk(10) for d in (1, 2)]
    best = torch.cat([part.values for part in parts], dim=1).topk(10).indices
    ids = torch.cat([candidates[d][part.indices] for d, part in enumerate(parts)], dim=1)
    return ids.gather(1, best)


TASKS: dict[str, Callable[..., Figures]] = {
    task.__name__: task for task in (prepare, llmedt, profile, sasrec, stock, build, augmentation, scaling, inference)
}


def main() -> None:
    task, arguments = sys.argv[1], json.loads(sys.argv[2])
    bare = peak_mb()
    found = TASKS[task](**arguments)
    figures = {name: median(value) if isinstance(value, list) else value for name, value in found.items()}
    figures |= {"peak_mb": peak_mb() - bare, "imports_mb": bare, "threads": torch.get_num_threads()}
    print(json.dumps(figures, default=float))


if __name__ == "__main__":
    main()
