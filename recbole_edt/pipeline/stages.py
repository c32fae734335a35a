"""The stages before training: prepare, embed, augment and profile, from raw files to an augmented data set.

Each reads the files of those before it and writes its own, with a manifest; one whose inputs and settings have not
changed does nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import recbole_edt
from recbole_edt.augment import augment
from recbole_edt.augment.settings import AugmentConfig
from recbole_edt.augment.trace import write_trace
from recbole_edt.config.settings import Settings, own_file
from recbole_edt.data import atomic, split, statistics, two_domains
from recbole_edt.data import prepare as raw_data
from recbole_edt.data.prepare import is_made, losses
from recbole_edt.errors import ConfigError, DataError
from recbole_edt.files import is_current, read_json, sha256_of, write_manifest
from recbole_edt.llm.prices import WORDS, Usage, paper_usd, usage_line
from recbole_edt.models.registry import METHODS, NO_PROFILES
from recbole_edt.pipeline import data_card
from recbole_edt.pipeline.model_access import LiveWriter, embedder_identity, llm_identity
from recbole_edt.profile import settings as profile_settings
from recbole_edt.profile.profile import embed_profiles, profile_users, write_user_file
from recbole_edt.profile.settings import SRA, ProfileConfig
from recbole_edt.text import embedders, item_text
from recbole_edt.text.vectors import EmbeddingTable, import_vectors

Say = Callable[[str], None]
Opener = Callable[[Settings, Say], LiveWriter]
"""What gives a stage its access to a language model and to an embedder; only entered if there is work to do."""


def prepare(settings: Settings, say: Say, goes_on: bool = False) -> None:
    """Two-domain atomic files from a known source, or a check of the user's own.

    Args:
        settings: of the data set.
        say: for its statistics, and what is odd about it.
        goes_on: whether augment or profile follows; too many clusters are then an error, and else only a note.
    """
    config, folder, name = settings.prepare, settings.folder, settings.dataset
    made = config.source is not None and not is_made(config, folder, name)
    if made:
        raw_data.prepare(config, folder, name, settings.domains)
    data = read(settings)
    if made or config.source is not None and data_card.recorded(folder).get("before") != statistics.statistics(data):
        data_card.write(folder, data)
        if lost := losses(folder):
            say(f"{name}: {lost}")
    if not (split.leave_one_out(data) == split.TEST).any():
        path = folder / f"{name}.inter"
        raise DataError(f"{path}: no user has {split.MIN_RAW_ROWS} interactions, so none can be held out")
    if goes_on:
        check_clusters(settings, data)
    found = statistics.card(data)
    lacking = [f"{name}: {lack}"] if (lack := statistics.untitled(data)) else []
    clusters = [f"note: {fault}; give fewer before the stage augment" for fault in cluster_faults(settings, data)]
    for line in (f"{name}: {statistics.listed(found)}", *lacking, *statistics.oddities(found, data.domains), *clusters):
        say(line)


def check_clusters(settings: Settings, data: two_domains.TwoDomainData) -> None:
    """Raises: ConfigError with all of `cluster_faults`."""
    if faults := cluster_faults(settings, data):
        raise ConfigError("\n".join(faults))


def cluster_faults(settings: Settings, data: two_domains.TwoDomainData) -> list[str]:
    """A sentence for every number of clusters that is larger than a domain."""
    sizes = [int(((data.item_domain == d) & ~data.virtual).sum()) for d in (0, 1)]
    smallest = sizes.index(min(sizes))
    return [
        f"{group}.n_clusters: {n} is more than the {sizes[smallest]} items of {data.domains[smallest]}"
        for group, n in (("augment", settings.augment.n_clusters), ("profile", settings.profile.n_clusters))
        if n > sizes[smallest]
    ]


def read(settings: Settings) -> two_domains.TwoDomainData:
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
                table = import_vectors(Path(own), data.items, path)
            else:
                table = embedders.embed_items(data, writer, path)
            counts = writer.counted(table.meta)
        write_manifest(manifest, "embed", inputs, asdict(settings.embed), counts, [path])
    meta = EmbeddingTable.load(path).meta
    policy = {"zero": "zero vectors", "drop": "dropped"}[settings.embed.missing_text]
    say(
        f"embedded {meta['n']} items, {meta['n_distinct_texts']} distinct, with {meta['model']}; "
        f"{meta['n_without_text']} without text or vector ({policy})"
    )
    _say_asked(manifest, "embed", len(data.users), say)


def _embed_inputs(settings: Settings, data: two_domains.TwoDomainData) -> str:
    """Hash of what the items' vectors depend on."""
    own = settings.embed.vectors
    source = Path(own) if own else embedder_identity(settings)
    return sha256_of(list(data.items), item_text.item_text(data.item_fields), source)


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
    table = EmbeddingTable.load(item_vectors(settings))
    _check_vectors(settings)
    data = with_text(settings, table)
    check_clusters(settings, data)
    folder, name = augmented_folder(settings), settings.augmented
    outputs = [*augmented_files(settings), folder / AUGMENT_TRACE]
    made_of = source_hash(data, item_vectors(settings))
    inputs = _inputs(settings, made_of, settings.augment)
    manifest = folder / "augment.json"
    has_card = settings.prepare.source is not None and not settings.data_variant
    if not _is_done(manifest, inputs, outputs, settings):
        with opened(settings, say) as writer:
            done = augment.augment(data, table, settings.augment, writer)
            atomic.write(done.data, folder, name)
            add_vectors(done.data, table, writer).save(augmented_vectors(settings))
            write_trace(done.trace, outputs[-1])
            counts = writer.counted(done.counts)
        if has_card:
            data_card.write(settings.folder, read(settings), done.data)
        write_manifest(manifest, "augment", inputs, _shown(settings, settings.augment), counts, outputs, made_of)
    elif has_card and "after" not in data_card.recorded(settings.folder):  # prepare has written it anew
        data_card.write(settings.folder, read(settings), read_augmented(settings))
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
    table = EmbeddingTable.load(augmented_vectors(settings))
    for kind in settings.profile_kinds:
        _profile_kind(settings, kind, data, table, say, opened)


def _profile_kind(
    settings: Settings,
    kind: ProfileConfig,
    data: two_domains.TwoDomainData,
    table: EmbeddingTable,
    say: Say,
    opened: Opener,
) -> None:
    folder, infix = augmented_folder(settings), profile_settings.infix(kind.pipeline)
    stem = f"{settings.augmented}.{infix}"
    path, users = folder / f"{stem}uservec.safetensors", folder / f"{stem}user"
    trace, manifest = folder / f"profile_trace.{infix}jsonl", folder / f"profile.{infix}json"
    made_of = source_hash(data, augmented_vectors(settings))
    inputs = _inputs(settings, made_of, kind)
    if not _is_done(manifest, inputs, [path, users, trace], settings):
        with opened(settings, say) as writer:
            done = profile_users(split.training_rows(data), table, kind, writer)
            write_user_file(data.users, done.texts, users)
            embed_profiles(data.users, done.texts, done.has_profile, writer, path)
            write_trace(done.trace, trace)
            counts = writer.counted(done.counts)
        write_manifest(manifest, "profile", inputs, _shown(settings, kind), counts, [path, users, trace], made_of)
    counts = read_json(manifest)["counts"]
    name = "profiles" if kind.pipeline == SRA else f"{kind.pipeline} profiles"
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
        say(f"{stage}, {WORDS[name]}: {usage_line(used, n_users, paper_usd(stage, name))}")


def source_hash(data: two_domains.TwoDomainData, vectors: Path) -> str:
    """Hash of the data that a stage's files are made of."""
    return sha256_of(content_hash(data), vectors)


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


def check_made_with(settings: Settings, data: two_domains.TwoDomainData, augmented: two_domains.TwoDomainData) -> None:
    """The files of augment and profile, where these stages made them, are those of these settings and data.

    Raises: DataError naming the settings that differ.
    """
    of_rows = source_hash(data, item_vectors(settings))
    of_profiles = source_hash(augmented, augmented_vectors(settings))
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


def augmented_with(settings: Settings) -> AugmentConfig:
    """What the augmented rows were made with; where someone else's program made them, what is given now."""
    made = stage_manifests(settings)["augment"].get("config", {})
    known = {key: value for key, value in made.items() if hasattr(settings.augment, key)}
    return dataclasses.replace(settings.augment, **known)


def with_text(settings: Settings, table: EmbeddingTable) -> two_domains.TwoDomainData:
    """The raw data set, without the items that ``embed.missing_text`` drops."""
    data = read(settings)
    if settings.embed.missing_text == "zero":
        return data
    without = ~table.lookup(data.items).any(axis=1)
    return two_domains.drop_items(data, without) if without.any() else data


def read_augmented(settings: Settings) -> two_domains.TwoDomainData:
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
    data: two_domains.TwoDomainData, table: EmbeddingTable, embedder: embedders.Embedder
) -> EmbeddingTable:
    """Vectors of the augmented catalogue: those of ``table``, and new ones for virtual items.

    Raises: DataError if the embedder's vectors have another length than those of ``table``.
    """
    rows = np.zeros(len(data.items), np.int32)
    rows[~data.virtual] = table.rows[table.find(data.items[~data.virtual])]
    if not data.virtual.any():
        return dataclasses.replace(table, tokens=data.items, rows=rows)
    new = embedder.embed(item_text.item_text(data.item_fields[data.virtual]))
    if new.shape[1] != table.dim:
        raise DataError(
            f"the items' vectors have {table.dim} numbers, those of {embedder.name} have {new.shape[1]}; "
            "use vectors of one model for both"
        )
    rows[data.virtual] = len(table.vectors) + np.arange(len(new))
    meta = {**table.meta, "n": len(data.items), "n_virtual": len(new)}
    return dataclasses.replace(table, tokens=data.items, rows=rows, vectors=np.vstack([table.vectors, new]), meta=meta)


def content_hash(data: two_domains.TwoDomainData) -> str:
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


def check_rows(settings: Settings, say: Say, models: Sequence[str]) -> None:
    """Whether the augmented rows, and the profiles that the models read, are those of the data set as it is.

    Says so if other settings made them. What these stages did not make is somebody else's and is not looked at.

    Raises: DataError if the data set, its vectors or its rows have changed since.
    """
    manifests, vectors = stage_manifests(settings), item_vectors(settings)
    if not vectors.is_file() or not (settings.folder / f"{settings.dataset}.inter").is_file():
        return
    if manifests["augment"]:
        now = source_hash(with_text(settings, EmbeddingTable.load(vectors)), vectors)
        _check_stage(settings, manifests["augment"], now, settings.augment, say)
    written = [one for stage, one in manifests.items() if stage.startswith("profile")]
    if any(written) and any(name in METHODS and METHODS[name].profiles != NO_PROFILES for name in models):
        now = source_hash(read_augmented(settings), augmented_vectors(settings))
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


def stage_manifests(settings: Settings) -> dict[str, dict[str, Any]]:
    """What the stages before training wrote of themselves; empty where someone else's program made the files."""
    folder = augmented_folder(settings)
    paths = {"embed": settings.folder / "embed.json", "augment": folder / "augment.json"}
    for place, pipeline in enumerate(settings.pipelines):
        name = f"profile ({pipeline})" if place else "profile"
        paths[name] = folder / f"profile.{profile_settings.infix(pipeline)}json"
    return {stage: read_json(path) if path.is_file() else {} for stage, path in paths.items()}
