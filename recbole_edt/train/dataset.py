"""Two-domain atomic files as RecBole data sets: exact order, leave-one-out on raw rows, sequences sliced lazily.

Sequences live in one flat array; a row of a data set is a pair of positions in it, and becomes a padded
sequence only when a batch asks for it. The same three parts serve every model that is compared.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource, FeatureType, ModelType
from torch import Tensor

from recbole_edt.data import atomic
from recbole_edt.data.split import TEST, TRAIN, VALID
from recbole_edt.errors import ConfigError, DataError
from recbole_edt.files import sha256_of
from recbole_edt.models.parts.batch_fields import DOMAIN_SEQ, DOMAIN_SEQ_LEN, LAST_WINDOW, TARGET_SEQ
from recbole_edt.models.registry import METHODS, read_by
from recbole_edt.profile.settings import infix
from recbole_edt.text.vectors import EmbeddingTable
from recbole_edt.train.sequences import Sequences, gather_slices

TRAINING = ("sequence", "masked", "prefix", "pairs")


FILTERS = {
    "rm_dup_inter": None,
    "val_interval": None,
    "user_inter_num_interval": "[0,inf)",
    "item_inter_num_interval": "[0,inf)",
}
"""RecBole's filters of rows, and what leaves them out."""


class EDTDataset(SequentialDataset):
    """RecBole data set of two domains (``domain`` in ``.item``), raw or augmented (``generated`` in ``.inter``).

    Differs from ``SequentialDataset`` where that one would be wrong here: order is exact (float64, ties by position
    in the file; RecBole keeps time as float32), leave-one-out counts raw rows only and keeps users with three of
    them in validation, and no prefix is copied. Item ids follow the ``.item`` file, with virtual items last.

    Configuration keys: ``domains`` (names in order), ``k_core`` (per domain), ``use_generated``, ``training``
    (``sequence | masked | prefix | pairs``), ``item_embeddings`` and ``user_profiles`` (paths; defaults beside
    the atomic files), ``profiles`` (which kind of the latter, if not the method's own).

    Raises: DataError for every fault in the files, with file, line and column.
    """

    def __init__(self, config: Any) -> None:
        if config["benchmark_filename"]:
            raise ConfigError("benchmark_filename: pre-split files are not supported; the split is made here")
        if given := [key for key, without in FILTERS.items() if config[key] not in (without, None)]:
            raise ConfigError(
                f"{', '.join(given)}: would change the split that augmentation and profiles were made with; leave it "
                "out, and filter with k_core or in the stage prepare"
            )
        self.training = rows_for(config)
        self.with_domains = config["model"] in METHODS
        super().__init__(config)

    # ---- loading -------------------------------------------------------------------------------------------------

    def _load_data(self, token: str, dataset_path: str) -> None:
        data = atomic.read(Path(dataset_path), token, self.config["domains"], self.config["k_core"] or 0)
        self.source = data
        self.domain_names = data.domains
        # Positions among the tokens stand for them until _remap_ID_all: they are smaller, and quicker to number.
        self.inter_feat = pd.DataFrame(
            {
                self.uid_field: data.user,
                self.iid_field: data.item,
                self.time_field: data.time,
                "generated": data.generated.astype(np.float32),
            },
            copy=False,
        )
        position = np.arange(len(data.items))
        self.item_feat = pd.DataFrame({self.iid_field: position, "domain": data.item_domain.astype(np.float64)})
        self.user_feat = None
        for field, ftype, source in [
            (self.uid_field, FeatureType.TOKEN, FeatureSource.USER_ID),
            (self.iid_field, FeatureType.TOKEN, FeatureSource.ITEM_ID),
            (self.time_field, FeatureType.FLOAT, FeatureSource.INTERACTION),
            ("generated", FeatureType.FLOAT, FeatureSource.INTERACTION),
            ("domain", FeatureType.FLOAT, FeatureSource.ITEM),
        ]:
            self.set_field_property(field, ftype, source, 1)

    def _data_filtering(self) -> None:
        """None but ``k_core``, which reading applied: any other would change the split that rows were made with."""

    def _get_remap_list(self, field_list: Any) -> list:
        # The item file comes first, so that ids follow it and virtual items, its last rows, have the last ids.
        frames = super()._get_remap_list(field_list)
        return sorted(frames, key=lambda entry: entry[0] is not self.item_feat)

    def _remap_ID_all(self) -> None:
        super()._remap_ID_all()
        for field, tokens in ((self.uid_field, self.source.users), (self.iid_field, self.source.items)):
            position = self.field2id_token[field][1:].astype(np.int64)
            self.field2id_token[field] = np.array(["[PAD]", *tokens[position]])
            self.field2token_id[field] = {token: i for i, token in enumerate(self.field2id_token[field])}

    def _change_feat_format(self) -> None:
        super(SequentialDataset, self)._change_feat_format()
        tokens = pd.Index(self.source.items).get_indexer(self.field2id_token[self.iid_field][1:])
        domain = self.source.item_domain[tokens].astype(np.int64) + 1
        self.item_domain = torch.from_numpy(np.concatenate([[0], domain]))
        self.virtual = torch.from_numpy(np.concatenate([[False], self.source.virtual[tokens]]))
        self.n_real = int((~self.virtual).sum())  # ids below this are real; the padding is counted
        if self.virtual[: self.n_real].any():
            raise DataError(f"{self.dataset_name}.item: virtual items must be the last rows; run the stage augment")
        inter = self.inter_feat
        self.sequences = Sequences.build(
            inter[self.uid_field], inter[self.iid_field], inter["generated"] > 0, self.item_domain
        )
        self._check_order()
        self._set_rows(torch.nonzero(self._position(self.sequences) > 0).squeeze(1), self.sequences)
        for field in (self.iid_field + self.config["LIST_SUFFIX"], TARGET_SEQ, *DOMAIN_SEQ):
            self.set_field_property(
                field, FeatureType.TOKEN_SEQ, FeatureSource.INTERACTION, self.max_item_list_len
            )
        for field in (self.item_list_length_field, *DOMAIN_SEQ_LEN):
            self.set_field_property(field, FeatureType.TOKEN, FeatureSource.INTERACTION, 1)

    def _check_order(self) -> None:
        """An inserted row after a held-out one would train on the answer."""
        sequences = self.sequences
        held_out = torch.cat([torch.zeros(1, dtype=torch.long), (sequences.mark != TRAIN).cumsum(0)])
        late = sequences.generated & (held_out[:-1] > held_out[sequences.first])
        if late.any():
            user = str(self.field2id_token[self.uid_field][int(sequences.user[late][0])])
            raise DataError(
                f"{self.dataset_name}: {int(late.sum())} generated rows come after held-out ones (the first: user "
                f"{user!r}); inserted rows belong before a user's last two interactions"
            )

    # ---- splitting -----------------------------------------------------------------------------------------------

    def build(self) -> list[EDTDataset]:
        """Train, validation and test parts for the configuration's model."""
        if self.config["eval_args"]["split"] != {"LS": "valid_and_test"}:
            raise ConfigError("eval_args.split: only {LS: valid_and_test} is supported, on raw interactions")
        self._change_feat_format()
        return self.parts(sees_generated(self.config), self.training)

    def parts(self, generated: bool, training: str) -> list[EDTDataset]:
        """Train, validation and test parts.

        Args:
            generated: with the inserted rows and virtual items, or without any trace of them.
            training: rows of the training part: ``sequence`` (windows of items, each with its next item),
                ``masked`` (windows of items to hide some of), ``prefix`` (RecBole's: a history and its target),
                ``pairs`` (user and item, for models without sequences).

        Raises: DataError if a part is empty.
        """
        base = self._base(generated, training)
        sequences = base.sequences
        rows = [base._training_rows(), *(torch.nonzero(sequences.mark == mark).squeeze(1) for mark in (VALID, TEST))]
        parts = []
        for name, row in zip(("training", "validation", "test"), rows, strict=True):
            if not len(row):
                raise DataError(
                    f"{self.dataset_name}: the {name} part is empty; leave-one-out needs users with at least "
                    "3 interactions"
                )
            part = copy.copy(base)
            part.phase = name
            part._set_rows(row, sequences)
            parts.append(part)
        return parts

    def everything(self, generated: bool, training: str) -> EDTDataset:
        """A training part of all interactions, those of validation and test included; see ``parts``.

        A model that is trained on it knows every answer: it may recommend, and must never be evaluated.
        """
        part = self._base(generated, training)
        part.sequences = replace(part.sequences, mark=torch.full_like(part.sequences.mark, TRAIN))
        part.phase = "training"
        part._set_rows(part._training_rows(), part.sequences)
        return part

    def _base(self, generated: bool, training: str) -> EDTDataset:
        if training not in TRAINING:
            raise ConfigError(f"training: {training!r} is not one of {', '.join(TRAINING)}")
        base = copy.copy(self)
        if not generated:
            base._drop_generated()
        base.training = training
        return base

    def for_model(self, config: Any) -> EDTDataset:
        """The same loaded data under another model's configuration."""
        view = copy.copy(self)
        view.config = config
        view.with_domains = config["model"] in METHODS
        view.max_item_list_len = config["MAX_ITEM_LIST_LENGTH"]
        return view

    def _drop_generated(self) -> None:
        self.sequences = self.sequences.raw(self.item_domain)
        self.item_domain, self.virtual = self.item_domain[: self.n_real], self.virtual[: self.n_real]
        self.field2id_token = {
            **self.field2id_token,
            self.iid_field: self.field2id_token[self.iid_field][: self.n_real],
        }
        self.item_feat = self.item_feat[: self.n_real]

    @staticmethod
    def _position(sequences: Sequences) -> Tensor:
        return torch.arange(len(sequences.item)) - sequences.first

    def _training_rows(self) -> Tensor:
        """The row of each training example's target; for windows, of its last item."""
        train = self.sequences.mark == TRAIN
        # By prefix, too, RecBole's BERT4Rec masks any item of the history.
        masks = (self.training == "masked" and not self.with_domains) or self.config["model"] == "BERT4Rec"
        if self.config["inserted_as_targets"] is False and masks:
            raise ConfigError(
                f"inserted_as_targets: false is not possible for {self.config['model']}, which learns by masking"
            )
        if self.config["inserted_as_targets"] is False and self.training in ("prefix", "pairs"):
            train = train & ~self.sequences.generated
        if self.training == "pairs":
            return torch.nonzero(train).squeeze(1)
        position = self._position(self.sequences)
        if self.training == "prefix":
            return torch.nonzero(train & (position > 0)).squeeze(1)
        # Windows of at most L are cut from the end, so that each target is in exactly one of them.
        n_train = torch.zeros(int(self.sequences.user.max()) + 1, dtype=torch.long)
        n_train.index_add_(0, self.sequences.user, train.long())
        from_end = n_train[self.sequences.user] - 1 - position
        enough = position > 0 if self.training == "sequence" else position >= 0
        return torch.nonzero(train & enough & (from_end % self.max_item_list_len == 0)).squeeze(1)

    def for_finetuning(self) -> EDTDataset:
        """This training part for a second phase: windows stay, masked rows become a row per target."""
        if self.training != "masked":
            return self
        part = copy.copy(self)
        part.training = "prefix"
        part._set_rows(part._training_rows(), self.sequences)
        return part

    def _set_rows(self, row: Tensor, sequences: Sequences) -> None:
        """Make ``row`` (positions in ``sequences``) this part's examples."""
        self.row = row
        self.inter_feat = Interaction(
            {self.uid_field: sequences.user[row], self.iid_field: sequences.item[row]}
        )

    # ---- rows to batches -------------------------------------------------------------------------------------------

    def __getitem__(self, index: Any, join: bool = True) -> Interaction:
        """Rows as one Interaction: RecBole's fields, and for a method the targets and the two domains' sequences.

        ``item_id_list [B, L]`` is padded on the right to the longest of the batch, or to the maximum length for
        models that need it. In training by sequence ``target_list [B, L]`` holds the next item of each position,
        in a method's training by masking the item of each position.
        """
        inter = super().__getitem__(index, join)
        if getattr(self, "phase", None) == "training" and self.training == "pairs":
            return inter
        row = self.row[index]
        first, end = self.sequences.first[row], row + 1 if self._is_training("masked") else row
        inter.update(self.histories(self.sequences, first, end))
        if self._is_training("sequence") or (self.with_domains and self._is_training("masked")):
            inter.update(Interaction(self._targets(row, first)))
        return inter

    def histories(self, sequences: Sequences, first: Tensor, end: Tensor) -> Interaction:
        """What a model reads of the rows ``first:end`` of each user: the mixed sequence and each domain's.

        RecBole's own models may need the maximum length; those that are trained on whole sequences do not.
        """
        longest = self.max_item_list_len
        width = None if self.with_domains or self.training in ("sequence", "masked") else longest
        item_seq, length = sequences.history(first, end, longest, width)
        fields = {self.iid_field + self.config["LIST_SUFFIX"]: item_seq, self.item_list_length_field: length}
        if self.with_domains:
            for d in (0, 1):
                own = sequences.domain_history(d, first, end, longest)
                fields[DOMAIN_SEQ[d]], fields[DOMAIN_SEQ_LEN[d]] = own
        return Interaction(fields)

    def _is_training(self, *kinds: str) -> bool:
        return getattr(self, "phase", None) == "training" and self.training in kinds

    def _targets(self, row: Tensor, first: Tensor) -> dict[str, Tensor]:
        """The target of each position, and whether the window is the last of its user's training rows."""
        start = torch.maximum(first, row - self.max_item_list_len) + 1  # the item after each position
        if self.training == "masked":
            start = torch.maximum(first, row + 1 - self.max_item_list_len)  # the item itself
        targets, _ = gather_slices(self.sequences.item, start, row + 1)
        if self.config["inserted_as_targets"] is False:
            inserted, _ = gather_slices(self.sequences.generated, start, row + 1)
            targets = targets * ~inserted.bool()
        total = len(self.sequences.item)
        after = (row + 1).clamp(max=total - 1)
        same_user = (row + 1 < total) & (self.sequences.first[after] <= row)
        return {TARGET_SEQ: targets, LAST_WINDOW: ~(same_user & (self.sequences.mark[after] == TRAIN))}

    def inter_matrix(self, form: str = "coo", value_field: str | None = None) -> Any:
        """Users by items of the training rows, as RecBole's non-sequential models expect."""
        return super(SequentialDataset, self).inter_matrix(form, value_field)

    @property
    def training_pairs(self) -> tuple[Tensor, Tensor]:
        """User and item ids of every training row, ``[M]`` each."""
        train = self.sequences.mark == TRAIN
        return self.sequences.user[train], self.sequences.item[train]

    # ---- vectors ---------------------------------------------------------------------------------------------------

    def item_vectors(self) -> Tensor:
        """Text vectors by item id, ``[N, D]`` float32, row 0 zero.

        Raises: DataError if there is no file, or if it lacks items.
        """
        path = self._vector_file("item_embeddings", "itemvec")
        tokens = self.field2id_token[self.iid_field][1:]
        table = EmbeddingTable.load(path)
        missing = ~table.has(tokens)
        if missing.any():
            raise DataError(
                f"{path}: no vector for {int(missing.sum())} items, the first is {str(tokens[missing][0])!r}; "
                "run the embed and augment stages again"
            )
        return torch.from_numpy(np.concatenate([np.zeros((1, table.dim), np.float32), table.lookup(tokens)]))

    def user_profiles(self) -> tuple[Tensor, Tensor]:
        """Profile vectors by user id ``[U, D]`` float32 and who has one ``[U]`` bool.

        A vector of zeros, which stands for one that an embedder did not give, is none.

        Raises: DataError if there is no file.
        """
        table = EmbeddingTable.load(self._vector_file("user_profiles", f"{_profile_infix(self.config)}uservec"))
        vectors = torch.from_numpy(table.lookup(self.field2id_token[self.uid_field]))
        return vectors, vectors.any(dim=1)

    def _vector_file(self, key: str, kind: str) -> Path:
        named = self.config[key]
        path = Path(named) if named else Path(self.dataset_path) / f"{self.dataset_name}.{kind}.safetensors"
        if not path.is_file():
            name = self.config["model"]
            hint = "" if "-edt" in self.dataset_name else f"; they make the data set {self.dataset_name}-edt"
            raise DataError(
                f"{path} does not exist: run the stages embed, augment and profile with --model={name}, or set "
                f"{key}{hint}"
            )
        return path


class SequenceLoader:
    """Training batches of whole sequences, of similar length so that little is padding.

    Rows are shuffled, sorted by length within groups of ``GROUP`` batches, and the batches shuffled again.
    It offers what RecBole's trainer asks of a loader.

    Args:
        dataset: a training part whose rows are sequences.
        batch_size: rows per batch.
        seed: of the order of the rows.
    """

    GROUP = 50
    shuffle = True

    def __init__(self, dataset: EDTDataset, batch_size: int, seed: int) -> None:
        self._dataset = self.dataset = dataset
        self.batch_size = batch_size
        self.generator = torch.Generator().manual_seed(seed)
        row = dataset.row
        self.length = (row - dataset.sequences.first[row]).clamp(max=dataset.max_item_list_len)

    def __len__(self) -> int:
        return -(-len(self.length) // self.batch_size)

    def __iter__(self) -> Iterator[Interaction]:
        order = torch.randperm(len(self.length), generator=self.generator)
        batches: list[Tensor] = []
        for group in order.split(self.GROUP * self.batch_size):
            group = group[self.length[group].argsort(stable=True)]
            batches.extend(group.split(self.batch_size))
        for index in torch.randperm(len(batches), generator=self.generator).tolist():
            yield self._dataset[batches[index]]


def sees_generated(config: Any) -> bool:
    """Whether a model is given the inserted rows: as ``use_generated`` says, or as its method does."""
    return "generated" in read_by(config["model"], config["use_generated"])


def _profile_infix(config: Any) -> str:
    """What stands before ``uservec`` in the name of the file with a method's profiles."""
    return infix(config["profiles"] or METHODS[config["model"]].profiles)


def rows_for(config: Any) -> str:
    """The rows of ``EDTDataset.parts`` that RecBole's runner, or a method anywhere, trains on."""
    if config["model"] not in METHODS:
        return config["training"] or "sequence"
    return "masked" if config["backbone"] == "BERT4Rec" else "sequence"


def artefacts_hash(config: Any) -> str:
    """What a model reads beyond its settings and the raw rows: vectors, profiles and inserted rows; "" if nothing."""
    read = read_by(config["model"], config["use_generated"])
    if not read:
        return ""
    endings = ["inter", "item"]
    if "text" in read:
        endings.append("itemvec.safetensors")
    if "profiles" in read:
        endings.append(f"{_profile_infix(config)}uservec.safetensors")
    files = [Path(f"{config['data_path']}/{config['dataset']}.{end}") for end in endings]
    files += [Path(config[key]) for key in ("item_embeddings", "user_profiles") if config[key]]
    return sha256_of(*(file for file in files if file.is_file()))


def eval_loader(config: Any, part: EDTDataset) -> FullSortEvalDataLoader:
    """RecBole's loader for ranking all items, one row per held-out interaction, for every kind of model alike.

    RecBole would group rows by user and mask histories for models without sequences; here the collector leaves own
    items out, or does not, for all alike. Rows of like length go together, so that little is padding.
    """
    if part.training != "pairs":
        by_length = (part.row - part.sequences.first[part.row]).argsort(stable=True)
        part = copy.copy(part)
        part._set_rows(part.row[by_length], part.sequences)
    view = copy.copy(config)
    view.final_config_dict = {**config.final_config_dict, "MODEL_TYPE": ModelType.SEQUENTIAL, "transform": None}
    return FullSortEvalDataLoader(view, part, None, shuffle=False)
