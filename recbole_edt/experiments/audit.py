"""What the released code's protocol does to the numbers of one trained model. Not comparable with anything.

Three things differ there from an honest evaluation: sequences are augmented first and split afterwards, so that
inserted items are among the targets and held-out ones have shaped what was inserted; the domain's part of a
candidate's score is that of another, random item; and the target competes with 100 items only. Here the same weights
are ranked honestly, under each of the three, and under all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from recbole_edt.augment import augment
from recbole_edt.augment.settings import AugmentConfig
from recbole_edt.config.settings import Settings
from recbole_edt.data.split import TEST
from recbole_edt.data.two_domains import TwoDomainData, keep_rows, offsets_of
from recbole_edt.errors import ConfigError, TooFewItems
from recbole_edt.evaluate.candidates import CandidateTable
from recbole_edt.evaluate.metrics import TOPK, domain_metrics, per_user
from recbole_edt.evaluate.ranking import RankCollector
from recbole_edt.files import sha256_of, write_safely, write_text
from recbole_edt.models.llmedt import LLMEDT
from recbole_edt.models.parts.batch_fields import VectorScores
from recbole_edt.pipeline import stages
from recbole_edt.render import console
from recbole_edt.render.tables import Column, ResultTable, code
from recbole_edt.text.vectors import EmbeddingTable
from recbole_edt.train import comparison, run
from recbole_edt.train.dataset import EDTDataset, eval_loader
from recbole_edt.train.sequences import Sequences

N_NEGATIVES = 100
LABEL = "NOT COMPARABLE"
VERSION = 2
"""Of the numbers in ``audit.csv``: before 2 misaligned scores were computed, and then not ranked by."""


@dataclass(frozen=True)
class Protocol:
    """A way of evaluating; every True is a leak."""

    name: str
    split_after: bool = False
    misaligned: bool = False
    sampled: bool = False

    @property
    def honest(self) -> bool:
        return not (self.split_after or self.misaligned or self.sampled)


PROTOCOLS = (
    Protocol("honest"),
    Protocol("split after augmenting", split_after=True),
    Protocol("misaligned scores", misaligned=True),
    Protocol(f"{N_NEGATIVES} negatives", sampled=True),
    Protocol("all three leaks", split_after=True, misaligned=True, sampled=True),
)


def check(settings: Settings) -> None:
    """Raises: ConfigError for any model but LLM-EDT."""
    if settings.model != "LLMEDT":
        raise ConfigError(f"model: the audit is of LLMEDT's protocol alone, not of {settings.model}")


def audit(settings: Settings, say: stages.Say) -> None:
    """Rank the finished run of LLM-EDT under every protocol; print the table and write it beside the run."""
    check(settings)
    experiment = comparison.open_experiment(settings)
    run_dir = run.finished_run(experiment, settings.model)
    model, trainer, test_data = run.open_run(experiment, settings.model, run_dir)
    leaky, inserted = split_after_augmenting(test_data._dataset, experiment)
    rows, honest = [], pd.DataFrame()
    for protocol in PROTOCOLS:
        part = leaky if protocol.split_after else test_data._dataset
        try:
            trainer.collectors = {"test": _collector(part, settings, protocol, experiment.seen_items == "masked")}
        except TooFewItems as error:
            say(f"note: {protocol.name} is left out: {error}")
            continue
        model.vector_scores = _scorer(model, protocol, comparison.seed_of(settings))  # what the trainer ranks by
        trainer.evaluate(eval_loader(trainer.config, part), load_best_model=False)
        ranks = trainer.evaluator.ranks
        new = inserted[ranks["user"].to_numpy()] if protocol.split_after else np.zeros(len(ranks), bool)
        honest = ranks if protocol.honest else honest
        note = _alike(protocol, ranks, honest, model)
        rows += [{**row, "note": note} for row in _rows(protocol, ranks, new)]
    table = pd.DataFrame(rows).assign(augmented_with=made_with(settings))
    with write_safely(run_dir / "audit.csv") as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
    title = f"{LABEL}: {settings.dataset}, {run_dir.name}, test targets, same weights in every row"
    shown = _shown(table, title)
    console.print_result(shown)
    write_text(run_dir / "audit.md", _markdown(shown, settings))
    say(f"audit: {run_dir / 'audit.md'}")


def made_with(settings: Settings) -> str:
    """Hash of the settings of the augmented rows, and of the version of the audit; it stands in ``audit.csv``."""
    return sha256_of([VERSION, asdict(stages.augmented_with(settings))])[:8]


def is_current(run_dir: Path, settings: Settings) -> bool:
    """Whether there is an ``audit.csv`` with all columns, and it augmented as the rows were made.

    An older one says neither how, nor why a row is as another.
    """
    table = read(run_dir) if (run_dir / "audit.csv").is_file() else pd.DataFrame()
    return {"augmented_with", "note"} <= set(table) and bool((table["augmented_with"] == made_with(settings)).all())


def read(run_dir: Path) -> pd.DataFrame:
    """The ``audit.csv`` of a run."""
    table = pd.read_csv(run_dir / "audit.csv", dtype={"augmented_with": str, "note": str})
    return table.fillna({"note": ""})


def notes(table: pd.DataFrame) -> list[str]:
    """What the rows of a run's audit do not show by themselves: which are as the honest one, and which are missing."""
    found = [note for note in table["note"].unique() if note]
    done = set(table["protocol"])
    missing = [protocol.name for protocol in PROTOCOLS if protocol.name not in done]
    if missing:
        are = "are" if len(missing) > 1 else "is"
        found.append(f"{' and '.join(missing)} {are} left out: a domain has too few items for {N_NEGATIVES} negatives")
    return found


# ---- the split after augmentation --------------------------------------------------------------------------------


def split_after_augmenting(part: EDTDataset, experiment: comparison.Experiment) -> tuple[EDTDataset, np.ndarray]:
    """Test targets as if augmentation came before the split: it has read all rows, and inserted ones count as raw.

    It augments as the run's own rows were, whatever options are given now. Items come from the offline generator
    though, so that no language model is asked again and every item is one that the model knows.

    Returns: the part, and by user id whether the user's target is an inserted row.
    """
    settings = experiment.settings
    table = EmbeddingTable.load(stages.augmented_vectors(settings))
    data = augmented_with_held_out_rows(part.source, table, stages.augmented_with(settings))
    user = torch.from_numpy(part.token2id(part.uid_field, data.users[data.user]))
    item = torch.from_numpy(part.token2id(part.iid_field, data.items[data.item]))
    nothing = torch.zeros(len(item), dtype=torch.bool)
    leaky = copy.copy(part)
    leaky.sequences = Sequences.build(user, item, nothing, part.item_domain)
    row = torch.nonzero(leaky.sequences.mark == TEST).squeeze(1)
    leaky._set_rows(row, leaky.sequences)
    inserted = np.zeros(part.user_num, bool)
    inserted[user[row].numpy()] = data.generated[row.numpy()]
    return leaky, inserted


def augmented_with_held_out_rows(
    data: TwoDomainData, table: EmbeddingTable, settings: AugmentConfig
) -> TwoDomainData:
    """The raw rows of ``data`` augmented from all of them, held-out ones included.

    Two more rows at the end of every user are held out in their place, and taken away afterwards.
    """
    raw = keep_rows(data, ~data.generated)
    end = np.zeros(len(raw.user), bool)
    end[raw.offsets[1:][np.diff(raw.offsets) > 0] - 1] = True
    row = np.repeat(np.arange(len(raw.user)), np.where(end, 3, 1))
    columns = {name: getattr(raw, name)[row] for name in ("user", "item", "time", "generated")}
    longer = replace(raw, **columns, offsets=offsets_of(columns["user"], len(raw.users)))
    done = augment.augment(longer, table, replace(settings, generator="offline"))[0]
    from_end = done.offsets[1:][done.user] - np.arange(len(done.user))
    return keep_rows(done, from_end > 2)


# ---- scores and candidates ---------------------------------------------------------------------------------------


def misaligned_scores(model: LLMEDT, interaction: Any, generator: torch.Generator) -> Tensor:
    """Eq. 11 with the domain's part of each candidate taken from a random item of its domain; the target keeps its own.

    In the released code the negatives of the two parts are drawn apart, and added place by place.
    """
    scores = LLMEDT.full_sort_predict(model, interaction)
    shared = model.backbone(interaction[model.ITEM_SEQ], interaction[model.ITEM_SEQ_LEN])
    row, target = torch.arange(len(shared), device=shared.device), interaction[model.ITEM_ID]
    of_target = scores[row, target]
    for vector, items in zip(model.user_vectors(interaction), model.scored, strict=True):
        table = model.item_embedding.weight[items]
        own = (vector - shared) @ table.T  # [B, n]
        other = torch.randint(len(items), own.shape, generator=generator).to(own.device)
        scores[:, items] = shared @ table.T + own.gather(1, other)
    scores[row, target] = of_target
    return scores


def has_own_parts(model: LLMEDT) -> bool:
    """Whether scores have a part of each domain (Eq. 11): fine-tuning, which starts without, was kept."""
    if not model.finetuned:
        return False
    outer = [one for name, one in model.user_adapters.named_parameters() if ".outer." in name]
    return model.settings.adapter_residual or any(bool(one.any()) for one in outer)


def _scorer(model: LLMEDT, protocol: Protocol, seed: int) -> Callable[[Any], Tensor | VectorScores]:
    if not protocol.misaligned or not has_own_parts(model):  # rounding of parts that are zero would only undo ties
        return lambda interaction: LLMEDT.vector_scores(model, interaction)
    generator = torch.Generator().manual_seed(seed)
    return lambda interaction: misaligned_scores(model, interaction, generator)


def _collector(part: EDTDataset, settings: Settings, protocol: Protocol, masked: bool) -> RankCollector:
    table = negatives(part, comparison.seed_of(settings)) if protocol.sampled else None
    real = ~part.virtual & (part.item_domain > 0)
    mode = "sampled" if protocol.sampled else "domain"
    seen = comparison.seen_before(part, TEST)
    return RankCollector(
        part.item_domain, real, mode, table, part.domain_names, part.uid_field, "LLMEDT", seen, masked
    )


def negatives(part: EDTDataset, seed: int) -> CandidateTable:
    """``N_NEGATIVES`` items of each target's domain that the user never met, inserted ones included.

    Raises: DataError if a user has fewer left.
    """
    rows, real = part.sequences, ~part.virtual
    pools = [torch.nonzero(real & (part.item_domain == d)).squeeze(1).numpy() for d in (1, 2)]
    user, target = rows.user[part.row], rows.item[part.row]
    domain = part.item_domain[target] - 1
    met = rows.user.numpy(), rows.item.numpy()
    return CandidateTable.build(user.numpy(), domain.numpy(), pools, *met, N_NEGATIVES, seed)


# ---- what is said ------------------------------------------------------------------------------------------------


def _rows(protocol: Protocol, ranks: pd.DataFrame, inserted: np.ndarray) -> list[dict[str, Any]]:
    hit = per_user(ranks["higher"], ranks["tied"], "hit", 10)
    about = {
        "protocol": protocol.name,
        "comparable": "yes" if protocol.honest else "no",
        "inserted_targets": float(inserted.mean()),
        "hit@10_of_inserted": float(hit[inserted].mean()) if inserted.any() else float("nan"),
        "hit@10_of_real": float(hit[~inserted].mean()),
    }
    return [{**about, "domain": name, **dict(values)} for name, values in domain_metrics(ranks, TOPK).iterrows()]


def _alike(protocol: Protocol, ranks: pd.DataFrame, honest: pd.DataFrame, model: LLMEDT) -> str:
    """A sentence where a leak changes no rank, with the reason if the weights tell it; else nothing."""
    if protocol.honest or not ranks.equals(honest):
        return ""
    said = f"{protocol.name} ranks every target as {PROTOCOLS[0].name} does"
    if not protocol.misaligned or has_own_parts(model):
        return said
    why = "fine-tuning was not kept" if model.finetuned else "there was no fine-tuning"
    return f"{said}: no domain has a part of its own, since {why}"


def _shown(table: pd.DataFrame, title: str) -> ResultTable:
    """A row per protocol, its columns by domain and by kind of target."""
    first = table.drop_duplicates("protocol")
    names = [name if name == PROTOCOLS[0].name else f"{name} ({LABEL.lower()})" for name in first["protocol"]]
    columns: list[Any] = ["protocol"]
    cells: list[Any] = [names]
    for domain, rows in table.groupby("domain", sort=False):
        for metric in ("hit@10", "ndcg@10"):
            columns.append(Column(metric, str(domain), 4))
            cells.append(rows[metric])
    columns.append(Column("inserted", "targets", 1, form="percent"))
    cells.append(first["inserted_targets"])
    for kind in ("inserted", "real"):
        columns.append(Column(f"hit@10 if {kind}", "targets", 4))
        cells.append(first[f"hit@10_of_{kind}"])
    note = " ".join(f"Note: {one}." for one in notes(table))
    return ResultTable("audit", title, columns, list(zip(*cells, strict=True)), note)


def _markdown(table: ResultTable, settings: Settings) -> str:
    why = (
        "The first row is the honest evaluation: split before anything else, every candidate scored by its own two "
        "parts, against all real items of the target's domain. Each further row changes what it names, on the same "
        "weights; its numbers measure the protocol and must not stand beside those of another model."
    )
    parts = [f"# {table.title}", why, table.markdown(), code([settings.command])]
    return "\n\n".join(parts) + "\n"
