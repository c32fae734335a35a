"""What models need before training: a method that reads raw rows alone makes nobody embed, augment or profile."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from recbole_edt.config.settings import Settings
from recbole_edt.data import atomic
from recbole_edt.files import is_current, read_json, write_manifest
from recbole_edt.llm.prices import Usage
from recbole_edt.models.registry import METHODS, read_by
from recbole_edt.pipeline import stages
from recbole_edt.pipeline.model_access import LiveWriter
from recbole_edt.text.vectors import EmbeddingTable


def make_for(settings: Settings, models: Sequence[str], say: stages.Say) -> None:
    """The stages embed, augment and profile; where no method among the models reads of them, the rows as they are."""
    if raw_rows_suffice(settings, models):
        keep_rows(settings)
        return
    opened = partial(LiveWriter, spent=Usage())  # one account for all
    for stage in (stages.embed, stages.augment_data, stages.profile):
        stage(settings, say, opened)


def raw_rows_suffice(settings: Settings, models: Sequence[str]) -> bool:
    """Whether there is a method among the models, and none of them reads more than raw rows.

    For models of RecBole alone all is made: they may be compared with a method later.
    """
    given = [{**settings.recbole, **(settings.model_settings.get(model) or {})} for model in models]
    read = [read_by(model, own.get("use_generated")) for model, own in zip(models, given, strict=True)]
    return any(model in METHODS for model in models) and not any(read)


def keep_rows(settings: Settings) -> None:
    """The raw rows as the data set to train on; rows that were augmented, of the data as they are, stay."""
    data, folder, files = stages.read(settings), stages.augmented_folder(settings), stages.augmented_files(settings)[:2]
    manifest, augmented, vectors = folder / "rows.json", folder / "augment.json", stages.item_vectors(settings)
    if files[0].is_file() and not augmented.is_file() and not manifest.is_file():
        return  # someone else's program made them
    if augmented.is_file() and vectors.is_file():
        rows = stages.with_text(settings, EmbeddingTable.load(vectors))
        if read_json(augmented).get("made_of") == stages.source_hash(rows, vectors):
            return
    made_of = stages.content_hash(data)
    if not is_current(manifest, made_of, files):
        for old in (augmented, *folder.glob("profile.*json")):
            old.unlink(missing_ok=True)
        atomic.write(data, folder, settings.augmented)
        write_manifest(manifest, "rows", made_of, {}, {}, files)
