"""LLM4CDSR (Liu et al., SIGIR 2025, arXiv 2504.18383): three threads trained together on frozen LLM vectors.

One thread reads the mixed sequence through an adapter of the LLM vectors, which a contrastive term between the domains
regularises and the users' profiles guide; one thread for each domain reads that domain alone, with item embeddings of
its own. The score of an item is what the mixed thread says of it plus what its domain's thread does.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recbole_edt.errors import choice_faults
from recbole_edt.models.base import CommonSettings, TwoDomainModel, not_above_zero, principal_components, read_settings
from recbole_edt.models.parts import losses
from recbole_edt.models.parts.backbones import build_backbone, item_encoder
from recbole_edt.models.parts.batch_fields import DOMAIN_SEQ, DOMAIN_SEQ_LEN, LAST_WINDOW, TARGET_SEQ
from recbole_edt.models.parts.item_encoder import ItemEncoder
from recbole_edt.models.registry import Method


@dataclass(frozen=True)
class LLM4CDSRSettings(CommonSettings):
    """What LLM4CDSR reads from the configuration, beside what every method does."""

    loss_type: str = "BCE"
    """As for LLM-EDT; ``BCE`` is the paper's."""
    alpha: float = 0.1
    """Weight of the regulariser of the adapter, 0 leaves it out."""
    regulariser_temperature: float = 0.2
    """Temperature of the regulariser, above 0."""
    beta: float = 0.1
    """Weight of the alignment of users with their profiles, 0 turns profiles off."""
    item_adapter: bool = True
    """False (an ablation, with ``alpha: 0``): the mixed thread has frozen principal components of the LLM vectors."""
    domain_threads: bool = True
    """False: the mixed thread alone (an ablation)."""
    domain_items: str = "pca"
    """What the domain threads' item embeddings start from: ``pca`` of the LLM vectors, or ``random``."""

    def faults(self) -> list[str]:
        """What is wrong with these values, one sentence each."""
        found = super().faults() + choice_faults(self, {"domain_items": ("pca", "random")})
        found += not_above_zero(self, ("regulariser_temperature",))
        found += [f"{key}: {getattr(self, key)!r} is below 0" for key in ("alpha", "beta") if getattr(self, key) < 0]
        if self.alpha > 0 and not self.item_adapter:
            found.append("item_adapter: false leaves nothing for the regulariser to train; set alpha: 0 with it")
        return found


class LLM4CDSR(TwoDomainModel):
    """LLM4CDSR on the vectors and hierarchical profiles that the earlier stages wrote.

    Args:
        config: a RecBole configuration; the keys are those of ``LLM4CDSRSettings`` and of the backbone.
        dataset: the training part of an ``EDTDataset``.

    Raises: ConfigError for values out of range, DataError if vectors are missing.
    """

    method = Method(
        title="LLM4CDSR",
        settings=(LLM4CDSRSettings,),
        profiles="hierarchical",
        variants={
            "w/o Regulariser": {"alpha": 0},
            "w/o Profiles": {"beta": 0},
            # Profiles of raw rows, too.
            "w/o Hierarchical Profiling": {"profile.pipeline": "plain", "augment.insertion": "none"},
            "w/o Adapter": {"item_adapter": False, "alpha": 0},
            "Single Thread": {"domain_threads": False},
        },
    )
    settings: LLM4CDSRSettings
    threads: Any

    def __init__(self, config: Any, dataset: Any) -> None:
        settings = read_settings(LLM4CDSRSettings, config)
        super().__init__(config, dataset, settings)
        text = dataset.item_vectors()
        self.backbone = build_backbone(settings.backbone, config, dataset, self._mixed_items(text))
        self.threads = nn.ModuleList()
        if settings.domain_threads:
            own = self._domain_items(text)
            self.threads.extend(build_backbone(settings.backbone, config, dataset, encoder) for encoder in own)
        if settings.alpha > 0:
            self._index_histories(dataset)
        if settings.beta > 0:
            self._read_profiles(dataset)
        self._joined: tuple[Tensor, ...] = ()

    def _mixed_items(self, text: Tensor) -> ItemEncoder:
        """The mixed thread's items: adapted LLM vectors."""
        kind, size = item_encoder(self.settings.backbone), self.settings.hidden_size
        if self.settings.item_adapter:
            return kind(self.n_items, size, "llm", text)
        encoder = kind(self.n_items, size, "id")
        assert encoder.ids is not None
        encoder.ids.weight.data[1:] = principal_components(text[1:], size)
        encoder.ids.requires_grad_(False)
        return encoder

    def _domain_items(self, text: Tensor) -> list[ItemEncoder]:
        """Item embeddings of the threads of A and of B, which are different rows of one table."""
        kind, size = item_encoder(self.settings.backbone), self.settings.hidden_size
        encoders = [kind(self.n_items, size, "id") for _ in DOMAIN_SEQ]
        ids = encoders[1].ids = encoders[0].ids
        assert ids is not None
        if self.settings.domain_items == "pca":
            for pool in self.pools:
                own = pool.to(text.device)
                ids.weight.data[own] = principal_components(text[own], size)
        return encoders

    def _index_histories(self, dataset: Any) -> None:
        """Every user's training items by domain, one after the other, to draw from."""
        user, item = dataset.training_pairs
        for d in (0, 1):
            mine = dataset.item_domain[item] == d + 1
            order = user[mine].argsort(stable=True)
            count = torch.bincount(user[mine], minlength=dataset.user_num)
            self.register_buffer(f"history_{d}", item[mine][order], persistent=False)
            self.register_buffer(f"history_count_{d}", count, persistent=False)  # [U]
            self.register_buffer(f"history_first_{d}", count.cumsum(0) - count, persistent=False)  # [U]

    @property
    def item_embedding(self) -> ItemEncoder:
        """The mixed thread's item encoder."""
        return self.backbone.item_embedding

    def item_vectors(self, items: Tensor) -> Tensor:
        """``[..., 2 H]``: what the mixed thread and the item's domain thread hold of each item, side by side."""
        return torch.cat([encoder(items) for encoder in self._encoders()], dim=-1)

    @property
    def item_table(self) -> Tensor:
        """The same of all items; put together once for an evaluation."""
        parts = tuple(encoder.weight for encoder in self._encoders())
        if torch.is_grad_enabled():
            return torch.cat(parts, dim=-1)
        if [id(part) for part in parts] != [id(part) for part in self._joined[1:]]:
            self._joined = (torch.cat(parts, dim=-1), *parts)
        return self._joined[0]

    def _encoders(self) -> list[ItemEncoder]:
        """Those that score items; either domain thread's knows the items of both."""
        return [self.item_embedding, *(thread.item_embedding for thread in self.threads[:1])]

    # ---- training ------------------------------------------------------------------------------------------------

    def calculate_loss(self, interaction: Any) -> tuple[Tensor, ...]:
        """The losses of A and of B on the summed scores, and weighted regulariser and alignment where they are on."""
        item_seq, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        predicted, place, target, domain, negative = self._predictions(interaction)
        met = self._one_of_each_domain(interaction)  # [2, P]
        with ExitStack() as stack:
            stack.enter_context(self.item_embedding.shared(item_seq, target, negative, met))
            own_seqs = [interaction[key] for key in DOMAIN_SEQ]
            for thread in self.threads:
                stack.enter_context(thread.item_embedding.shared(target, negative, *own_seqs))
            states = self.backbone.training_states(item_seq, length, predicted)
            vector = torch.cat([states[place], *self._own_states(interaction, predicted, len(target))], dim=-1)
            parts = [loss for loss, _ in self._domain_losses(vector, target, domain, negative)]
            if self.settings.alpha > 0:
                parts.append(self.settings.alpha * self._regulariser(met))
            if self.settings.beta > 0:
                parts.append(self.settings.beta * self._alignment(interaction, states, "infonce"))
        return tuple(parts)

    def _own_states(self, interaction: Any, predicted: Tensor, n: int) -> list[Tensor]:
        """``[T, H]``, of ``n`` = T targets: the state of its domain's thread where the mixed sequence has got to.

        Zero where the user had nothing in that domain by then. An empty list without domain threads.
        """
        if not len(self.threads):
            return []
        item_seq, targets = interaction[self.ITEM_SEQ], interaction[TARGET_SEQ]
        order = (predicted.flatten().cumsum(0) - 1).view_as(predicted)  # place of each prediction among the T
        own = torch.zeros(n, self.settings.hidden_size, device=item_seq.device)
        for d, thread in enumerate(self.threads):
            length = interaction[DOMAIN_SEQ_LEN[d]]
            wanted = predicted & (self.item_domain[targets] == d + 1)
            rows = torch.nonzero(wanted.any(1) & (length > 0)).squeeze(1)
            if not len(rows):
                continue
            place = self.own_positions(item_seq, length, d)[rows]  # [R, L]
            known = wanted[rows] & (place >= 0)
            row, column = torch.nonzero(known, as_tuple=True)
            place = place[row, column]
            own_seq, length = interaction[DOMAIN_SEQ[d]][rows], length[rows]
            hidden = torch.zeros_like(own_seq, dtype=torch.bool)
            hidden[row, place] = True
            states = thread.training_states(own_seq, length, hidden)  # [R, L of the domain, H]
            found = states[row, place] * thread.has_read(length, hidden)[row, place].unsqueeze(-1)
            own = own.index_add(0, order[rows[row], column], found)
        return [own]

    def _one_of_each_domain(self, interaction: Any) -> Tensor:
        """``[2, P]``: of each user with both domains in training an item of A and one of B, drawn at random.

        A user counts in the batch with the last of the training items, so once in an epoch.
        """
        user = interaction[self.USER_ID]
        if self.settings.alpha == 0:
            return user.new_zeros(2, 0)
        both = (self.history_count_0[user] > 0) & (self.history_count_1[user] > 0)
        user = user[interaction[LAST_WINDOW].bool() & both]
        drawn = []
        for d in (0, 1):
            items, count, first = (getattr(self, f"history{key}_{d}") for key in ("", "_count", "_first"))
            place = (torch.rand(len(user), device=user.device) * count[user]).long()
            drawn.append(items[first[user] + torch.minimum(place, count[user] - 1)])
        return torch.stack(drawn)

    def _regulariser(self, met: Tensor) -> Tensor:
        """Items of both domains that the same user met are pulled together against those of the batch (InfoNCE).

        Args:
            met: ``[2, P]`` items of A and of B; 0 for fewer than two users.
        """
        vectors = self.item_embedding(met)  # [2, P, H]
        if met.shape[1] < 2:
            return vectors.sum() * 0.0
        return losses.alignment_loss(vectors[0], vectors[1], self.settings.regulariser_temperature, "infonce")

    # ---- inference -----------------------------------------------------------------------------------------------

    def user_vectors(self, interaction: Any) -> Tensor:
        """``[2, B, 2 H]``: the states of the mixed thread and of A's, or of B's, side by side.

        A user without history in a domain has zeros for its thread: the mixed thread's score alone.
        """
        state = self.backbone(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        if not len(self.threads):
            return state.expand(2, -1, -1)
        vectors = []
        for d, thread in enumerate(self.threads):
            length = interaction[DOMAIN_SEQ_LEN[d]]
            own, rows = torch.zeros_like(state), torch.nonzero(length > 0).squeeze(1)
            if len(rows):
                own = own.index_copy(0, rows, thread(interaction[DOMAIN_SEQ[d]][rows], length[rows]))
            vectors.append(torch.cat([state, own], dim=-1))
        return torch.stack(vectors)
