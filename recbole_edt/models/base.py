"""What the methods share: items and negatives of two domains, losses on the target's domain, scores as products.

A method says what a user's vector in each domain is and what an item's vector is; their product is the score.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from sklearn.decomposition import PCA
from torch import Tensor, nn

from recbole_edt.errors import ConfigError, choice_faults, kind_of, same_kind
from recbole_edt.models.parts import losses
from recbole_edt.models.parts.backbones import PRE_NORM, backbone_faults
from recbole_edt.models.parts.batch_fields import LAST_WINDOW, TARGET_SEQ, VectorScores
from recbole_edt.models.parts.item_encoder import Adapter
from recbole_edt.models.parts.negatives import DomainSampler
from recbole_edt.models.registry import Method, Phase
from recbole_edt.text.clusters import normalise

LOSS_TYPES = ("BPR", "BCE", "CE", "SSM")
S = TypeVar("S")


def read_settings(cls: type[S], config: Any) -> S:
    """Take the keys of a settings class from a RecBole configuration, with defaults for those it lacks.

    Raises: ConfigError listing every value that is of another type or out of range.
    """
    known = {f.name: f.default for f in fields(cls)}  # type: ignore[arg-type]
    given = {key: config[key] for key in known if config[key] is not None}
    wrong = {key: value for key, value in given.items() if not same_kind(value, known[key])}
    faults = [f"{key}: {value!r} is not {kind_of(known[key])}" for key, value in wrong.items()]
    settings: Any = cls(**given)
    if faults := faults or settings.faults():
        raise ConfigError("; ".join(faults))
    return settings


@dataclass(frozen=True)
class CommonSettings:
    """Keys of every method; each has its own paper's defaults."""

    backbone: str = "SASRec"
    """``SASRec`` (both papers), ``GRU4Rec``, ``BERT4Rec``, or another of ``backbones.BACKBONES``."""
    norm_first: bool = False
    """Transformer layers of the backbone normalise their input instead of their output (RecBole's, not pre-norm)."""
    hidden_size: int = 128
    """Width of states and item vectors; above 0."""
    loss_type: str = "BPR"
    """``BPR``; ``BCE``; ``CE`` (softmax over the target's domain); ``SSM`` (sampled softmax)."""
    n_negatives: int = 1
    """Negatives per position for BPR and BCE; negatives shared by the batch, per domain, for SSM."""
    align_temperature: float = 0.2
    """Temperature of the alignment of users with their profiles, above 0."""

    def faults(self) -> list[str]:
        """What is wrong with these values, one sentence each."""
        found = backbone_faults(self.backbone) + choice_faults(self, {"loss_type": LOSS_TYPES})
        found += not_above_zero(self, ("hidden_size", "n_negatives", "align_temperature"))
        if self.norm_first and self.backbone not in PRE_NORM:
            found.append(f"norm_first: {self.backbone} has no transformer layers; {' and '.join(PRE_NORM)} have")
        return found


def not_above_zero(settings: Any, keys: tuple[str, ...]) -> list[str]:
    """A sentence for each of these keys whose value is not above 0."""
    return [f"{key}: {getattr(settings, key)!r} is not above 0" for key in keys if not getattr(settings, key) > 0]


class Predictions(NamedTuple):
    """What one training step predicts, in the order of the positions."""

    predicted: Tensor
    """``[B, L]`` bool, True at ``T`` positions."""
    place: tuple[Tensor, Tensor]
    """Row and column of each, ``[T]``"""
    target: Tensor
    """``[T]``"""
    domain: Tensor
    """``[T]``, 0 for A and 1 for B."""
    negative: Tensor
    """``[T, n]`` negatives of each target's domain, or ``[2, n]`` shared by the batch."""


class TwoDomainModel(SequentialRecommender):
    """First base of a method.

    A method says in ``method`` what it is, sets ``backbone``, the one that reads the mixed sequence, and defines
    ``calculate_loss``, ``user_vectors``, ``item_vectors`` and ``item_table``. ``phase`` names the phase it is in.

    Args:
        config: a RecBole configuration.
        dataset: the training part of an ``EDTDataset``.
        settings: the method's own.
    """

    input_type = InputType.PAIRWISE
    method: Method
    settings: Any
    backbone: Any

    def __init__(self, config: Any, dataset: Any, settings: CommonSettings) -> None:
        super().__init__(config, dataset)
        self.settings = settings
        phases = self.method.phases
        self.trained_phases = [one for one in phases if config[one.key("epochs")] != 0] or [phases[0]]
        self._phase = self.trained_phases[0]
        self.register_buffer("item_domain", dataset.item_domain, persistent=False)  # [N] 0 padding, 1 A, 2 B
        # Virtual items may be negatives in training (method), but are never scored.
        domain, virtual = dataset.item_domain.to(self.device), dataset.virtual.to(self.device)
        self.pools = [torch.nonzero(domain == d).squeeze(1) for d in (1, 2)]
        self.scored = [torch.nonzero((domain == d) & ~virtual).squeeze(1) for d in (1, 2)]
        user, item = (column.to(self.device) for column in dataset.training_pairs)
        self.sampler = DomainSampler(self.pools, user, item, dataset.user_num)
        self.profile_adapter: Adapter | None = None

    def _read_profiles(self, dataset: Any) -> None:
        """Frozen profile vectors and the adapter that brings them to the width of a state."""
        profiles, has_profile = dataset.user_profiles()
        self.register_buffer("profiles", profiles, persistent=False)  # [U, D]
        self.register_buffer("has_profile", has_profile, persistent=False)  # [U]
        width = profiles.shape[1]
        self.profile_adapter = Adapter(width, max(1, width // 2), self.settings.hidden_size)

    # ---- phases --------------------------------------------------------------------------------------------------

    @property
    def phase(self) -> str:
        """Name of the phase it is in."""
        return self._phase.name

    def start(self, phase: Phase) -> None:
        """Begin a phase: where it trains some modules, all others have no gradient and no dropout."""
        self._phase = phase
        if phase.trains:
            self.requires_grad_(False)
            self.zero_grad()  # those of the phase before would count in clip_grad_norm
            for name in phase.trains:
                getattr(self, name).requires_grad_(True)

    def to_last_phase(self) -> None:
        """Into the state in which training ends; for weights that are loaded."""
        self.start(self.trained_phases[-1])

    def train(self, mode: bool = True) -> TwoDomainModel:
        super().train(mode)
        if self._phase.trains:
            for name, module in self.named_children():
                module.train(mode and name in self._phase.trains)
        return self

    def used_parameters(self) -> Iterator[nn.Parameter]:
        """All but those of modules that only a phase without epochs would train."""
        idle = tuple(f"{name}." for one in self.method.phases if one not in self.trained_phases for name in one.trains)
        return (one for name, one in self.named_parameters() if not name.startswith(idle))

    # ---- what a method defines -----------------------------------------------------------------------------------

    def user_vectors(self, interaction: Any) -> Tensor:
        """``[2, B, K]`` vectors after the whole sequence, for items of A and of B."""
        raise NotImplementedError

    def item_vectors(self, items: Tensor) -> Tensor:
        """``[...]`` ids to ``[..., K]``."""
        raise NotImplementedError

    @property
    def item_table(self) -> Tensor:
        """``[N, K]`` vectors of all items."""
        raise NotImplementedError

    # ---- training ------------------------------------------------------------------------------------------------

    def _predictions(self, interaction: Any) -> Predictions:
        """What the backbone predicts of a batch, and negatives."""
        targets = interaction[TARGET_SEQ]
        predicted = self.backbone.predicted(targets, interaction[self.ITEM_SEQ_LEN])  # [B, L]
        place = torch.nonzero(predicted, as_tuple=True)
        target = targets[place]  # [T]
        domain = self.item_domain[target] - 1
        user = interaction[self.USER_ID][place[0]]
        return Predictions(predicted, place, target, domain, self._negatives(user, domain))

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
        """Mean loss and number of positions per domain, from user vectors ``[T, K]``."""
        parts = []
        for d in (0, 1):
            mine = torch.nonzero(domain == d).squeeze(1)
            parts.append((self._loss(d, vector[mine], target[mine], mine, negative), len(mine)))
        return parts

    def _loss(self, d: int, vector: Tensor, target: Tensor, mine: Tensor, negative: Tensor) -> Tensor:
        kind = self.settings.loss_type
        if kind == "CE":
            pool = self.pools[d]
            return losses.softmax_cross_entropy(vector, self.item_table[pool], torch.searchsorted(pool, target))
        positive_score = (vector * self.item_vectors(target)).sum(-1)  # [T]
        if kind == "SSM":
            negative_score = vector @ self.item_vectors(negative[d]).T  # [T, n]
            return losses.sampled_softmax(positive_score, negative_score, target.unsqueeze(1) == negative[d])
        negative_score = torch.einsum("tk,tnk->tn", vector, self.item_vectors(negative[mine]))
        return (losses.bpr if kind == "BPR" else losses.bce)(positive_score, negative_score)

    def _alignment(self, interaction: Any, states: Tensor, denominator: str) -> Tensor:
        """Eq. 13 over the users of the batch who have a profile and whose last training items are in it."""
        assert self.profile_adapter is not None
        user = interaction[self.USER_ID]
        chosen = torch.nonzero(interaction[LAST_WINDOW].bool() & self.has_profile[user]).squeeze(1)
        if len(chosen) < 2:
            return states.sum() * 0.0
        item_seq, length = interaction[self.ITEM_SEQ][chosen], interaction[self.ITEM_SEQ_LEN][chosen]
        state = self.backbone.user_states(item_seq, length, states[chosen])
        profile = self.profile_adapter(self.profiles[user[chosen]])
        return losses.alignment_loss(state, profile, self.settings.align_temperature, denominator)

    def own_positions(self, item_seq: Tensor, own_length: Tensor, d: int) -> Tensor:
        """Where each position of a mixed sequence stands in its domain's own, both ending with the same item.

        Args:
            item_seq: ``[B, L]`` mixed.
            own_length: ``[B]`` lengths of the sequences of domain ``d``, which may begin earlier than the mixed ones.
            d: 0 for A, 1 for B.

        Returns: ``[B, L]`` the place of the latest item of the domain up to and including each position; -1 before
            the first.
        """
        seen = (self.item_domain[item_seq] == d + 1).cumsum(1)
        return own_length.unsqueeze(1) - 1 - (seen[:, -1:] - seen)

    # ---- inference -----------------------------------------------------------------------------------------------

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Scores ``[B, N]`` of all real items, each by its own domain's vector; padding and virtual items get -inf."""
        vectors, table = self.user_vectors(interaction), self.item_table
        scores = table.new_full((vectors.shape[1], self.n_items), -torch.inf)
        for vector, items in zip(vectors, self.scored, strict=True):
            scores[:, items] = vector @ table[items].T
        return scores

    def vector_scores(self, interaction: Any) -> VectorScores:
        """The same as products of user and item vectors, for ranking without a matrix of all scores."""
        return VectorScores(self.user_vectors(interaction), self.item_table)

    def predict(self, interaction: Any) -> Tensor:
        """Score ``[B]`` of each row's own item."""
        item = interaction[self.ITEM_ID]
        vectors = self.user_vectors(interaction)
        own = vectors[self.item_domain[item] - 1, torch.arange(len(item), device=item.device)]
        return (own * self.item_vectors(item)).sum(-1)


def principal_components(vectors: Tensor, size: int) -> Tensor:
    """The directions of ``[n, D]`` vectors in ``size`` numbers, ``[n, size]``: those in which they differ most.

    Zero for a vector of zeros, and in what is left where there are fewer components than ``size``.
    """
    unit = normalise(vectors.cpu().numpy())
    known = unit.any(axis=1)
    found = np.zeros((len(unit), size), np.float32)
    n = min(size, unit.shape[1], int(known.sum()) - 1)
    if n > 0:
        found[known, :n] = PCA(n, random_state=0).fit_transform(unit[known])
    return torch.from_numpy(found)
