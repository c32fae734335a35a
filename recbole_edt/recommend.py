"""Top items for users, from a trained run: no LLM call and no text is needed any more."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from recbole.data.interaction import Interaction
from recbole.utils import ModelType, get_model
from torch import Tensor
from tqdm import tqdm

from recbole_edt.baselines import SEQUENCE_ROWS, sequence_trained
from recbole_edt.config import Settings, recbole_config
from recbole_edt.dataset import EDTDataset, Sequences, artefacts_hash
from recbole_edt.errors import DataError
from recbole_edt.files import read_json
from recbole_edt.model import LLMEDT
from recbole_edt.split import catalogue_hash, leave_one_out, split_hash
from recbole_edt.trainer import load_weights


class Recommender:
    """A trained model with its data set.

    Args:
        model: in evaluation mode, loaded.
        dataset: the part the model was built on.
        titles: ``[N]`` by item id.
    """

    def __init__(self, model: Any, dataset: EDTDataset, titles: Sequence[str]) -> None:
        self.model, self.dataset, self.titles = model, dataset, titles
        self.users = dataset.field2id_token[dataset.uid_field]
        self.items = dataset.field2id_token[dataset.iid_field]
        self._item_id = {token: i for i, token in enumerate(self.items)}
        real = ~dataset.virtual
        self._columns = {
            name: torch.nonzero(real & (dataset.item_domain == d)).squeeze(1)
            for d, name in enumerate(dataset.domain_names, 1)
        }

    @torch.no_grad()
    def recommend(
        self, history: Sequence[str], k: int = 10, domain: str | None = None, seen: bool = False
    ) -> pd.DataFrame:
        """Top ``k`` items after a history of item tokens, oldest first.

        Args:
            history: tokens of the catalogue; at least one.
            domain: one domain's name, or None for both.
            seen: whether items of the history may be recommended.

        Returns: columns ``domain``, ``rank`` (from 1), ``item``, ``title``, ``score``.
        Raises: DataError for an empty history, an unknown item, an unknown domain or ``k`` below 1, and for a model
            that knows users instead of histories.
        """
        if self.model.type != ModelType.SEQUENTIAL:
            raise DataError(f"{type(self.model).__name__} reads no history, it scores known users: use all_users()")
        if k < 1:
            raise DataError(f"k: {k} is below 1")
        unknown = [token for token in history if token not in self._item_id or token == self.items[0]]
        if unknown or not len(history):
            raise DataError(f"history: {f'unknown item {unknown[0]!r}' if unknown else 'it is empty'}")
        items = torch.tensor([self._item_id[token] for token in history])
        nobody, no = torch.zeros_like(items), torch.zeros(len(items), dtype=torch.bool)
        sequences = Sequences.build(nobody, items, no, self.dataset.item_domain)
        first, end = torch.tensor([0]), torch.tensor([len(items)])
        frame = self._top(sequences, nobody[:1], first, end, k, self._domains(domain), seen)
        return frame.drop(columns="user")

    @torch.no_grad()
    def all_users(self, k: int = 10, seen: bool = False, batch_size: int = 512) -> Iterator[pd.DataFrame]:
        """Top ``k`` items per domain after each known user's whole history, in batches of users.

        Yields: frames with the columns ``user``, ``domain``, ``rank``, ``item``, ``title``, ``score``.
        """
        sequences = self.dataset.sequences
        user, count = torch.unique_consecutive(sequences.user, return_counts=True)
        end = count.cumsum(0)
        for rows in tqdm(torch.arange(len(user)).split(batch_size), desc="recommend", leave=False, disable=None):
            first = end[rows] - count[rows]
            yield self._top(sequences, user[rows], first, end[rows], k, list(self._columns), seen)

    def _domains(self, domain: str | None) -> list[str]:
        if domain is None:
            return list(self._columns)
        if domain not in self._columns:
            raise DataError(f"domain: {domain!r} is not one of {', '.join(self._columns)}")
        return [domain]

    def _top(
        self, sequences: Sequences, user: Tensor, first: Tensor, end: Tensor, k: int, domains: list[str], seen: bool
    ) -> pd.DataFrame:
        data = self.dataset
        batch = data.histories(sequences, first, end)
        batch.update(Interaction({data.uid_field: user}))
        scores = self.model.full_sort_predict(batch.to(self.model.device)).view(len(user), -1).cpu()
        if not seen:  # inserted rows were never met by the user: they may be recommended
            rows = slice(int(first[0]), int(end[-1]))  # the users follow one another
            raw = ~sequences.generated[rows]
            place = torch.repeat_interleave(torch.arange(len(user)), end - first)
            scores[place[raw], sequences.item[rows][raw]] = -torch.inf
        frames = []
        for name in domains:
            columns = self._columns[name]
            score, place = scores[:, columns].topk(min(k, len(columns)))
            item = columns[place]
            frame = pd.DataFrame(
                {
                    "user": self.users[user].repeat(score.shape[1]) if len(user) else [],
                    "domain": name,
                    "rank": list(range(1, score.shape[1] + 1)) * len(user),
                    "item": self.items[item.reshape(-1)],
                    "title": [self.titles[i] for i in item.reshape(-1).tolist()],
                    "score": score.reshape(-1).numpy(),
                }
            )
            frames.append(frame[frame["score"] > -float("inf")])
        return pd.concat(frames, ignore_index=True)


def load(run_dir: str | Path, data_path: str | Path | None = None) -> Recommender:
    """Open a finished run.

    Args:
        run_dir: a model's folder below ``runs/``, with ``config.yaml``, ``result.json`` and ``best.pth``.
        data_path: where the atomic files are now, if not where they were in training.

    Raises: DataError if the run is not finished, or its data have changed.
    """
    run_dir = Path(run_dir)
    result = read_json(run_dir / "result.json")
    name, dataset_name = result["model"], result["dataset"]
    settings = Settings(
        dataset=re.sub(r"-edt(-[0-9a-f]{8})?$", "", dataset_name),
        data_path=Path(data_path or result["data_path"]),
        domains=tuple(result["domains"]),
        recbole=result["settings"],
    )
    config = recbole_config(settings, name, dataset_name, run_dir)
    dataset = EDTDataset(config)
    source = dataset.source
    now = split_hash(source, leave_one_out(source)), catalogue_hash(source), artefacts_hash(config)
    if now != tuple(result[key] for key in ("split_hash", "catalogue_hash", "artefacts_hash")):
        raise DataError(f"the data in {config['data_path']} have changed since {run_dir} was trained: train again")
    dataset._change_feat_format()
    return open_model(config, dataset, name, run_dir, result["rows"], result["sees_generated"])


def open_model(
    config: Any, dataset: EDTDataset, name: str, run_dir: Path, rows: str, generated: bool
) -> Recommender:
    """The weights in ``run_dir`` on a loaded data set."""
    part = dataset.parts(generated, rows)[0]
    if name == "LLMEDT":
        cls: type = LLMEDT
    else:
        cls = sequence_trained(name) if rows == SEQUENCE_ROWS.get(name) else get_model(name)
    model = cls(config, part).to(config["device"])
    if name == "LLMEDT":
        model.start_finetuning()
    load_weights(model, config, run_dir / "best.pth")
    titles = dict(zip(dataset.source.items, _titles(dataset), strict=True))
    return Recommender(model, part, [titles.get(token, "") for token in part.field2id_token[part.iid_field]])


def _titles(dataset: EDTDataset) -> Sequence[str]:
    fields = dataset.source.item_fields
    named = [column for column in ("title", "name") if column in fields]
    return list(fields[named[0]]) if named else [""] * len(fields)
