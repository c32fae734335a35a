"""The stages in their order: prepare, embed, augment, profile, train, compare, recommend.

Each stage reads the files of those before it and writes its own, with a manifest; one whose inputs and settings
have not changed does nothing. Runs live under ``runs/DATASET-HASH/``, where the hash stands for the split, the
candidates and the seed, so that everything in one folder can be compared.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from recbole.data import create_samplers
from recbole.data.utils import get_dataloader
from recbole.trainer import trainer as recbole_trainer
from recbole.utils import ModelType, get_model, init_seed

import recbole_edt
from recbole_edt import atomic, augment, embeddings, profiles, raw, report, split
from recbole_edt.baselines import SEQUENCE_ROWS, sequence_trained
from recbole_edt.candidates import CandidateTable
from recbole_edt.config import RUN_DEFAULTS, Settings, model_values, recbole_config
from recbole_edt.dataset import EDTDataset, SequenceLoader, artefacts_hash, eval_loader, rows_for
from recbole_edt.errors import DataError
from recbole_edt.evaluation import RankCollector, RankEvaluator, read_ranks, standard_groups, write_ranks
from recbole_edt.files import (
    is_current,
    library_versions,
    read_json,
    sha256_of,
    write_json,
    write_manifest,
    write_safely,
    write_text,
)
from recbole_edt.model import LLMEDT
from recbole_edt.recommend import load as load_run
from recbole_edt.split import catalogue_hash
from recbole_edt.trainer import trainer_class

Say = Callable[[str], None]

# ---- files to augmented files ------------------------------------------------------------------------------------


def prepare(settings: Settings, say: Say) -> None:
    """Two-domain atomic files from a known source, or a check of the user's own."""
    source, folder, name = settings.prepare.source, settings.folder, settings.dataset
    outputs = [folder / f"{name}.inter", folder / f"{name}.item"]
    if source is not None and not is_current(folder / "prepare.json", raw.source_hash(source), outputs):
        raw.prepare(source, folder, name)
    data = read(settings)
    if not (split.leave_one_out(data) == split.TEST).any():
        raise DataError(f"{outputs[0]}: no user has {split.MIN_RAW_ROWS} interactions, so none can be held out")
    say(f"{name}: {raw.listed(raw.card(data))}")


def read(settings: Settings) -> atomic.TwoDomainData:
    """The raw data set, with its k-core and domain order applied."""
    path = settings.folder / f"{settings.dataset}.inter"
    if settings.prepare.source is not None and not path.is_file():
        raise DataError(f"{path} does not exist: run the stage prepare first (--dataset={settings.dataset})")
    return atomic.read(settings.folder, settings.dataset, settings.domains, settings.k_core)


def embed(settings: Settings, say: Say) -> None:
    """One vector per distinct item text, or the user's own vectors."""
    data, path, own = read(settings), _vectors(settings), settings.embed.vectors
    embedder = embeddings.EMBEDDERS[settings.embed.embedder]
    source = Path(own) if own else [embedder.name, embeddings.TEXT_TEMPLATE_VERSION]
    inputs = sha256_of(list(data.items), embeddings.item_text(data.item_fields), source)
    manifest = settings.folder / "embed.json"
    if not is_current(manifest, inputs, [path]):
        if own:
            table = embeddings.import_vectors(Path(own), data.items, path)
        else:
            table = embeddings.embed_items(data, embedder(), path)
        write_manifest(manifest, "embed", inputs, asdict(settings.embed), table.meta, [path])
    meta = embeddings.EmbeddingTable.load(path).meta
    policy = {"zero": "zero vectors", "drop": "dropped"}[settings.embed.missing_text]
    say(
        f"embedded {meta['n']} items, {meta['n_distinct_texts']} distinct, with {meta['model']}; "
        f"{meta['n_without_text']} without text or vector ({policy})"
    )


def augment_data(settings: Settings, say: Say) -> None:
    """Generated items of the other domain, filtered and inserted: the augmented atomic files and their vectors."""
    table = embeddings.EmbeddingTable.load(_vectors(settings))
    data = _with_text(settings, table)
    folder, name = _augmented_folder(settings), settings.augmented
    outputs = _augmented_files(settings)
    inputs = sha256_of(_content_hash(data), _vectors(settings), asdict(settings.augment), recbole_edt.__version__)
    manifest = folder / "augment.json"
    if not is_current(manifest, inputs, outputs):
        augmented, counts = augment.augment(data, table, settings.augment)
        atomic.write(augmented, folder, name)
        _save_vectors(augmented, table, settings)
        write_manifest(manifest, "augment", inputs, asdict(settings.augment), counts, outputs)
    for line in _augmentation(read_json(manifest)["counts"], data.domains):
        say(line)


def _augmentation(counts: Mapping[str, Any], domains: tuple[str, str]) -> Iterator[str]:
    """What augmentation did, one line per direction and one for the whole."""
    for source, target in (domains, domains[::-1]):
        way = f"{source}_to_{target}"
        if f"generated_{way}" not in counts:
            continue
        proposed = f"augmented {source} to {target}: {counts[f'generated_{way}']} proposed"
        if f"tau_{way}" not in counts:
            yield f"{proposed}, all kept (no filter)"
            continue
        above, kept, tau = (counts[f"{key}_{way}"] for key in ("above_tau", "kept", "tau"))
        share = counts[f"share_kept_{way}"]
        yield f"{proposed}, {above} above tau {tau:.3f}, {kept} of them kept by rank too ({share:.1%})"
        if not 0.01 <= above / max(counts[f"generated_{way}"], 1) <= 0.9:
            yield "note: tau lets hardly anything pass there, or nearly everything; see augment.tau"
    if counts["inserted"]:
        yield (
            f"augmented: {counts['inserted']} rows inserted for {counts['users_with_inserted']} users; mean domain "
            f"ratio {counts['mean_ratio_before']:.3f} before, {counts['mean_ratio_after']:.3f} after"
        )
    else:
        yield "augmented: nothing inserted"


def profile(settings: Settings, say: Say) -> None:
    """A text per user from the augmented training rows, and its vector."""
    folder, name = _augmented_folder(settings), settings.augmented
    path, users = folder / f"{name}.uservec.safetensors", folder / f"{name}.user"
    data = _read_augmented(settings)
    table = embeddings.EmbeddingTable.load(_item_vectors(settings))
    inputs = sha256_of(
        _content_hash(data), _item_vectors(settings), asdict(settings.profile), recbole_edt.__version__
    )
    manifest = folder / "profile.json"
    if not is_current(manifest, inputs, [path, users]):
        texts, has_profile = profiles.profile_users(split.training_rows(data), table, settings.profile)
        profiles.write_user_file(data.users, texts, users)
        embedder = embeddings.EMBEDDERS[settings.embed.embedder]()
        profiles.embed_profiles(data.users, texts, has_profile, embedder, path)
        counts = {"users": len(texts), "profiles": int(has_profile.sum())}
        write_manifest(manifest, "profile", inputs, asdict(settings.profile), counts, [path, users])
    counts = read_json(manifest)["counts"]
    say(f"profiles: {counts['profiles']} of {counts['users']} users")


def _with_text(settings: Settings, table: embeddings.EmbeddingTable) -> atomic.TwoDomainData:
    data = read(settings)
    if settings.embed.missing_text == "zero":
        return data
    without = ~table.lookup(data.items).any(axis=1)
    return atomic.drop_items(data, without) if without.any() else data


def _read_augmented(settings: Settings) -> atomic.TwoDomainData:
    path = _augmented_folder(settings) / f"{settings.augmented}.inter"
    if not path.is_file():
        raise DataError(f"{path} does not exist: run the stage augment first (--dataset={settings.dataset})")
    manifest = path.parent / "augment.json"
    if manifest.is_file() and not is_current(manifest, read_json(manifest)["inputs_hash"], _augmented_files(settings)):
        raise DataError(f"the files in {path.parent} are not as the stage augment wrote them: run it again")
    return atomic.read(path.parent, settings.augmented, settings.domains)


def _save_vectors(data: atomic.TwoDomainData, table: embeddings.EmbeddingTable, settings: Settings) -> None:
    """The vectors of the augmented catalogue: those we have, and new ones for virtual items."""
    path = _item_vectors(settings)
    if not data.virtual.any():
        kept = dataclasses.replace(table, tokens=data.items, rows=table.rows[table.find(data.items)])
        kept.save(path)
        return
    embeddings.embed_items(data, embeddings.EMBEDDERS[settings.embed.embedder](), path)


def _content_hash(data: atomic.TwoDomainData) -> str:
    return sha256_of(
        list(data.users[data.user]),
        list(data.items),
        data.item,
        data.time,
        data.generated,
        data.item_domain,
        data.item_fields.to_dict("list"),
        list(data.domains),
    )


def _vectors(settings: Settings) -> Path:
    return settings.folder / f"{settings.dataset}.itemvec.safetensors"


def _augmented_folder(settings: Settings) -> Path:
    return settings.data_path / settings.augmented


def _augmented_files(settings: Settings) -> list[Path]:
    folder, name = _augmented_folder(settings), settings.augmented
    return [folder / f"{name}.inter", folder / f"{name}.item", _item_vectors(settings)]


def _item_vectors(settings: Settings) -> Path:
    return _augmented_folder(settings) / f"{settings.augmented}.itemvec.safetensors"


# ---- one model ---------------------------------------------------------------------------------------------------


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

    @property
    def candidates_hash(self) -> str:
        return sha256_of(*(table.hash for table in self.candidates.values())) if self.candidates else ""


def open_experiment(settings: Settings) -> Experiment:
    """Load the augmented data set, fix split and candidates, and name the run directory after them."""
    data = _read_augmented(settings)
    split_hash = split.split_hash(data, split.leave_one_out(data))
    seed = int(settings.recbole.get("seed", RUN_DEFAULTS["seed"]))
    key = sha256_of(split_hash, catalogue_hash(data), settings.candidates, seed)
    folder = settings.runs_path / f"{settings.dataset}-{key[:8]}"
    dataset = EDTDataset(recbole_config(settings, "LLMEDT", settings.augmented, folder))
    dataset._change_feat_format()
    candidates = stored_candidates(dataset, settings.candidates, seed, folder)
    return Experiment(settings, folder, dataset, split_hash, candidates)


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


def run_directory(experiment: Experiment, name: str) -> Path:
    """A model's folder, named after everything its result depends on."""
    settings = experiment.settings
    config = recbole_config(settings, name, settings.augmented, experiment.folder)
    key = sha256_of(
        resolved_config(config), experiment.split_hash, artefacts_hash(config), recbole_edt.__version__
    )
    return experiment.folder / f"{name}-{key[:8]}"


def train_model(experiment: Experiment, name: str) -> report.ModelResult:
    """Train, or resume, or just read one model; its ranks on the test targets.

    A model's folder holds ``config.yaml``, ``epochs.csv``, ``best.pth``, ``log.txt``, ``ranks.csv`` and, once all
    is done, ``result.json``.
    """
    run_dir = run_directory(experiment, name)
    if not (run_dir / "result.json").is_file():
        config = recbole_config(experiment.settings, name, experiment.settings.augmented, run_dir)
        write_text(run_dir / "config.yaml", yaml.safe_dump(resolved_config(config), allow_unicode=True))
        _run(experiment, config, name, run_dir)
    return read_result(run_dir)


def _sees_generated(config: Any) -> bool:
    chosen = config["use_generated"]
    return config["model"] == "LLMEDT" if chosen is None else bool(chosen)


def resolved_config(config: Any) -> dict[str, Any]:
    """Every setting of a run as plain values, without paths and the machine's device."""
    hidden = {"data_path", "checkpoint_dir", "device", "gpu_id", "use_gpu", "state", "show_progress"}
    if config["model"] == "LLMEDT":
        hidden.add("training")  # it always trains on whole sequences
    plain = {key: value for key, value in config.final_config_dict.items() if key not in hidden}
    return json.loads(json.dumps(plain, default=lambda value: getattr(value, "name", str(value)), sort_keys=True))


def _run(experiment: Experiment, config: Any, name: str, run_dir: Path) -> None:
    init_seed(config["seed"], config["reproducibility"])
    train_data, valid_data, test_data, cls = loaders(experiment, config, name)
    model = cls(config, train_data._dataset).to(config["device"])
    trainer = make_trainer(experiment, config, model, run_dir, train_data._dataset)
    with _log_to(run_dir / "log.txt"):
        trainer.fit(train_data, valid_data)
        test = trainer.evaluate(test_data, load_best_model=True)
    ranks = trainer.evaluator.ranks
    tokens = experiment.dataset.field2id_token
    users, items = tokens[experiment.dataset.uid_field], tokens[experiment.dataset.iid_field]
    ranks = ranks.assign(**_groups(experiment, ranks))
    ranks.attrs = {**trainer.evaluator.ranks.attrs, "split_hash": experiment.split_hash}
    write_ranks(ranks, run_dir / "ranks.csv", users, items)
    result = {
        "model": name,
        "dataset": experiment.settings.augmented,
        "data_path": str(experiment.settings.data_path),
        "domains": experiment.dataset.domain_names,
        "settings": model_values(experiment.settings, name),
        "rows": train_data._dataset.training,
        "sees_generated": _sees_generated(config),
        "phases": trainer.phases,
        "seconds": sum(row["train_seconds"] for row in trainer.epoch_log),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "targets_per_epoch": _n_targets(train_data._dataset),
        "best_valid": dict(trainer.best_valid_result or {}),
        "valid_metric": trainer.valid_metric,
        "test": dict(test),
        "split_hash": experiment.split_hash,
        "catalogue_hash": catalogue_hash(experiment.dataset.source),
        "artefacts_hash": artefacts_hash(config),
        "candidates": experiment.settings.candidates,
        "candidates_hash": experiment.candidates_hash,
        "versions": library_versions(),
    }
    write_json(run_dir / "result.json", result)
    # Hidden files are what a kill left of a checkpoint half written.
    for leftover in [run_dir / "last.pth", run_dir / "best.pth.pretrain", *run_dir.glob(".*.pth*")]:
        leftover.unlink(missing_ok=True)


def loaders(experiment: Experiment, config: Any, name: str) -> tuple[Any, Any, Any, type]:
    """Loaders of the three parts, and the model's class, for the rows that this model trains on."""
    by_sequence = name == "LLMEDT" or (config["training"] == "sequence" and name in SEQUENCE_ROWS)
    if by_sequence:
        rows = rows_for(config) if name == "LLMEDT" else SEQUENCE_ROWS[name]
    else:
        rows = "prefix" if config["MODEL_TYPE"] == ModelType.SEQUENTIAL else "pairs"
    train, valid, test = experiment.dataset.for_model(config).parts(_sees_generated(config), rows)
    if by_sequence:
        train_data: Any = SequenceLoader(train, config["train_batch_size"], config["seed"])
        cls = LLMEDT if name == "LLMEDT" else sequence_trained(name)
    else:
        sampler = create_samplers(config, train, [train, valid, test])[0]
        train_data = get_dataloader(config, "train")(config, train, sampler, shuffle=config["shuffle"])
        cls = get_model(name)
    return train_data, eval_loader(config, valid), eval_loader(config, test), cls


def make_trainer(experiment: Experiment, config: Any, model: Any, run_dir: Path, part: EDTDataset) -> Any:
    """The model's trainer, writing into ``run_dir`` and ranking by our rules."""
    with _tensorboard_in(run_dir):
        trainer = trainer_class(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.run_dir, trainer.saved_model_file = run_dir, str(run_dir / "best.pth")
    device = config["device"]
    trainer.collectors = {
        phase: RankCollector(
            part.item_domain.to(device),
            ~part.virtual.to(device) & (part.item_domain > 0).to(device),
            "sampled" if experiment.candidates else experiment.settings.candidates,
            experiment.candidates.get(phase),
            part.domain_names,
            part.uid_field,
            config["model"],
        )
        for phase in ("validation", "test")
    }
    trainer.evaluator = RankEvaluator(config["topk"])
    return trainer


def _n_targets(part: EDTDataset) -> int:
    """Distinct training targets that one epoch covers."""
    train = part.sequences.mark == split.TRAIN
    if part.config["inserted_as_targets"] is False:
        train &= ~part.sequences.generated
    first = part.sequences.first == torch.arange(len(train))
    return int((train & ~first).sum() if part.training in ("sequence", "prefix") else train.sum())


def _groups(experiment: Experiment, ranks: pd.DataFrame) -> dict[str, Any]:
    """Labels of each test row for the report's groups, from raw training rows."""
    dataset = experiment.dataset
    rows = dataset.sequences.raw(dataset.item_domain)
    train = rows.mark == split.TRAIN
    real = (~dataset.virtual).numpy() & (dataset.item_domain > 0).numpy()
    return standard_groups(
        ranks, rows.user[train].numpy(), rows.item[train].numpy(), dataset.item_domain.numpy(), real
    )


class _PlainFormatter(logging.Formatter):
    """RecBole colours its messages for a terminal; a file wants none of that."""

    def format(self, record: logging.LogRecord) -> str:
        return re.sub(r"\x1b\[[0-9;]*m", "", super().format(record))


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """RecBole logs to the root logger: into the run directory, and not to the screen."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(_PlainFormatter("%(asctime)s %(levelname)s %(message)s"))
    root.handlers, root.level = [file], logging.INFO
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"recbole\.")  # its old names of torch
            yield
    finally:
        root.handlers, root.level = handlers, level
        file.close()


@contextmanager
def _tensorboard_in(run_dir: Path) -> Iterator[None]:
    """RecBole's trainer opens its TensorBoard files in the working directory; ours go to the run's."""
    from torch.utils.tensorboard import SummaryWriter

    original = recbole_trainer.get_tensorboard
    recbole_trainer.get_tensorboard = lambda logger: SummaryWriter(str(run_dir / "tensorboard"))
    try:
        yield
    finally:
        recbole_trainer.get_tensorboard = original


def read_result(run_dir: Path) -> report.ModelResult:
    """A finished run from its folder."""
    result = read_json(run_dir / "result.json")
    path = run_dir / "epochs.csv"
    epochs = pd.read_csv(path) if path.is_file() else None
    endings = [phase["ended_by"] for phase in result["phases"]]
    metric = result["valid_metric"]
    best = None
    if epochs is not None and metric in epochs:
        best = len(epochs) - int(epochs[metric].to_numpy()[::-1].argmax())  # of equals the last, as RecBole
    return report.ModelResult(
        name=result["model"],
        ranks=read_ranks(run_dir / "ranks.csv"),
        epochs=epochs,
        status=report.EPOCH_CAP if report.EPOCH_CAP in endings else endings[-1],
        best_epoch=best,
        seconds=result["seconds"],
        n_parameters=result["parameters"],
        note=f"{result['targets_per_epoch']} targets per epoch",
    )


# ---- the stages that train ---------------------------------------------------------------------------------------


def train(settings: Settings, say: Say) -> None:
    """Train the model named by ``model`` and print its metrics."""
    experiment = open_experiment(settings)
    result = train_model(experiment, settings.model)
    report.print_table([result], title_of(experiment), offline_note(settings))
    say(f"run directory: {run_directory(experiment, settings.model)}")


def compare(settings: Settings, say: Say) -> None:
    """Train all of ``models`` and report on them."""
    experiment = open_experiment(settings)
    results = [train_model(experiment, name) for name in settings.models]
    title, note = title_of(experiment), offline_note(settings)
    report.print_table(results, title, note)
    folder = experiment.folder
    report.write_metrics(results, folder)
    report.plot_curves(results, folder / "curves.png")
    text = report.markdown_report(
        results,
        title,
        note,
        reference="LLMEDT" if "LLMEDT" in settings.models else None,
        settings={name: model_values(settings, name) for name in settings.models},
        versions=library_versions(),
        reproduce=settings.command,
        figure="curves.png",
    )
    write_text(folder / "report.md", text + _data_section(settings))
    shared = {"split_hash": experiment.split_hash, "candidates": settings.candidates}
    write_json(folder / "comparison.json", {**shared, "models": settings.models, "versions": library_versions()})
    say(f"report: {folder / 'report.md'}")


def recommend(settings: Settings, say: Say) -> None:
    """Top items of each domain for every user, from the trained run of ``model``."""
    experiment = open_experiment(settings)
    run_dir = run_directory(experiment, settings.model)
    if not (run_dir / "result.json").is_file():
        others = sorted(path.parent.name for path in experiment.folder.glob(f"{settings.model}-*/result.json"))
        hint = f"; with other settings there is {', '.join(others)}: give its options again" if others else ""
        raise DataError(f"{run_dir} is no finished run of {settings.model}: run the stage train first{hint}")
    options = settings.recommend
    path = run_dir / "recommendations.csv"
    n_users = 0
    with write_safely(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        for frame in load_run(run_dir).all_users(options.k, options.seen):
            frame.to_csv(file, index=False, header=n_users == 0)
            n_users += frame["user"].nunique()
    say(f"recommendations for {n_users} users: {path}")


def title_of(experiment: Experiment) -> str:
    """Data set, split and part, as a heading."""
    return f"{experiment.settings.dataset}, leave-one-out (split {experiment.split_hash[:8]}), test targets"


def _data_section(settings: Settings) -> str:
    """The data card and what augmentation did, for the report."""
    manifest = _augmented_folder(settings) / "augment.json"
    counts = read_json(manifest)["counts"] if manifest.is_file() else {}  # augmented by someone else's program
    rows = {**raw.card(read(settings)), **counts}
    lines = [f"| {key.replace('_', ' ')} | {raw.number(value)} |" for key, value in rows.items()]
    return "\n".join(["", "## Data and augmentation", "", "| figure | value |", "|---|---|", *lines, ""])


def offline_note(settings: Settings) -> str:
    """Which parts ran without a language model."""
    return (
        "offline: no LLM was called; items proposed by co-occurrence, profiles made of telling words, "
        f"texts embedded by {settings.embed.vectors or settings.embed.embedder}"
    )


STAGES: dict[str, Callable[[Settings, Say], Any]] = {
    "prepare": prepare,
    "embed": embed,
    "augment": augment_data,
    "profile": profile,
    "train": train,
    "compare": compare,
    "recommend": recommend,
}


def run_all(settings: Settings, last: str, say: Say) -> None:
    """The stages up to profile, and then ``last``: ``train`` or ``compare``."""
    for stage in ("prepare", "embed", "augment", "profile", last):
        STAGES[stage](settings, say)
