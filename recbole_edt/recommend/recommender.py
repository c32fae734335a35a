"""Top items for users, from a trained run: no LLM call and no text is needed any more."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.data.interaction import Interaction
from recbole.utils import ModelType
from torch import Tensor
from tqdm import tqdm

from recbole_edt.config.recbole_config import recbole_config
from recbole_edt.config.recbole_keys import is_model
from recbole_edt.config.settings import Settings
from recbole_edt.data.split import catalogue_hash, leave_one_out, split_hash
from recbole_edt.errors import DataError
from recbole_edt.files import faults_of, read_json, write_safely
from recbole_edt.models.parts.batch_fields import VectorScores
from recbole_edt.models.recbole_models import trained_on
from recbole_edt.recommend.histories import Histories, batches
from recbole_edt.train.checkpoints import load_weights
from recbole_edt.train.dataset import EDTDataset, artefacts_hash
from recbole_edt.train.run_files import EVERYTHING
from recbole_edt.train.sequences import Sequences

COLUMNS = ("user", "domain", "rank", "item", "title", "score")

# Scores alive at a time: of one block of items, and of all items for models that score all at once.
_BLOCK_ELEMENTS = 2**22
_MATRIX_ELEMENTS = 2**26


class Recommender:
    """A trained model with its data set.

    Args:
        model: in evaluation mode, loaded.
        dataset: the part the model was built on.
        titles: ``[N]`` by item id.

    Attributes:
        item_id: ids of the real items by token.
    """

    def __init__(self, model: Any, dataset: EDTDataset, titles: Sequence[str]) -> None:
        self.model, self.dataset = model, dataset
        self.titles = np.array(titles, dtype=object)
        self.users = dataset.field2id_token[dataset.uid_field]
        self.items = dataset.field2id_token[dataset.iid_field]
        self._domain = {name: d for d, name in enumerate(dataset.domain_names, 1)}
        real = ~dataset.virtual & (dataset.item_domain > 0)
        self.item_id = {token: i for i, token in enumerate(self.items) if real[i]}
        self._columns = {d: torch.nonzero(real & (dataset.item_domain == d)).squeeze(1) for d in (1, 2)}
        self._column = torch.full((len(self.items),), -1)  # [N] place of an item in its domain's columns
        for columns in self._columns.values():
            self._column[columns] = torch.arange(len(columns))

    def recommend(
        self, history: Sequence[str], k: int = 10, domain: str | None = None, seen: bool = False
    ) -> pd.DataFrame:
        """Top ``k`` items after a history of item tokens, oldest first.

        Args:
            history: tokens of the catalogue; at least one.
            k: items per domain.
            domain: one domain's name, or None for both.
            seen: whether items of the history may be recommended.

        Returns: columns ``domain``, ``rank`` (from 1), ``item``, ``title``, ``score``.
        Raises: DataError for an empty history, an unknown item, an unknown domain or ``k`` that is no whole number
            above 0, and for a model that knows users instead of histories.
        """
        self._check(k, domain, reads_histories=True)
        _check_list("history", history)
        unknown = [token for token in history if token not in self.item_id]
        if unknown or not len(history):
            raise DataError(f"history: {f'unknown item {unknown[0]!r}' if unknown else 'it is empty'}")
        items = np.array([self.item_id[token] for token in history])
        one = Histories(np.array([""], dtype=object), items, np.array([0, len(items)]))
        return next(self.for_histories(one, k, domain, seen)).drop(columns="user")

    def for_histories(
        self, histories: Histories, k: int = 10, domain: str | None = None, seen: bool = False, batch_size: int = 512
    ) -> Iterator[pd.DataFrame]:
        """Top ``k`` items after each history of a file (``histories.read``), in batches of histories.

        Yields: frames of `COLUMNS`.
        Raises: DataError for an unknown domain or a bad ``k``, and for a model that knows users alone.
        """
        self._check(k, domain, reads_histories=True)
        return self._after_histories(histories, k, domain, seen, batch_size)

    @torch.no_grad()
    def _after_histories(
        self, histories: Histories, k: int, domain: str | None, seen: bool, batch_size: int
    ) -> Iterator[pd.DataFrame]:
        total = -(-len(histories.users) // self._at_once(batch_size))
        for names, item, offsets in _bar(batches(histories, self._at_once(batch_size)), total):
            place = torch.from_numpy(np.repeat(np.arange(len(names)), np.diff(offsets)))
            inserted = torch.zeros(len(item), dtype=torch.bool)
            sequences = Sequences.build(place, torch.from_numpy(item), inserted, self.dataset.item_domain)
            first, end = torch.from_numpy(offsets[:-1]), torch.from_numpy(offsets[1:])
            nobody = torch.zeros(len(names), dtype=torch.long)
            yield self._top(sequences, nobody, names, first, end, k, domain, seen)

    def all_users(
        self,
        k: int = 10,
        seen: bool = False,
        batch_size: int = 512,
        domain: str | None = None,
        users: Sequence[str] | None = None,
    ) -> Iterator[pd.DataFrame]:
        """Top ``k`` items per domain after each known user's whole history, in batches of users.

        Args:
            k: items per domain.
            seen: whether items of the history may be recommended.
            batch_size: users at a time, at most.
            domain: one domain's name, or None for both.
            users: ids of the users that are wanted; None is all. They come in the data set's order.

        Yields: frames of `COLUMNS`.
        Raises: DataError for an unknown domain, unknown users or a bad ``k``.
        """
        self._check(k, domain)
        user, count = torch.unique_consecutive(self.dataset.sequences.user, return_counts=True)
        wanted = torch.arange(len(user)) if users is None else self._places(users, user)
        return self._after_own(user, count, wanted, k, domain, seen, batch_size)

    @torch.no_grad()
    def _after_own(
        self, user: Tensor, count: Tensor, wanted: Tensor, k: int, domain: str | None, seen: bool, batch_size: int
    ) -> Iterator[pd.DataFrame]:
        sequences, end = self.dataset.sequences, count.cumsum(0)
        parts = wanted.split(self._at_once(batch_size)) if len(wanted) else ()
        for rows in _bar(parts, len(parts)):
            first, names = end[rows] - count[rows], self.users[user[rows].numpy()]
            yield self._top(sequences, user[rows], names, first, end[rows], k, domain, seen)

    def _places(self, users: Sequence[str], user: Tensor) -> Tensor:
        """Places in ``user`` (ids, ascending) of the users with these tokens."""
        _check_list("users", users)
        place = {token: i for i, token in enumerate(self.users[user.numpy()].tolist())}
        if unknown := [token for token in users if token not in place]:
            more = f" and {len(unknown) - 1:,} others" if len(unknown) > 1 else ""
            raise DataError(f"users: the data set has no user {unknown[0]!r}{more}")
        return torch.tensor(sorted({place[token] for token in users}), dtype=torch.long)

    def _check(self, k: int, domain: str | None, reads_histories: bool = False) -> None:
        if reads_histories and self.model.type != ModelType.SEQUENTIAL:
            raise DataError(
                f"{type(self.model).__name__} reads no history, it scores known users: use all_users(), "
                "or leave recommend.histories out"
            )
        if not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 1:
            raise DataError(f"k: {k!r} is not a whole number above 0")
        if domain is not None and domain not in list(self._domain):  # a list has no hash
            raise DataError(f"domain: {domain!r} is not one of {', '.join(self._domain)}")

    def _at_once(self, batch_size: int) -> int:
        """Users of a batch: fewer for a model that scores all items at once."""
        if hasattr(self.model, "vector_scores"):
            return batch_size
        return max(1, min(batch_size, _MATRIX_ELEMENTS // len(self.items)))

    def _top(
        self,
        sequences: Sequences,
        user: Tensor,
        names: np.ndarray,
        first: Tensor,
        end: Tensor,
        k: int,
        domain: str | None,
        seen: bool,
    ) -> pd.DataFrame:
        """Best items after rows ``first:end`` of each user, who is called ``names`` in the frame."""
        batch = self.dataset.histories(sequences, first, end)
        batch.update(Interaction({self.dataset.uid_field: user}))
        batch = batch.to(self.model.device)
        if hasattr(self.model, "vector_scores"):
            scores = self.model.vector_scores(batch)
        else:
            scores = self.model.full_sort_predict(batch).view(len(user), -1)
        met = None if seen else _met(sequences, first, end)
        frames = []
        for name in self._domain if domain is None else [domain]:
            score, item = self._best(scores, self._domain[name], k, len(user), met)
            n = score.shape[1]
            columns = {
                "user": names.repeat(n),
                "domain": name,
                "rank": np.tile(np.arange(1, n + 1), len(user)),
                "item": self.items[item.ravel()],
                "title": self.titles[item.ravel()],
                "score": score.ravel(),
            }
            frames.append(pd.DataFrame(columns)[score.ravel() > -np.inf])
        return pd.concat(frames, ignore_index=True)

    def _best(
        self, scores: Tensor | VectorScores, d: int, k: int, n_users: int, met: tuple[Tensor, Tensor] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and ids ``[B, k]`` of the best items of one domain, looked for block by block.

        Args:
            met: rows of the batch and items that stay out.
        """
        columns = self._columns[d]
        best, best_item = torch.empty(n_users, 0), torch.empty(n_users, 0, dtype=torch.long)
        width = max(1, _BLOCK_ELEMENTS // n_users)
        for start in range(0, len(columns), width):
            items = columns[start : start + width]
            block = _block(scores, d, items)
            if met is not None:
                row, item = met
                place = self._column[item] - start
                inside = (self.dataset.item_domain[item] == d) & (place >= 0) & (place < len(items))
                block[row[inside].to(block.device), place[inside].to(block.device)] = -torch.inf
            score, place = (x.cpu() for x in block.topk(min(k, len(items))))
            best, best_item = torch.cat([best, score], 1), torch.cat([best_item, items[place]], 1)
            best, order = (x[:, :k] for x in best.sort(dim=1, descending=True, stable=True))
            best_item = best_item.gather(1, order)
        return best.numpy(), best_item.numpy()


def _check_list(name: str, tokens: Sequence[str]) -> None:
    if isinstance(tokens, str):  # a sequence of characters, which may be tokens
        raise DataError(f"{name}: expected a list such as [{tokens!r}], found the text {tokens!r}")


def _block(scores: Tensor | VectorScores, d: int, items: Tensor) -> Tensor:
    """Scores ``[B, n]`` of some items of one domain, which may be written to."""
    if not isinstance(scores, VectorScores):
        return scores.index_select(1, items.to(scores.device))
    return scores.of_domain(d) @ scores.item[items.to(scores.device)].T


def _met(sequences: Sequences, first: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the batch and the items they have met; inserted rows were never met, so they may be recommended."""
    length = end - first
    place = torch.repeat_interleave(torch.arange(len(first)), length)
    offset = torch.arange(len(place)) - torch.repeat_interleave(length.cumsum(0) - length, length)
    row = first[place] + offset
    raw = ~sequences.generated[row]
    return place[raw], sequences.item[row[raw]]


def _bar(parts: Iterable[Any], total: int) -> Any:
    return tqdm(parts, desc="recommend", total=total, leave=False, disable=True if total < 2 else None)


# ---- files -------------------------------------------------------------------------------------------------------


def write(path: Path, frames: Iterable[pd.DataFrame]) -> int:
    """Write frames of `COLUMNS` one after the other as CSV, JSON Lines or Parquet, by the ending of ``path``.

    Returns: the number of users.
    Raises: DataError if the file cannot be written; nothing is left then.
    """
    with write_safely(path) as temporary:
        return {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}[path.suffix](temporary, frames)


def _write_csv(path: Path, frames: Iterable[pd.DataFrame]) -> int:
    n_users = 0
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write(",".join(COLUMNS) + "\n")
        for frame in frames:
            frame.to_csv(file, index=False, header=False, lineterminator="\n")
            n_users += frame["user"].nunique()
    return n_users


def _write_jsonl(path: Path, frames: Iterable[pd.DataFrame]) -> int:
    n_users = 0
    with open(path, "w", encoding="utf-8", newline="") as file:
        for frame in frames:
            if len(frame):  # else pandas writes an empty line
                frame.to_json(file, orient="records", lines=True, force_ascii=False)
            n_users += frame["user"].nunique()
    return n_users


def _write_parquet(path: Path, frames: Iterable[pd.DataFrame]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"rank": pa.int32(), "score": pa.float32()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])
    n_users = 0
    with pq.ParquetWriter(path, schema) as writer:
        for frame in frames:
            writer.write_table(pa.Table.from_pandas(frame, schema, preserve_index=False))
            n_users += frame["user"].nunique()
    return n_users


_HASHES = ("split_hash", "catalogue_hash", "artefacts_hash")
_NEEDED: dict[str, type] = {
    **dict.fromkeys(("model", "dataset", "data_path", "rows", *_HASHES), str),
    **{"domains": list, "settings": dict, "sees_generated": bool},
}


def load(run_dir: str | Path, data_path: str | Path | None = None) -> Recommender:
    """Open a finished run.

    Args:
        run_dir: a model's folder below ``runs/``, with ``result.json`` and ``best.pth``, or ``all-data`` in it.
        data_path: where the atomic files are now, if not where they were in training.

    Raises: DataError if the run is not finished, or its data are not there or have changed.
    """
    run_dir = Path(run_dir)
    result = read_json(run_dir / "result.json")
    problem = faults_of(result, _NEEDED)
    if not problem and not is_model(result["model"]):
        problem = f"names a model that nobody knows, {result['model']}"
    if problem:
        raise DataError(f"{run_dir / 'result.json'}: {problem}; restore the file or train again")
    name, dataset_name = result["model"], result["dataset"]
    settings = Settings(
        dataset=re.sub(r"-edt(-[0-9a-f]{8})?$", "", dataset_name),
        data_path=Path(data_path or result["data_path"]),
        domains=tuple(result["domains"]),
        recbole=result["settings"],
    )
    folder = settings.data_path / dataset_name
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder, seen from {Path.cwd()}; say where the atomic files of {run_dir} are: "
            "data_path='.../atomic_files'"
        )
    config = recbole_config(settings, name, dataset_name, run_dir)
    dataset = EDTDataset(config)
    source = dataset.source
    now = split_hash(source, leave_one_out(source)), catalogue_hash(source), artefacts_hash(config)
    if now != tuple(result[key] for key in _HASHES):
        raise DataError(f"the data in {config['data_path']} have changed since {run_dir} was trained: train again")
    dataset._change_feat_format()
    rows, generated = result["rows"], result["sees_generated"]
    everything = result.get("trained_on") == EVERYTHING
    part = dataset.everything(generated, rows) if everything else dataset.parts(generated, rows)[0]
    return open_model(config, part, name, run_dir, rows)


def open_model(config: Any, part: EDTDataset, name: str, run_dir: Path, rows: str) -> Recommender:
    """The weights in ``run_dir`` on the part they were trained on."""
    model = trained_on(rows, name)(config, part).to(config["device"])
    load_weights(model, config, run_dir / "best.pth")
    titles = dict(zip(part.source.items, _titles(part), strict=True))
    return Recommender(model, part, [titles.get(token, "") for token in part.field2id_token[part.iid_field]])


def _titles(dataset: EDTDataset) -> Sequence[str]:
    fields = dataset.source.item_fields
    named = [column for column in ("title", "name") if column in fields]
    return list(fields[named[0]]) if named else [""] * len(fields)
