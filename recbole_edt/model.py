"""LLM-EDT as a RecBole sequential model: item encoder, shared backbone, one small adapter per domain.

Paper section 3.3 and 3.4.3. In the phase ``pretrain`` everything but the user adapters is trained on the mixed
sequence (Eq. 8, 9, 13, 14); in the phase ``finetune`` only the user adapters are (Eq. 10-12, 15).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_edt import losses
from recbole_edt.backbones import PRE_NORM, backbone_faults, build_backbone, item_encoder
from recbole_edt.candidates import DomainSampler
from recbole_edt.dataset import DOMAIN_SEQ, DOMAIN_SEQ_LEN, LAST_WINDOW, TARGET_SEQ
from recbole_edt.errors import ConfigError, choice_faults
from recbole_edt.evaluation import VectorScores
from recbole_edt.layers import Adapter, ItemEncoder

# Fields of fine-tuning's batches.
STATE, OWN_STATE, HAS_OWN = "state", "own_state", "has_own"
CHOICES = {
    "item_representation": ("llm", "id", "llm+id"),
    "loss_type": ("BPR", "BCE", "CE", "SSM"),
    "align_denominator": ("paper", "infonce"),
}


@dataclass(frozen=True)
class ModelSettings:
    """What LLM-EDT reads from the configuration; every default is the paper's unless said otherwise."""

    backbone: str = "SASRec"
    """``SASRec`` (paper), ``GRU4Rec``, ``BERT4Rec`` (both in table 9), or another of ``backbones.BACKBONES``."""
    norm_first: bool = False
    """Transformer layers of the backbone normalise their input instead of their output (RecBole's, not pre-norm)."""
    hidden_size: int = 128
    """Width of states and item vectors; above 0."""
    item_representation: str = "llm"
    """``llm`` (adapted text), ``id`` (learnt embedding) or ``llm+id`` (their sum)."""
    loss_type: str = "BPR"
    """``BPR``; ``BCE`` (released code); ``CE`` (softmax over the target's domain); ``SSM`` (sampled softmax)."""
    n_negatives: int = 1
    """Negatives per position for BPR and BCE; negatives shared by the batch, per domain, for SSM."""
    alpha: float = 0.7
    """Weight of the alignment loss, 0 turns profiles off. The paper uses 0.1 to 1.0, 0.7 on Cloth-Sport."""
    align_temperature: float = 0.2
    """Temperature of Eq. 13, above 0. The paper gives none."""
    align_denominator: str = "paper"
    """``paper`` leaves the positive pair out of the denominator, as printed; ``infonce`` keeps it."""
    adapter_size: int = 64
    """Bottleneck of the user adapters of Eq. 10, above 0."""
    adapter_activation: bool = False
    """ReLU inside the user adapters (released code)."""
    adapter_residual: bool = False
    """Add the adapter's input to its output (released code)."""
    adapter_dropout: float = 0.0
    """Dropout inside the user adapters (released code)."""

    @classmethod
    def read(cls, config: Any) -> ModelSettings:
        """Take the keys from a RecBole configuration, with defaults for those it lacks.

        Raises: ConfigError listing every value that is out of range.
        """
        given = {f.name: config[f.name] for f in fields(cls) if config[f.name] is not None}
        settings = cls(**given)
        faults = settings.faults()
        if faults:
            raise ConfigError("; ".join(faults))
        return settings

    def faults(self) -> list[str]:
        """What is wrong with these values, one sentence each."""
        found = backbone_faults(self.backbone) + choice_faults(self, CHOICES)
        for key in ("hidden_size", "n_negatives", "adapter_size", "align_temperature"):
            if not getattr(self, key) > 0:
                found.append(f"{key}: {getattr(self, key)!r} is not above 0")
        if self.norm_first and self.backbone not in PRE_NORM:
            found.append(f"norm_first: {self.backbone} has no transformer layers; {' and '.join(PRE_NORM)} have")
        if self.alpha < 0:
            found.append(f"alpha: {self.alpha!r} is below 0")
        return found


class LLMEDT(SequentialRecommender):
    """LLM-EDT (SIGIR 2026) on the vectors and profiles that the earlier stages wrote.

    Args:
        config: a RecBole configuration; the keys are those of ``ModelSettings`` and of the backbone.
        dataset: the training part of an ``EDTDataset``.

    Raises: ConfigError for values out of range, DataError if vectors are missing.
    """

    input_type = InputType.PAIRWISE

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.settings = settings = ModelSettings.read(config)
        self.phase = "pretrain"
        self.register_buffer("item_domain", dataset.item_domain, persistent=False)  # [N] 0 padding, 1 A, 2 B
        # Virtual items may be negatives in training (method), but are never scored.
        domain, virtual = dataset.item_domain.to(self.device), dataset.virtual.to(self.device)
        self.pools = [torch.nonzero(domain == d).squeeze(1) for d in (1, 2)]
        self.scored = [torch.nonzero((domain == d) & ~virtual).squeeze(1) for d in (1, 2)]
        user, item = (column.to(self.device) for column in dataset.training_pairs)
        self.sampler = DomainSampler(self.pools, user, item, dataset.user_num)
        text = None if settings.item_representation == "id" else dataset.item_vectors()
        encoder = item_encoder(settings.backbone)(
            self.n_items, settings.hidden_size, settings.item_representation, text
        )
        self.backbone = build_backbone(settings.backbone, config, dataset, encoder)
        self.user_adapters = nn.ModuleList(self._user_adapter() for _ in range(2))
        self.profile_adapter: Adapter | None = None
        if settings.alpha > 0:
            profiles, has_profile = dataset.user_profiles()
            self.register_buffer("profiles", profiles, persistent=False)  # [U, D]
            self.register_buffer("has_profile", has_profile, persistent=False)  # [U]
            width = profiles.shape[1]
            self.profile_adapter = Adapter(width, max(1, width // 2), settings.hidden_size)

    def _user_adapter(self) -> Adapter:
        s = self.settings
        return Adapter(
            s.hidden_size,
            s.adapter_size,
            s.hidden_size,
            s.adapter_activation,
            s.adapter_residual,
            s.adapter_dropout,
            zero_start=True,  # fine-tuning starts at the pre-trained scores; the paper gives no initialisation
        )

    @property
    def item_embedding(self) -> ItemEncoder:
        """The item encoder, held by the backbone."""
        return self.backbone.item_embedding

    # ---- phases --------------------------------------------------------------------------------------------------

    def start_finetuning(self) -> None:
        """Freeze everything but the two user adapters: no gradient, no dropout (section 3.3.2)."""
        self.phase = "finetune"
        self.requires_grad_(False)
        self.user_adapters.requires_grad_(True)

    def train(self, mode: bool = True) -> LLMEDT:
        super().train(mode)
        if self.phase == "finetune":
            self.backbone.eval()
        return self

    # ---- training ------------------------------------------------------------------------------------------------

    def calculate_loss(self, interaction: Any) -> tuple[Tensor, ...] | Tensor:
        """Pre-training: Eq. 9, and alpha times Eq. 13 if profiles are on. Fine-tuning: Eq. 12 of A and of B."""
        if self.phase == "finetune":
            return self._finetuning_loss(interaction)
        item_seq, length, targets = (interaction[key] for key in (self.ITEM_SEQ, self.ITEM_SEQ_LEN, TARGET_SEQ))
        predicted = self.backbone.predicted(targets, length)  # [B, L]
        target = targets[predicted]  # [T]
        user = interaction[self.USER_ID].unsqueeze(1).expand_as(targets)[predicted]
        domain = self.item_domain[target] - 1  # [T], 0 A and 1 B
        negative = self._negatives(user, domain)
        with self.item_embedding.shared(item_seq, target, negative):
            states = self.backbone.training_states(item_seq, length, predicted)
            parts = self._domain_losses(states[predicted], target, domain, negative)
            loss = sum(mean * n for mean, n in parts) / max(len(target), 1)
            if self.profile_adapter is None:
                return loss
            return loss, self.settings.alpha * self._alignment(interaction, states)

    def _finetuning_loss(self, interaction: Any) -> tuple[Tensor, ...]:
        if STATE not in interaction:
            interaction = self.frozen_states(interaction)
        target = interaction[self.ITEM_ID]
        domain = self.item_domain[target] - 1
        negative = self._negatives(interaction[self.USER_ID], domain)
        with torch.no_grad():
            _ = self.item_embedding.weight  # computed once an epoch, then looked up
        vector = interaction[STATE]
        for d, adapter in enumerate(self.user_adapters):
            mine = torch.nonzero((domain == d) & interaction[HAS_OWN]).squeeze(1)
            vector = vector.index_add(0, mine, adapter(interaction[OWN_STATE][mine]))
        return tuple(loss for loss, _ in self._domain_losses(vector, target, domain, negative))

    def _negatives(self, user: Tensor, domain: Tensor) -> Tensor:
        """Negatives of the target's domain: ``[T, n]`` of the user's own, or ``[2, n]`` shared by the batch."""
        n = self.settings.n_negatives
        if self.settings.loss_type == "CE":
            return domain.new_zeros(0)
        if self.settings.loss_type == "SSM":
            return torch.stack([pool[torch.randint(len(pool), (n,), device=pool.device)] for pool in self.pools])
        return self.sampler.draw(user, domain, n)

    def _domain_losses(
        self, vector: Tensor, target: Tensor, domain: Tensor, negative: Tensor
    ) -> list[tuple[Tensor, int]]:
        """Mean loss and number of positions per domain, from user vectors ``[T, H]``."""
        parts = []
        for d in (0, 1):
            mine = torch.nonzero(domain == d).squeeze(1)
            parts.append((self._loss(d, vector[mine], target[mine], mine, negative), len(mine)))
        return parts

    def _loss(self, d: int, vector: Tensor, target: Tensor, mine: Tensor, negative: Tensor) -> Tensor:
        kind = self.settings.loss_type
        if kind == "CE":
            pool = self.pools[d]
            return losses.softmax_cross_entropy(
                vector, self.item_embedding.weight[pool], torch.searchsorted(pool, target)
            )
        positive_score = (vector * self.item_embedding(target)).sum(-1)  # [T]
        if kind == "SSM":
            negative_score = vector @ self.item_embedding(negative[d]).T  # [T, n]
            return losses.sampled_softmax(positive_score, negative_score, target.unsqueeze(1) == negative[d])
        negative_score = torch.einsum("th,tnh->tn", vector, self.item_embedding(negative[mine]))
        return (losses.bpr if kind == "BPR" else losses.bce)(positive_score, negative_score)

    def _alignment(self, interaction: Any, states: Tensor) -> Tensor:
        """Eq. 13 over the users of the batch who have a profile and whose last training items are in it."""
        assert self.profile_adapter is not None
        user = interaction[self.USER_ID]
        chosen = interaction[LAST_WINDOW].bool() & self.has_profile[user]
        if int(chosen.sum()) < 2:
            return states.sum() * 0.0
        item_seq, length = interaction[self.ITEM_SEQ][chosen], interaction[self.ITEM_SEQ_LEN][chosen]
        state = self.backbone.user_states(item_seq, length, states[chosen])
        profile = self.profile_adapter(self.profiles[user[chosen]])
        s = self.settings
        return losses.alignment_loss(state, profile, s.align_temperature, s.align_denominator)

    @torch.no_grad()
    def frozen_states(self, interaction: Any) -> Interaction:
        """What fine-tuning needs of the frozen backbone, one row per target ``[T]``.

        ``state`` is u~ and ``own_state`` is h^d of the target's domain (Eq. 10), both from before the target;
        ``has_own`` is False where the user had no item of that domain yet.

        Args:
            interaction: windows with the target of each position for a causal backbone, or one row per target
                with the history before it for a masked one (``EDTDataset.for_finetuning``).
        """
        if TARGET_SEQ not in interaction:
            return self._states_of_rows(interaction)
        targets, item_seq = interaction[TARGET_SEQ], interaction[self.ITEM_SEQ]
        counted = targets > 0
        target = targets[counted]
        state = self.backbone.states(item_seq, interaction[self.ITEM_SEQ_LEN])[counted]  # [T, H]
        own, has_own = torch.zeros_like(state), torch.zeros_like(target, dtype=torch.bool)
        row = torch.nonzero(counted)[:, 0]
        for d in (0, 1):
            length = interaction[DOMAIN_SEQ_LEN[d]]
            states = self.backbone.states(interaction[DOMAIN_SEQ[d]], length)
            # Position in the domain's sequence of its latest item before each target.
            seen = (self.item_domain[item_seq] == d + 1).cumsum(1)
            position = (length.unsqueeze(1) - 1 - (seen[:, -1:] - seen))[counted]
            mine = (self.item_domain[target] == d + 1) & (position >= 0)
            own[mine], has_own[mine] = states[row[mine], position[mine]], True
        user = interaction[self.USER_ID][row]
        return Interaction({self.USER_ID: user, self.ITEM_ID: target, STATE: state, OWN_STATE: own, HAS_OWN: has_own})

    def _states_of_rows(self, interaction: Any) -> Interaction:
        target = interaction[self.ITEM_ID]
        state = self.backbone(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        own, has_own = torch.zeros_like(state), torch.zeros_like(target, dtype=torch.bool)
        for d in (0, 1):
            length = interaction[DOMAIN_SEQ_LEN[d]]
            mine = (self.item_domain[target] == d + 1) & (length > 0)
            own[mine], has_own[mine] = self.backbone(interaction[DOMAIN_SEQ[d]][mine], length[mine]), True
        user = interaction[self.USER_ID]
        return Interaction({self.USER_ID: user, self.ITEM_ID: target, STATE: state, OWN_STATE: own, HAS_OWN: has_own})

    # ---- inference -----------------------------------------------------------------------------------------------

    def user_vectors(self, interaction: Any) -> Tensor:
        """``u~ + u^A`` and ``u~ + u^B`` after the whole sequence (Eq. 11), ``[2, B, H]``.

        A user without history in a domain has ``u^d = 0`` there: the global vector alone.
        """
        item_seq, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        if self.phase == "pretrain":
            return self.backbone(item_seq, length).expand(2, -1, -1)
        # All three sequences of a user in one pass.
        width = item_seq.shape[1]
        parts = [item_seq, *(F.pad(interaction[key], (0, width - interaction[key].shape[1])) for key in DOMAIN_SEQ)]
        lengths = [length, *(interaction[key] for key in DOMAIN_SEQ_LEN)]
        state, *own = self.backbone(torch.cat(parts), torch.cat(lengths)).chunk(3)
        vectors = []
        for adapter, one, own_length in zip(self.user_adapters, own, lengths[1:], strict=True):
            vectors.append(state + adapter(one) * (own_length > 0).unsqueeze(-1))
        return torch.stack(vectors)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Scores ``[B, N]`` of all real items, each by its own domain's Eq. 11; padding and virtual items get -inf."""
        vectors, table = self.user_vectors(interaction), self.item_embedding.weight
        scores = table.new_full((vectors.shape[1], self.n_items), -torch.inf)
        for vector, items in zip(vectors, self.scored, strict=True):
            scores[:, items] = vector @ table[items].T
        return scores

    def vector_scores(self, interaction: Any) -> VectorScores:
        """The same as products of user and item vectors, for ranking without a matrix of all scores."""
        return VectorScores(self.user_vectors(interaction), self.item_embedding.weight)

    def predict(self, interaction: Any) -> Tensor:
        """Score ``[B]`` of each row's own item."""
        item = interaction[self.ITEM_ID]
        vectors = self.user_vectors(interaction)
        own = vectors[self.item_domain[item] - 1, torch.arange(len(item), device=item.device)]
        return (own * self.item_embedding(item)).sum(-1)
