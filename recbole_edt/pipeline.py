"""The stages in their order: prepare, embed, augment, profile, train, compare, recommend.

Each stage reads the files of those before it and writes its own, with a manifest; one whose inputs and settings
have not changed does nothing. Runs live under ``runs/DATASET-HASH/``, where the hash stands for the split, the
candidates and the seed, so that everything in one folder can be compared.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from recbole.data import create_samplers
from recbole.data.utils import get_dataloader
from recbole.trainer import trainer as recbole_trainer
from recbole.utils import ModelType, get_model, init_seed

import recbole_edt
from recbole_edt import atomic, augment, card, embeddings, histories, profiles, raw, report, split
from recbole_edt import recommend as recommending
from recbole_edt.baselines import SEQUENCE_ROWS, sequence_trained
from recbole_edt.candidates import CandidateTable
from recbole_edt.config import (
    RUN_DEFAULTS,
    Settings,
    budget_note,
    defaults_of,
    model_values,
    own_file,
    read_file,
    recbole_config,
    topk_of,
)
from recbole_edt.costs import Usage, dollars
from recbole_edt.dataset import EDTDataset, SequenceLoader, artefacts_hash, eval_loader, rows_for, sees_generated
from recbole_edt.errors import ConfigError, DataError
from recbole_edt.evaluation import RankCollector, RankEvaluator, read_ranks, standard_groups, write_ranks
from recbole_edt.files import (
    alone_in,
    faults_of,
    is_current,
    library_versions,
    read_bytes,
    read_json,
    sha256_of,
    write_json,
    write_manifest,
    write_text,
)
from recbole_edt.methods import DEFAULT, METHODS
from recbole_edt.split import catalogue_hash
from recbole_edt.tables import Column, ResultTable, escape_markdown
from recbole_edt.trainer import LLMEDTTrainer, PhaseConfig, load_weights, trainer_class
from recbole_edt.writer import LiveWriter, embedder_identity, llm_identity

Say = Callable[[str], None]
Opener = Callable[[Settings, Say], LiveWriter]
"""What gives a stage its access to a language model and to an embedder; only entered if there is work to do."""

# ---- files to augmented files ------------------------------------------------------------------------------------


def prepare(settings: Settings, say: Say, goes_on: bool = False) -> None:
    """Two-domain atomic files from a known source, or a check of the user's own.

    Args:
        settings: of the data set.
        say: for its statistics, and what is odd about it.
        goes_on: whether augment or profile follows; too many clusters are then an error, and else only a note.
    """
    config, folder, name = settings.prepare, settings.folder, settings.dataset
    made = config.source is not None and not raw.is_made(config, folder, name)
    if made:
        raw.prepare(config, folder, name, settings.domains)
    data = read(settings)
    if made or config.source is not None and card.recorded(folder).get("before") != card.statistics(data):
        card.write(folder, data)
        if lost := raw.losses(folder):
            say(f"{name}: {lost}")
    if not (split.leave_one_out(data) == split.TEST).any():
        path = folder / f"{name}.inter"
        raise DataError(f"{path}: no user has {split.MIN_RAW_ROWS} interactions, so none can be held out")
    if goes_on:
        check_clusters(settings, data)
    found = raw.card(data)
    lacking = [f"{name}: {lack}"] if (lack := raw.untitled(data)) else []
    clusters = [f"note: {fault}; give fewer before the stage augment" for fault in cluster_faults(settings, data)]
    for line in (f"{name}: {raw.listed(found)}", *lacking, *raw.oddities(found, data.domains), *clusters):
        say(line)


def check_clusters(settings: Settings, data: atomic.TwoDomainData) -> None:
    """Raises: ConfigError with all of `cluster_faults`."""
    if faults := cluster_faults(settings, data):
        raise ConfigError("\n".join(faults))


def cluster_faults(settings: Settings, data: atomic.TwoDomainData) -> list[str]:
    """A sentence for every number of clusters that is larger than a domain."""
    sizes = [int(((data.item_domain == d) & ~data.virtual).sum()) for d in (0, 1)]
    smallest = sizes.index(min(sizes))
    return [
        f"{group}.n_clusters: {n} is more than the {sizes[smallest]} items of {data.domains[smallest]}"
        for group, n in (("augment", settings.augment.n_clusters), ("profile", settings.profile.n_clusters))
        if n > sizes[smallest]
    ]


def read(settings: Settings) -> atomic.TwoDomainData:
    """The raw data set, with its k-core and domain order applied."""
    path = settings.folder / f"{settings.dataset}.inter"
    if settings.prepare.source is not None and not path.is_file():
        raise DataError(f"{path} does not exist: run the stage prepare first (--dataset={settings.dataset})")
    return atomic.read(settings.folder, settings.dataset, settings.domains, settings.k_core)


def embed(settings: Settings, say: Say, opened: Opener = LiveWriter) -> None:
    """One vector per distinct item text, or the user's own vectors."""
    data, path, own = read(settings), item_vectors(settings), settings.embed.vectors
    inputs, manifest = _embed_inputs(settings, data), settings.folder / "embed.json"
    if not _is_done(manifest, inputs, [path], settings):
        with opened(settings, say) as writer:
            if own:
                table = embeddings.import_vectors(Path(own), data.items, path)
            else:
                table = embeddings.embed_items(data, writer, path)
            counts = writer.counted(table.meta)
        write_manifest(manifest, "embed", inputs, asdict(settings.embed), counts, [path])
    meta = embeddings.EmbeddingTable.load(path).meta
    policy = {"zero": "zero vectors", "drop": "dropped"}[settings.embed.missing_text]
    say(
        f"embedded {meta['n']} items, {meta['n_distinct_texts']} distinct, with {meta['model']}; "
        f"{meta['n_without_text']} without text or vector ({policy})"
    )
    _say_asked(manifest, "embed", len(data.users), say)


def _embed_inputs(settings: Settings, data: atomic.TwoDomainData) -> str:
    """Hash of what the items' vectors depend on."""
    own = settings.embed.vectors
    source = Path(own) if own else embedder_identity(settings)
    return sha256_of(list(data.items), embeddings.item_text(data.item_fields), source)


def _check_vectors(settings: Settings) -> None:
    """Raises: DataError if the stage embed made the items' vectors of other texts, or with another embedder."""
    manifest, path = settings.folder / "embed.json", item_vectors(settings)
    if manifest.is_file() and not is_current(manifest, _embed_inputs(settings, read(settings)), [path]):
        raise DataError(
            f"{path}: made of other texts, or with other settings of embed; give the options of the "
            "stage embed again, or run it with these"
        )


def augment_data(settings: Settings, say: Say, opened: Opener = LiveWriter) -> None:
    """Generated items of the other domain, filtered and inserted: the augmented atomic files and their vectors.

    Raises: DataError if the items' vectors are not those of their texts and embedder.
    """
    table = embeddings.EmbeddingTable.load(item_vectors(settings))
    _check_vectors(settings)
    data = with_text(settings, table)
    check_clusters(settings, data)
    folder, name = augmented_folder(settings), settings.augmented
    outputs = [*augmented_files(settings), folder / AUGMENT_TRACE]
    made_of = _made_of(data, item_vectors(settings))
    inputs = _inputs(settings, made_of, settings.augment)
    manifest = folder / "augment.json"
    has_card = settings.prepare.source is not None and not settings.data_variant
    if not _is_done(manifest, inputs, outputs, settings):
        with opened(settings, say) as writer:
            done = augment.augment(data, table, settings.augment, writer)
            atomic.write(done.data, folder, name)
            add_vectors(done.data, table, writer).save(augmented_vectors(settings))
            augment.write_trace(done.trace, outputs[-1])
            counts = writer.counted(done.counts)
        if has_card:
            card.write(settings.folder, read(settings), done.data)
        write_manifest(manifest, "augment", inputs, _shown(settings, settings.augment), counts, outputs, made_of)
    elif has_card and "after" not in card.recorded(settings.folder):  # prepare has written it anew
        card.write(settings.folder, read(settings), read_augmented(settings))
    for line in _augmentation(read_json(manifest)["counts"], data.domains):
        say(line)
    _say_asked(manifest, "augment", len(data.users), say)


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
        kept_of = f"{kept} of them kept by rank too ({share:.1%})"
        yield f"{proposed}, {above} above tau {tau:.3f}, {kept_of}{_unfit(counts, way)}"
        if counts[f"generated_{way}"] and not 0.01 <= above / counts[f"generated_{way}"] <= 0.9:
            yield "note: tau lets hardly anything pass there, or nearly everything; see augment.tau"
    if counts["inserted"]:
        yield (
            f"augmented: {counts['inserted']} rows inserted for {counts['users_with_inserted']} users; mean domain "
            f"ratio {counts['mean_ratio_before']:.3f} before, {counts['mean_ratio_after']:.3f} after"
        )
    else:
        yield "augmented: nothing inserted"


def _unfit(counts: Mapping[str, Any], way: str) -> str:
    """How many proposals never came to the filter, and why; an LLM may repeat itself, or what the user has."""
    fates = counts.get(f"fates_{way}", {})
    found = [f"{n} {fate}" for fate, n in fates.items() if fate not in ("kept", "rank", "tau", *counts["failed"])]
    return f"; not considered: {', '.join(found)}" if found else ""


def profile(settings: Settings, say: Say, opened: Opener | None = None) -> None:
    """A text per user from the training rows, and its vector; once for each kind that the models to train read."""
    opened = opened or partial(LiveWriter, spent=Usage())  # one account for all kinds
    data = read_augmented(settings)
    table = embeddings.EmbeddingTable.load(augmented_vectors(settings))
    for kind in settings.profile_kinds:
        _profile_kind(settings, kind, data, table, say, opened)


def _profile_kind(
    settings: Settings,
    kind: profiles.ProfileConfig,
    data: atomic.TwoDomainData,
    table: embeddings.EmbeddingTable,
    say: Say,
    opened: Opener,
) -> None:
    folder, infix = augmented_folder(settings), profiles.infix(kind.pipeline)
    stem = f"{settings.augmented}.{infix}"
    path, users = folder / f"{stem}uservec.safetensors", folder / f"{stem}user"
    trace, manifest = folder / f"profile_trace.{infix}jsonl", folder / f"profile.{infix}json"
    made_of = _made_of(data, augmented_vectors(settings))
    inputs = _inputs(settings, made_of, kind)
    if not _is_done(manifest, inputs, [path, users, trace], settings):
        with opened(settings, say) as writer:
            done = profiles.profile_users(split.training_rows(data), table, kind, writer)
            profiles.write_user_file(data.users, done.texts, users)
            profiles.embed_profiles(data.users, done.texts, done.has_profile, writer, path)
            augment.write_trace(done.trace, trace)
            counts = writer.counted(done.counts)
        write_manifest(manifest, "profile", inputs, _shown(settings, kind), counts, [path, users, trace], made_of)
    counts = read_json(manifest)["counts"]
    name = "profiles" if kind.pipeline == profiles.SRA else f"{kind.pipeline} profiles"
    say(f"{name}: {counts['profiles']} of {counts['users']} users")
    _say_asked(manifest, "profile", len(data.users), say)


AUGMENT_TRACE = "augment_trace.jsonl"
"""What became of each proposal; a file beside the augmented data."""


def _is_done(manifest: Path, inputs: str, outputs: Sequence[Path], settings: Settings) -> bool:
    """Whether a stage has nothing left to do: inputs and outputs as they were, and no request that failed.

    Failed requests are asked again, except in a replay, which repeats what was.
    """
    if not is_current(manifest, inputs, outputs):
        return False
    return settings.llm.replay or not read_json(manifest)["counts"].get("failed")


def _say_asked(manifest: Path, stage: str, n_users: int, say: Say) -> None:
    """What the stage's answers were, and cost, whenever that was paid; nothing for an offline stage."""
    counts = read_json(manifest)["counts"]
    if counts.get("failed"):
        kinds = ", ".join(f"{n} {kind}" for kind, n in counts["failed"].items())
        say(f"{stage}: {sum(counts['failed'].values())} failed ({kinds}); the same command asks for those again")
    for name, used in counts.get("used", {}).items():
        say(f"{stage}, {WORDS[name]}: {_usage_line(used, n_users, paper_usd(stage, name))}")


WORDS = {"chat": "answers", "vectors": "vectors"}
"""What each kind of client gives."""
PAPER_USD = {"embed": 0.00009, "augment": 0.000194, "profile": 0.000477}
"""What the paper paid per user for vectors of items, for generation and for profiles."""


def _usage_line(used: Mapping[str, Any], n_users: int, paper: float | None) -> str:
    tokens = f"{used['calls']:,}, {used['prompt_tokens']:,} tokens in, {used['completion_tokens']:,} out"
    if used["cost_usd"] is None:
        return f"{tokens}; price not known (see llm.prices)"
    per_user = f"{dollars(used['cost_usd'])}, {dollars(used['cost_usd'] / n_users)} per user"
    return f"{tokens}; {per_user}" + (f" (paper: {dollars(paper)})" if paper else "")


def paper_usd(stage: str, kind: str) -> float | None:
    """The paper counts the vectors of items alone, and answers of generation and of profiles."""
    return PAPER_USD.get(stage) if (stage == "embed") == (kind == "vectors") else None


def _made_of(data: atomic.TwoDomainData, vectors: Path) -> str:
    """Hash of the data that a stage's files are made of."""
    return sha256_of(_content_hash(data), vectors)


def _inputs(settings: Settings, made_of: str, group: Any) -> str:
    """Hash of what a stage's files depend on; ``group`` is its configuration."""
    return sha256_of(
        made_of,
        asdict(group),
        recbole_edt.__version__,
        embedder_identity(settings),
        llm_identity(settings) if group.generator == "llm" else [],
    )


def _shown(settings: Settings, group: Any) -> dict[str, Any]:
    """A stage's configuration, with that of the LLM if it is asked."""
    return {**asdict(group), **({"llm": llm_identity(settings)} if group.generator == "llm" else {})}


def check_made_with(settings: Settings, data: atomic.TwoDomainData, augmented: atomic.TwoDomainData) -> None:
    """The files of augment and profile, where these stages made them, are those of these settings and data.

    Raises: DataError naming the settings that differ.
    """
    of_rows, of_profiles = _made_of(data, item_vectors(settings)), _made_of(augmented, augmented_vectors(settings))
    stages = {
        "augment": (_inputs(settings, of_rows, settings.augment), settings.augment),
        "profile": (_inputs(settings, of_profiles, settings.profile), settings.profile),
    }
    manifests = {stage: one for stage, one in stage_manifests(settings).items() if stage in stages}
    for stage, (inputs, group) in stages.items():
        if manifests[stage] and manifests[stage]["inputs_hash"] != inputs:
            keys = ", ".join(_differing(settings, stage, manifests[stage], group))
            raise DataError(
                f"{augmented_folder(settings) / stage}.json: the stage {stage} was run with other settings or data"
                f"{f' ({keys})' if keys else ''}; give the run's options again, or run it with these"
            )


def _differing(settings: Settings, stage: str, manifest: Mapping[str, Any], group: Any) -> list[str]:
    """Keys that differ between the settings that a stage was run with and these."""
    then, now = (pd.json_normalize(one).iloc[0] for one in (manifest["config"], _shown(settings, group)))
    keys = [key for key in dict.fromkeys([*then.index, *now.index]) if str(then.get(key)) != str(now.get(key))]
    return [key if key.startswith("llm") else f"{stage}.{key}" for key in keys]


def augmented_with(settings: Settings) -> augment.AugmentConfig:
    """What the augmented rows were made with; where someone else's program made them, what is given now."""
    made = stage_manifests(settings)["augment"].get("config", {})
    known = {key: value for key, value in made.items() if hasattr(settings.augment, key)}
    return dataclasses.replace(settings.augment, **known)


def with_text(settings: Settings, table: embeddings.EmbeddingTable) -> atomic.TwoDomainData:
    """The raw data set, without the items that ``embed.missing_text`` drops."""
    data = read(settings)
    if settings.embed.missing_text == "zero":
        return data
    without = ~table.lookup(data.items).any(axis=1)
    return atomic.drop_items(data, without) if without.any() else data


def read_augmented(settings: Settings) -> atomic.TwoDomainData:
    """The augmented data set, as its stage wrote it."""
    path = augmented_folder(settings) / f"{settings.augmented}.inter"
    if not path.is_file():
        own = own_file(settings.dataset)
        if settings.prepare.source is None and not settings.folder.exists() and not own.is_file():
            raise DataError(f"no data set {settings.dataset} in {settings.data_path}/ and no {own}; check --dataset")
        raise DataError(f"{path} does not exist: run the stage augment first (--dataset={settings.dataset})")
    manifest = path.parent / "augment.json"
    if manifest.is_file() and not is_current(manifest, read_json(manifest)["inputs_hash"], augmented_files(settings)):
        raise DataError(f"the files in {path.parent} are not as the stage augment wrote them: run it again")
    return atomic.read(path.parent, settings.augmented, settings.domains)


def add_vectors(
    data: atomic.TwoDomainData, table: embeddings.EmbeddingTable, embedder: embeddings.Embedder
) -> embeddings.EmbeddingTable:
    """Vectors of the augmented catalogue: those of ``table``, and new ones for virtual items.

    Raises: DataError if the embedder's vectors have another length than those of ``table``.
    """
    rows = np.zeros(len(data.items), np.int32)
    rows[~data.virtual] = table.rows[table.find(data.items[~data.virtual])]
    if not data.virtual.any():
        return dataclasses.replace(table, tokens=data.items, rows=rows)
    new = embedder.embed(embeddings.item_text(data.item_fields[data.virtual]))
    if new.shape[1] != table.dim:
        raise DataError(
            f"the items' vectors have {table.dim} numbers, those of {embedder.name} have {new.shape[1]}; "
            "use vectors of one model for both"
        )
    rows[data.virtual] = len(table.vectors) + np.arange(len(new))
    meta = {**table.meta, "n": len(data.items), "n_virtual": len(new)}
    return dataclasses.replace(table, tokens=data.items, rows=rows, vectors=np.vstack([table.vectors, new]), meta=meta)


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


def item_vectors(settings: Settings) -> Path:
    """The items' vectors as the stage embed made them."""
    return settings.folder / f"{settings.dataset}.itemvec.safetensors"


def augmented_folder(settings: Settings) -> Path:
    """The augmented data set's atomic files."""
    return settings.data_path / settings.augmented


def augmented_files(settings: Settings) -> list[Path]:
    """Rows, items and item vectors of the augmented data set."""
    folder, name = augmented_folder(settings), settings.augmented
    return [folder / f"{name}.inter", folder / f"{name}.item", augmented_vectors(settings)]


def augmented_vectors(settings: Settings) -> Path:
    """The same with those of written items."""
    return augmented_folder(settings) / f"{settings.augmented}.itemvec.safetensors"


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
    share_pretraining: bool = False
    """Whether runs that differ in fine-tuning alone pre-train once."""

    @property
    def candidates_hash(self) -> str:
        return sha256_of(*(table.hash for table in self.candidates.values())) if self.candidates else ""


def open_experiment(settings: Settings) -> Experiment:
    """Load the augmented data set, fix split and candidates, and name the run directory after them."""
    read_augmented(settings)  # checks the files
    dataset = EDTDataset(recbole_config(settings, DEFAULT, settings.augmented, settings.runs_path))
    dataset._change_feat_format()
    return experiment_on(dataset, settings)


def experiment_on(dataset: EDTDataset, settings: Settings) -> Experiment:
    """The experiment on a loaded data set, under settings that leave its rows as they are."""
    data = dataset.source
    split_hash = split.split_hash(data, split.leave_one_out(data))
    seed = seed_of(settings)
    key = sha256_of(split_hash, catalogue_hash(data), settings.candidates, seed)
    folder = settings.runs_path / f"{settings.dataset}-{key[:8]}"
    candidates = stored_candidates(dataset, settings.candidates, seed, folder)
    return Experiment(settings, folder, dataset, split_hash, candidates)


class Laboratory:
    """Experiments under settings that start from the same: rows and profiles of their own are made when first needed.

    Args:
        settings: what all start from; their data are made, or found, at once.
        say: for what the stages before training say.

    Attributes:
        base: the experiment under ``settings``.
    """

    def __init__(self, settings: Settings, say: Say) -> None:
        self.settings, self._say = settings, say
        self._opened = partial(LiveWriter, spent=Usage())  # one account for all
        prepare(settings, say, goes_on=True)
        embed(settings, say, self._opened)
        self._made: set[str] = set()
        self.make(settings)
        self.base = self._last = open_experiment(settings)

    def make(self, own: Settings, name: str = "") -> None:
        """Run the stages augment and profile for settings with other rows or profiles, once."""
        if own.augmented not in self._made:
            for stage in (augment_data, profile):
                stage(own, lambda line: self._say(f"{name}: {line}" if name else line), self._opened)
            self._made.add(own.augmented)

    def experiment(self, own: Settings, name: str = "") -> Experiment:
        """The experiment under other settings; the data of the base, and those used last, are kept loaded."""
        self.make(own, name)
        loaded = {one.settings.augmented: one for one in (self.base, self._last)}
        if own.augmented not in loaded:
            self._last = loaded[own.augmented] = open_experiment(own)
        return experiment_on(loaded[own.augmented].dataset, own)


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

    Raises: DataError if another process is training it.
    """
    run_dir = run_directory(experiment, name)
    if not (run_dir / "result.json").is_file():
        with alone_in(run_dir):
            if not (run_dir / "result.json").is_file():  # another process may have ended just before
                _run(experiment, _start(experiment, name, run_dir), name, run_dir)
    return read_result(run_dir)


def finished_run(experiment: Experiment, name: str) -> Path:
    """Folder of a model that is trained.

    Raises: DataError naming what there is instead.
    """
    run_dir = run_directory(experiment, name)
    if not (run_dir / "result.json").is_file():
        others = sorted(path.parent.name for path in experiment.folder.glob(f"{name}-*/result.json"))
        hint = f"; with other settings there is {', '.join(others)}: give its options again" if others else ""
        raise DataError(f"{run_dir} is no finished run of {name}: run the stage train first{hint}")
    return run_dir


ALL_DATA = "all-data"
"""Folder, in that of a run, of the same model trained on everything."""


def train_on_all(experiment: Experiment, name: str) -> Path:
    """Train a finished run's model once more on all interactions, for as many epochs as validation chose.

    Nothing can be measured with it any more: there are no ranks, and no command compares it.

    Returns: its folder; a training that is done is not repeated.
    """
    run_dir = finished_run(experiment, name)
    folder = run_dir / ALL_DATA
    if not (folder / "result.json").is_file():
        with alone_in(folder):
            if not (folder / "result.json").is_file():
                _run_on_all(experiment, name, run_dir, folder)
    return folder


def _run_on_all(experiment: Experiment, name: str, run_dir: Path, folder: Path) -> None:
    values = {**(experiment.settings.model_settings.get(name) or {}), **chosen_epochs(run_dir)}
    models = {**experiment.settings.model_settings, name: values}
    settings = dataclasses.replace(experiment.settings, model_settings=models)
    config = recbole_config(settings, name, settings.augmented, folder)
    _write_config(config, folder)
    init_seed(config["seed"], config["reproducibility"])
    part = experiment.dataset.for_model(config).everything(sees_generated(config), _rows_of(config, name))
    train_data, cls = _training(config, name, [part, part, part])
    model = cls(config, part).to(config["device"])
    shared = dataclasses.replace(experiment, settings=settings, share_pretraining=False)
    trainer = make_trainer(shared, config, model, folder, part)
    with _log_to(folder / "log.txt"):
        trainer.fit(train_data)
    measured = ("test", "best_valid", "valid_metric", "candidates", "candidates_hash")
    validated = {key: value for key, value in read_json(run_dir / "result.json").items() if key not in measured}
    own = {
        "trained_on": recommending.EVERYTHING,
        "settings": model_values(settings, name),
        "phases": [{**phase, "ended_by": "as many epochs as validation chose"} for phase in trainer.phases],
        "seconds": sum(row["train_seconds"] for row in trainer.epoch_log),
        "targets_per_epoch": _n_targets(part),
        "versions": library_versions(),
    }
    write_json(folder / "result.json", {**validated, **own})
    _remove_leftovers(folder)


def chosen_epochs(run_dir: Path) -> dict[str, int]:
    """Epochs of each phase up to the best validation, by key; fine-tuning that did not help has none.

    Of equals the last counts, as in RecBole's early stopping. Empty for a model without epochs.
    """
    result, epochs = read_json(run_dir / "result.json"), read_epochs(run_dir)
    metric, always = result["valid_metric"], _keeps_last_phase(result)
    if epochs is None or metric not in epochs:
        return {}
    best, found = -np.inf, {}
    for phase, rows in epochs.dropna(subset=[metric]).groupby("phase", sort=False):
        top = rows[metric].max()
        n_epochs = int(rows.loc[rows[metric] == top, "epoch"].iloc[-1]) + 1
        found["finetune_epochs" if phase == "finetune" else "epochs"] = n_epochs if top >= best or always else 0
        best = max(best, top)
    return found


def _keeps_last_phase(result: Mapping[str, Any]) -> bool:
    """Whether a run's weights are those of its last phase, even if an earlier one was better."""
    return bool(result.get("settings", {}).get("adapter_residual", False))


def read_epochs(run_dir: Path) -> pd.DataFrame | None:
    """The log of a run's epochs; None for a model without epochs.

    Raises: DataError if it is damaged.
    """
    path = run_dir / "epochs.csv"
    try:
        return pd.read_csv(path) if path.is_file() else None
    except (OSError, ValueError) as error:
        problem = str(error).strip().partition("\n")[0]
        raise DataError(f"{path}: no table of epochs ({problem}); delete its folder to train it anew") from error


def ranks_under(experiment: Experiment, name: str, candidates: str) -> pd.DataFrame:
    """Ranks of a finished run's test targets among other candidates than it was trained with, kept beside its own."""
    run_dir = run_directory(experiment, name)
    path = run_dir / f"ranks-{candidates}.csv"
    if not (path.is_file() and path.with_suffix(".json").is_file()):
        _, trainer, test_data = open_run(under(experiment, candidates), name, run_dir)
        with _log_to(run_dir / "log.txt"):
            trainer.evaluate(test_data, load_best_model=False)
        _write_ranks(experiment, trainer.evaluator.ranks, path)
    return read_ranks(path)


def under(experiment: Experiment, candidates: str) -> Experiment:
    """The same with other candidates, which are stored where comparisons among them look for them.

    Raises: DataError if a user has fewer items left in the target's domain.
    """
    settings = dataclasses.replace(experiment.settings, candidates=candidates)
    return experiment_on(experiment.dataset, settings)


def open_run(experiment: Experiment, name: str, run_dir: Path) -> tuple[Any, Any, Any]:
    """Model with its weights, trainer and test loader of a finished run."""
    config = recbole_config(experiment.settings, name, experiment.settings.augmented, run_dir)
    init_seed(config["seed"], config["reproducibility"])
    train_data, _, test_data, cls = loaders(experiment, config, name)
    model = cls(config, train_data._dataset).to(config["device"])
    if name in METHODS:
        model.to_last_phase()
    load_weights(model, config, run_dir / "best.pth")
    return model, make_trainer(experiment, config, model, run_dir, train_data._dataset, trains=False), test_data


def _write_ranks(experiment: Experiment, ranks: pd.DataFrame, path: Path) -> None:
    tokens = experiment.dataset.field2id_token
    users, items = tokens[experiment.dataset.uid_field], tokens[experiment.dataset.iid_field]
    about = {**ranks.attrs, "split_hash": experiment.split_hash}
    ranks = ranks.assign(**_groups(experiment, ranks))
    ranks.attrs = about
    write_ranks(ranks, path, users, items)


def resolved_config(config: Any) -> dict[str, Any]:
    """Every setting of a run as plain values, without paths and the machine's device."""
    hidden = {"data_path", "checkpoint_dir", "device", "gpu_id", "use_gpu", "state", "show_progress"}
    if config["model"] in METHODS:
        hidden.add("training")  # they always train on whole sequences
    plain = {key: value for key, value in config.final_config_dict.items() if key not in hidden}
    return json.loads(json.dumps(plain, default=lambda value: getattr(value, "name", str(value)), sort_keys=True))


def validate_model(experiment: Experiment, name: str, run_dir: Path) -> dict[str, Any]:
    """Train, or resume, or just read one model that is judged on validation alone; its test targets are not ranked.

    The folder ends up with ``config.yaml``, ``epochs.csv``, ``log.txt`` and ``valid.json``, without weights. What it
    holds of other settings, left by a search that was begun anew, is not read.

    Returns: what ``valid.json`` holds: ``score`` (the validation metric of the best epoch), ``metric``, ``epochs``,
        ``seconds`` of training, ``phases`` and ``parameters``.
    """
    path = run_dir / "valid.json"
    config = recbole_config(experiment.settings, name, experiment.settings.augmented, run_dir)
    if not (path.is_file() and _is_of(config, run_dir)):
        with alone_in(run_dir):
            if not _is_of(config, run_dir):
                for old in (path, *run_dir.glob("*.pth*")):
                    old.unlink(missing_ok=True)
            if not path.is_file():
                _run_to_validate(experiment, name, run_dir)
    return read_json(path)


def _is_of(config: Any, run_dir: Path) -> bool:
    """Whether what a folder holds, if anything, was trained with these settings."""
    path = run_dir / "config.yaml"
    try:
        then = yaml.safe_load(read_bytes(path)) if path.is_file() else {}
        now = yaml.safe_load(_as_yaml(config))
        return all(key in now and now[key] == value for key, value in then.items())
    except (yaml.YAMLError, AttributeError):  # damaged
        return False


def _run_to_validate(experiment: Experiment, name: str, run_dir: Path) -> None:
    config = _start(experiment, name, run_dir)
    trainer, model, _, _ = _fitted(experiment, config, name, run_dir)
    result = {"score": float(trainer.best_valid_score), "metric": trainer.valid_metric.lower()}
    write_json(run_dir / "valid.json", {**result, "epochs": len(trainer.epoch_log), **_training_of(trainer, model)})
    for weights in run_dir.glob("*.pth*"):
        weights.unlink()


def _start(experiment: Experiment, name: str, run_dir: Path) -> Any:
    """The configuration of a run that begins, or goes on, written into its folder."""
    config = recbole_config(experiment.settings, name, experiment.settings.augmented, run_dir)
    _write_config(config, run_dir)
    return config


def _write_config(config: Any, run_dir: Path) -> None:
    write_text(run_dir / "config.yaml", _as_yaml(config))


def _as_yaml(config: Any) -> str:
    """Every setting of a run, those that were not given, too."""
    values = {**defaults_of(config["model"], config["backbone"]), **resolved_config(config)}
    return str(yaml.safe_dump(values, allow_unicode=True))


def _fitted(experiment: Experiment, config: Any, name: str, run_dir: Path) -> tuple[Any, Any, Any, Any]:
    """Trainer and model after training, the training part, and the loader of the test targets."""
    init_seed(config["seed"], config["reproducibility"])
    train_data, valid_data, test_data, cls = loaders(experiment, config, name)
    model = cls(config, train_data._dataset).to(config["device"])
    trainer = make_trainer(experiment, config, model, run_dir, train_data._dataset)
    with _log_to(run_dir / "log.txt"):
        trainer.fit(train_data, valid_data)
    return trainer, model, train_data._dataset, test_data


def _training_of(trainer: Any, model: Any) -> dict[str, Any]:
    """How training went, and what it was of."""
    return {
        "phases": trainer.phases,
        "seconds": sum(row["train_seconds"] for row in trainer.epoch_log),
        "parameters": sum(one.numel() for one in getattr(model, "used_parameters", model.parameters)()),
    }


def _run(experiment: Experiment, config: Any, name: str, run_dir: Path) -> None:
    trainer, model, part, test_data = _fitted(experiment, config, name, run_dir)
    with _log_to(run_dir / "log.txt"):
        test = trainer.evaluate(test_data, load_best_model=True)
    _write_ranks(experiment, trainer.evaluator.ranks, run_dir / "ranks.csv")
    result = {
        "model": name,
        "dataset": experiment.settings.augmented,
        "data_path": str(experiment.settings.data_path),
        "domains": experiment.dataset.domain_names,
        "settings": model_values(experiment.settings, name),
        **_given(experiment.settings, name),
        "made_with": made_with(experiment.settings),
        "rows": part.training,
        "sees_generated": sees_generated(config),
        **_training_of(trainer, model),
        "targets_per_epoch": _n_targets(part),
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
    _remove_leftovers(run_dir)


def _given(settings: Settings, name: str) -> dict[str, Any]:
    """Every key that a run's folder depends on, as on the command line, for the command that trains it again.

    ``given`` counts for all models, ``given_to_model`` for this one, ``given_to_data`` for a variant's own rows;
    ``made_from`` is `made_with` of the data that a variant starts from.
    """
    own = settings.model_settings.get(name) or {}
    shared = {key: settings.given[key] for key in ("k_core", "domains") if key in settings.given}
    found = {key: value for key, value in model_values(settings, name).items() if key not in own}
    given: dict[str, Any] = {"given": {**shared, **found, **settings.recbole}, "given_to_model": own}
    if settings.data_variant:
        data = {"augment": asdict(settings.augment), "profile": asdict(settings.profile)}
        given["given_to_data"] = {**data, "llm": settings.given.get("llm") or {}}
        given["made_from"] = made_with(dataclasses.replace(settings, data_variant=""))
    return given


def _remove_leftovers(run_dir: Path) -> None:
    # Hidden files are what a kill left of a checkpoint half written.
    for leftover in [run_dir / "last.pth", run_dir / "best.pth.pretrain", *run_dir.glob(".*.pth*")]:
        leftover.unlink(missing_ok=True)


def loaders(experiment: Experiment, config: Any, name: str) -> tuple[Any, Any, Any, type]:
    """Loaders of the three parts, and the model's class, for the rows that this model trains on."""
    parts = experiment.dataset.for_model(config).parts(sees_generated(config), _rows_of(config, name))
    train_data, cls = _training(config, name, parts)
    return train_data, eval_loader(config, parts[1]), eval_loader(config, parts[2]), cls


def _rows_of(config: Any, name: str) -> str:
    """The rows of ``EDTDataset.parts`` that a model trains on."""
    if _by_sequence(config, name):
        return rows_for(config) if name in METHODS else SEQUENCE_ROWS[name]
    return "prefix" if config["MODEL_TYPE"] == ModelType.SEQUENTIAL else "pairs"


def _by_sequence(config: Any, name: str) -> bool:
    return name in METHODS or (config["training"] == "sequence" and name in SEQUENCE_ROWS)


def _training(config: Any, name: str, parts: Sequence[EDTDataset]) -> tuple[Any, type]:
    """Loader of the first of the three parts, and the model's class."""
    train = parts[0]
    if _by_sequence(config, name):
        cls = METHODS[name].load() if name in METHODS else sequence_trained(name)
        return SequenceLoader(train, config["train_batch_size"], config["seed"]), cls
    sampler = create_samplers(config, train, parts)[0]
    return get_dataloader(config, "train")(config, train, sampler, shuffle=config["shuffle"]), get_model(name)


def make_trainer(
    experiment: Experiment, config: Any, model: Any, run_dir: Path, part: EDTDataset, trains: bool = True
) -> Any:
    """The model's trainer, writing into ``run_dir`` and ranking by our rules; one that only evaluates keeps no log."""
    with _tensorboard_in(run_dir if trains else None):
        trainer = trainer_class(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.run_dir, trainer.saved_model_file = run_dir, str(run_dir / "best.pth")
    if experiment.share_pretraining and isinstance(trainer, LLMEDTTrainer):
        trainer.shared_pretraining = experiment.folder / f"pretraining-{_pretraining_key(experiment, config)[:8]}.pth"
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


def _pretraining_key(experiment: Experiment, config: Any) -> str:
    """Of everything that pre-training depends on."""
    phase = {f.name for f in dataclasses.fields(PhaseConfig)}
    plain = {key: value for key, value in resolved_config(config).items() if key not in phase}
    return sha256_of(plain, experiment.split_hash, artefacts_hash(config), recbole_edt.__version__)


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
    root.handlers = [file]
    root.setLevel(logging.INFO)  # unlike an assignment, it also forgets which levels were off
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"recbole\.")  # its old names of torch
            yield
    finally:
        root.handlers = handlers
        root.setLevel(level)
        file.close()


@contextmanager
def _tensorboard_in(run_dir: Path | None) -> Iterator[None]:
    """RecBole's trainer opens its TensorBoard files in the working directory; ours go to the run's, or nowhere."""
    from torch.utils.tensorboard import SummaryWriter

    original = recbole_trainer.get_tensorboard
    recbole_trainer.get_tensorboard = lambda logger: run_dir and SummaryWriter(str(run_dir / "tensorboard"))
    try:
        yield
    finally:
        recbole_trainer.get_tensorboard = original


_NEEDED: dict[str, type | tuple[type, ...]] = {
    **{"model": str, "dataset": str, "data_path": str, "settings": dict, "phases": list},
    **dict.fromkeys(("seconds", "parameters", "targets_per_epoch"), (int, float)),
    **{"valid_metric": str, "candidates": str, "versions": dict},
}
"""What every ``result.json`` has had since there are any."""


def read_result(run_dir: Path) -> report.ModelResult:
    """A finished run from its folder.

    Raises: DataError if a file is missing, damaged or no such file.
    """
    result = read_json(run_dir / "result.json")
    if problem := faults_of(result, _NEEDED):
        problem = f"{problem}, so it is damaged or no run of this library"
        raise DataError(f"{run_dir / 'result.json'}: {problem}; leave it out, or delete its folder to train it anew")
    epochs, metric = read_epochs(run_dir), result["valid_metric"]
    endings = [phase["ended_by"] for phase in result["phases"]]
    return report.ModelResult(
        name=result["model"],
        ranks=read_ranks(run_dir / "ranks.csv"),
        epochs=epochs,
        status=report.EPOCH_CAP if report.EPOCH_CAP in endings else endings[-1],
        best_epoch=_best_epoch(epochs, metric, _keeps_last_phase(result)),
        seconds=result["seconds"],
        n_parameters=result["parameters"],
        note=f"{result['targets_per_epoch']} targets per epoch",
        max_epochs=values_of(run_dir).get("epochs"),
        valid_metric=metric,
    )


def _best_epoch(epochs: pd.DataFrame | None, metric: str, of_last_phase: bool) -> int | None:
    """The row, from 1, whose weights were tested: of equals the last, as RecBole; not every epoch is validated."""
    if epochs is None or metric not in epochs:
        return None
    scores = epochs[metric]
    if of_last_phase:
        scores = scores.where(epochs["phase"] == epochs["phase"].iloc[-1])
    best = np.flatnonzero(scores == scores.max())
    return int(best[-1]) + 1 if len(best) else None


def values_of(run_dir: Path) -> dict[str, Any]:
    """Every setting of a finished run by its key, those that were not given, too.

    Raises: ConfigError if its ``config.yaml`` is damaged.
    """
    path, model = run_dir / "config.yaml", read_json(run_dir / "result.json")["model"]
    given = read_file(path) if path.is_file() else {}
    return {**defaults_of(model, given.get("backbone", "")), **given}


# ---- the stages that train ---------------------------------------------------------------------------------------


def check_rows(settings: Settings, say: Say, models: Sequence[str]) -> None:
    """Whether the augmented rows, and the profiles that the models read, are those of the data set as it is.

    Says so if other settings made them. What these stages did not make is somebody else's and is not looked at.

    Raises: DataError if the data set, its vectors or its rows have changed since.
    """
    manifests, vectors = stage_manifests(settings), item_vectors(settings)
    if not vectors.is_file() or not (settings.folder / f"{settings.dataset}.inter").is_file():
        return
    if manifests["augment"]:
        now = _made_of(with_text(settings, embeddings.EmbeddingTable.load(vectors)), vectors)
        _check_stage(settings, manifests["augment"], now, settings.augment, say)
    written = [one for stage, one in manifests.items() if stage.startswith("profile")]
    if any(written) and any(name in METHODS for name in models):
        now = _made_of(read_augmented(settings), augmented_vectors(settings))
        for manifest, kind in zip(written, settings.profile_kinds, strict=True):
            if manifest:
                _check_stage(settings, manifest, now, kind, say)


def _check_stage(settings: Settings, manifest: Mapping[str, Any], made_of: str, group: Any, say: Say) -> None:
    stage, folder = manifest["stage"], augmented_folder(settings)
    if manifest.get("made_of") != made_of:
        problems = {
            "augment": f"{settings.folder} is not what {folder} was made of",
            "profile": f"{folder} is not what its profiles were made of",
        }
        raise DataError(
            f"{problems[stage]}: run everything again "
            f"(python run_edt.py --dataset={settings.dataset}), or the stages from embed on"
        )
    if keys := _differing(settings, stage, manifest, group):
        files = "rows" if stage == "augment" else "profiles"
        say(f"note: the {files} are as they were made, with another {', '.join(keys)}; run {stage} to make them anew")


def train(settings: Settings, say: Say) -> None:
    """Train the model named by ``model`` and print its metrics."""
    check_rows(settings, say, [settings.model])
    experiment = open_experiment(settings)
    result = train_model(experiment, settings.model)
    report.print_table([result], title_of(experiment), llm_note(settings))
    say(f"run directory: {run_directory(experiment, settings.model)}")


def compare(settings: Settings, say: Say) -> None:
    """Train all of ``models`` and report on them."""
    check_rows(settings, say, settings.models)
    experiment = open_experiment(settings)
    results = [train_model(experiment, name) for name in settings.models]
    title, note = title_of(experiment), about(settings, settings.models)
    report.print_table(results, title, note)
    folder = experiment.folder
    report.write_metrics(results, folder, topk_of(settings))
    report.plot_curves(results, folder / "curves.png")
    text = report.markdown_report(
        results,
        title,
        note,
        reference=DEFAULT if DEFAULT in settings.models else None,
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
    """Top items for all users, listed users or new histories, from the trained run of ``model``."""
    check_rows(settings, say, [settings.model])
    experiment, options = open_experiment(settings), settings.recommend
    run_dir = finished_run(experiment, settings.model)
    _check_domain(options.domain, experiment.dataset.domain_names)
    frames = _recommended(run_dir, settings)  # refuses what is unknown before anything is trained
    if options.train_on_all:
        run_dir = train_on_all(experiment, settings.model)
        say(f"trained on {recommending.EVERYTHING}: {run_dir}")
        frames = _recommended(run_dir, settings)
    path = Path(options.output or run_dir / options.default_output)
    n_users = recommending.write(path, frames)
    say(f"recommendations for {n_users} users: {path}")


def _check_domain(domain: str | None, known: Sequence[str]) -> None:
    """Raises: ConfigError if ``recommend.domain`` is no domain of the data set."""
    if domain is not None and domain not in known:
        near = difflib.get_close_matches(domain, known, n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise ConfigError(f"recommend.domain: {domain!r} is not one of {', '.join(known)}{hint}")


def _recommended(run_dir: Path, settings: Settings) -> Iterator[pd.DataFrame]:
    """Frames for those who are asked for."""
    options, model = settings.recommend, recommending.load(run_dir, settings.data_path)
    chosen: Any = {"k": options.k, "domain": options.domain, "seen": options.seen}
    if options.histories:
        return model.for_histories(histories.read(Path(options.histories), model.item_id), **chosen)
    listed = None if options.users is None else options.user_list
    if listed and len(listed) == 1 and listed[0].endswith(".txt"):
        listed = histories.read_users(Path(listed[0]))
    return model.all_users(users=listed, **chosen)


def title_of(experiment: Experiment) -> str:
    """Data set, split and part, as a heading."""
    return f"{experiment.settings.dataset}, leave-one-out (split {experiment.split_hash[:8]}), test targets"


def _data_section(settings: Settings) -> str:
    """The data card, what augmentation did, and what an LLM was asked, for the report."""
    sections = {"Data and augmentation": data_parts(settings), "Asked of models": cost_parts(settings)}
    blocks = []
    for title, parts in sections.items():
        shown = [part.markdown() if isinstance(part, ResultTable) else escape_markdown(part) for part in parts]
        blocks += [f"## {title}", *shown]
    return "\n" + "\n\n".join(blocks) + "\n"


def data_parts(settings: Settings) -> Iterator[ResultTable | str]:
    """For a report: figures of the data set and of augmentation, or why there are none."""
    try:
        rows = raw.card(read(settings))
    except DataError as error:
        yield f"The data set is not at hand: {error}"
        return
    rows |= augment_figures(settings)
    named = [(key.replace("_", " "), _rounded(value)) for key, value in rows.items()]
    yield ResultTable("data", "Data", ["figure", "value"], named)


def _rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


def cost_parts(settings: Settings, made: Mapping[str, Any] | None = None) -> Iterator[ResultTable | str]:
    """For a report: calls, tokens and cost of each stage that asked a model, beside the paper's.

    Args:
        made: what a run's data were made with; none is what they are made with now.
    """
    made = made_with(settings) if made is None else made
    counts = {stage: one["counts"] for stage, one in made.items()}
    asked = [(stage, kind, used) for stage, one in counts.items() for kind, used in one.get("used", {}).items()]
    if not asked:
        known = "No language model was called, so nothing was paid."
        yield known if "augment" in made else "It is not known whether a language model was called."
        return
    n_users = max(one.get("users", 0) for one in counts.values()) or _n_users(settings)
    headings = ["cost (US $)", "cost per user (US $)", "paper (US $ per user)"]
    columns = ["stage", "of", "calls", "tokens in", "tokens out", *(Column(name, decimals=6) for name in headings)]
    rows = []
    for stage, kind, used in asked:
        cost = used["cost_usd"]
        tokens = used["calls"], used["prompt_tokens"], used["completion_tokens"]
        per = None if cost is None or not n_users else cost / n_users
        rows.append((stage, WORDS[kind], *tokens, cost, per, paper_usd(stage, kind)))
    failed = [f"{stage}: {raw.listed(one['failed'])}" for stage, one in counts.items() if one.get("failed")]
    note = "n/a: the model's price is not known (key llm.prices), or the paper gives none"
    yield ResultTable("cost", "Cost", columns, rows, "; failed in ".join([note, *failed]))


def _n_users(settings: Settings) -> int:
    """Users of the data set; 0 where it is not at hand."""
    try:
        return len(read(settings).users)
    except DataError:
        return 0


def stage_counts(settings: Settings) -> dict[str, dict[str, Any]]:
    """The counts of the stages before training; empty where someone else's program made the files."""
    return {stage: manifest.get("counts", {}) for stage, manifest in stage_manifests(settings).items()}


def augment_figures(settings: Settings) -> dict[str, Any]:
    """The single figures that augmentation counted, each ``_before`` ahead of its ``_after``."""
    counts = stage_counts(settings)["augment"]
    single = [key for key, value in counts.items() if not isinstance(value, Mapping)]
    single.sort(key=lambda key: (re.sub("_(before|after)$", "", key), key.endswith("_after")))
    return {key: counts[key] for key in single}


def stage_manifests(settings: Settings) -> dict[str, dict[str, Any]]:
    """What the stages before training wrote of themselves; empty where someone else's program made the files."""
    folder = augmented_folder(settings)
    paths = {"embed": settings.folder / "embed.json", "augment": folder / "augment.json"}
    for place, pipeline in enumerate(settings.pipelines):
        paths[f"profile ({pipeline})" if place else "profile"] = folder / f"profile.{profiles.infix(pipeline)}json"
    return {stage: read_json(path) if path.is_file() else {} for stage, path in paths.items()}


def about(settings: Settings, models: Sequence[str]) -> str:
    """The second line of a table: what a language model did, and where there was a search, its budget."""
    note = llm_note(settings)
    return f"{note}. {budget_note(settings, models)}" if settings.tune.tuned else note


def made_with(settings: Settings) -> dict[str, dict[str, Any]]:
    """By stage before training, its configuration and what it asked of models; without those that were never run.

    It stands in each run, too: the data may be made anew, or be elsewhere, when somebody reads of it.
    """
    kept = ("asked", "failed", "used", "users")
    manifests = {"prepare": raw.manifest(settings.folder), **stage_manifests(settings)}
    found = {}
    for stage, manifest in manifests.items():
        counts = {} if stage == "prepare" else manifest.get("counts", {})
        if manifest:
            asked = {key: counts[key] for key in kept if key in counts}
            found[stage] = {"config": manifest.get("config", {}), "counts": asked}
    return found


def llm_note(settings: Settings, made: Mapping[str, Any] | None = None) -> str:
    """Which parts a language model did, and which ran without one.

    Args:
        made: what a run's data were made with; none is what they are made with now.
    """
    made = made_with(settings) if made is None else made
    asked = {stage: one for stage, one in made.items() if "llm" in one["config"]}
    if not asked and "augment" not in made:
        return "not known how rows and profiles were made"
    models = {stage: one["config"]["llm"]["model"] + _failures(one["counts"]) for stage, one in asked.items()}
    items = f"items written by {models['augment']}" if "augment" in models else "items proposed by co-occurrence"
    texts = f"profiles by {models['profile']}" if "profile" in models else "profiles made of telling words"
    texts = texts if "profile" in made else "no profiles made"
    embed = made.get("embed", {}).get("config") or asdict(settings.embed)
    embedder = embed["vectors"] or embed["model" if embed["embedder"] == embeddings.ENDPOINT else "embedder"]
    parts = f"{items}, {texts}, texts embedded by {embedder}"
    return f"LLM: {parts}" if models else f"offline: no LLM was called; {parts}"


def _failures(counts: Mapping[str, Any]) -> str:
    """In brackets, how many of a stage's questions came to nothing; empty if none did."""
    n = sum(n for kind, n in counts.get("failed", {}).items() if kind != "no vector")  # that is no question
    return f" ({n:,} of {counts['asked']:,} requests failed)" if n else ""


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
    prepare(settings, say, goes_on=True)
    opened = partial(LiveWriter, spent=Usage())
    for stage in (embed, augment_data, profile):
        stage(settings, say, opened)
    STAGES[last](settings, say)
