"""LLM-EDT as a RecBole sequential model: item encoder, shared backbone, one small adapter per domain.

Paper section 3.3 and 3.4.3. In the phase ``pretrain`` everything but the user adapters is trained on the mixed
sequence (Eq. 8, 9, 13, 14); in the phase ``finetune`` only the user adapters are (Eq. 10-12, 15).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_edt.errors import choice_faults
from recbole_edt.models.base import CommonSettings, TwoDomainModel, not_above_zero, principal_components, read_settings
from recbole_edt.models.parts import losses
from recbole_edt.models.parts.backbones import build_backbone, item_encoder
from recbole_edt.models.parts.batch_fields import DOMAIN_SEQ, DOMAIN_SEQ_LEN, HAS_OWN, OWN_STATE, STATE, TARGET_SEQ
from recbole_edt.models.parts.item_encoder import Adapter, ItemEncoder
from recbole_edt.models.registry import Method, Phase


@dataclass(frozen=True)
class PhaseConfig:
    """Fine-tuning's own settings; pre-training uses RecBole's ``learning_rate``, ``epochs``, ``stopping_step``."""

    finetune_learning_rate: float = 1e-5
    """Adam's learning rate for the user adapters, above 0. Paper: 1e-5; released scripts: 1e-4."""
    finetune_epochs: int = 100
    """Most epochs of fine-tuning; 0 leaves the phase out (table 3, w/o DFT)."""
    finetune_stopping_step: int = 20
    """Validations without a new best before fine-tuning stops."""

    @classmethod
    def read(cls, config: Any) -> PhaseConfig:
        """Take the keys from a RecBole configuration, with defaults for those it lacks.

        Raises: ConfigError listing every value that is out of range.
        """
        return read_settings(cls, config)

    def faults(self) -> list[str]:
        """What is wrong with these values, one sentence each."""
        found = []
        if not self.finetune_learning_rate > 0:
            found.append(f"finetune_learning_rate: {self.finetune_learning_rate!r} is not above 0")
        for key in ("finetune_epochs", "finetune_stopping_step"):
            value = getattr(self, key)
            if not isinstance(value, int) or value < 0:
                found.append(f"{key}: {value!r} is not a whole number of at least 0")
        return found
CHOICES = {
    "item_representation": ("llm", "id", "llm+id"),
    "item_ids": ("random", "pca"),
    "align_denominator": losses.DENOMINATORS,
}


@dataclass(frozen=True)
class ModelSettings(CommonSettings):
    """What LLM-EDT reads from the configuration; every default is the paper's unless said otherwise.

    The paper's loss is BPR, the released code's BCE. The paper gives no temperature.
    """

    item_representation: str = "llm"
    """``llm`` (adapted text), ``id`` (learnt embedding) or ``llm+id`` (their sum)."""
    item_ids: str = "random"
    """What learnt embeddings start from: ``random``, or ``pca`` of all text vectors (not in the paper)."""
    alpha: float = 0.7
    """Weight of the alignment loss, 0 turns profiles off. The paper uses 0.1 to 1.0, 0.7 on Cloth-Sport."""
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
        return read_settings(cls, config)

    def faults(self) -> list[str]:
        """What is wrong with these values, one sentence each."""
        found = super().faults() + choice_faults(self, CHOICES) + not_above_zero(self, ("adapter_size",))
        if self.item_ids == "pca" and self.item_representation == "llm":
            found.append("item_ids: pca has no meaning where item_representation: llm has no learnt embeddings")
        if self.alpha < 0:
            found.append(f"alpha: {self.alpha!r} is below 0")
        return found


class LLMEDT(TwoDomainModel):
    """LLM-EDT (SIGIR 2026) on the vectors and profiles that the earlier stages wrote.

    Args:
        config: a RecBole configuration; the keys are those of ``ModelSettings`` and of the backbone.
        dataset: the training part of an ``EDTDataset``.

    Raises: ConfigError for values out of range, DataError if vectors are missing.
    """

    method = Method(
        title="LLM-EDT",
        settings=(ModelSettings, PhaseConfig),
        profiles="sra",
        use_generated=True,
        phases=(
            Phase("pretrain"),
            Phase("finetune", "finetune_", ("user_adapters",), keeps_states=True, new_scores="adapter_residual"),
        ),
        variants={  # table 3, by the paper's names
            "w/o Aug.": {"augment.insertion": "none"},
            "w/o Filtering": {"augment.filter": False},
            "w/o Inserting": {"augment.insertion": "append"},
            "Random Inserting": {"augment.insertion": "random"},
            "w/o DFT": {"finetune_epochs": 0},
            "w/o Profiling": {"alpha": 0},
            "w/o S-R-A": {"profile.pipeline": "plain"},
        },
    )
    settings: ModelSettings

    def __init__(self, config: Any, dataset: Any) -> None:
        settings = read_settings(ModelSettings, config)
        super().__init__(config, dataset, settings)
        self.backbone = build_backbone(settings.backbone, config, dataset, self._items(dataset))
        size = settings.hidden_size
        released = {key: getattr(settings, f"adapter_{key}") for key in ("activation", "residual", "dropout")}
        # Fine-tuning starts at the pre-trained scores; the paper gives no initialisation.
        own = [Adapter(size, settings.adapter_size, size, **released, zero_start=True) for _ in range(2)]
        self.user_adapters = nn.ModuleList(own)
        if settings.alpha > 0:
            self._read_profiles(dataset)

    def _items(self, dataset: Any) -> ItemEncoder:
        """The item encoder of Eq. 7, or what stands in for it."""
        s = self.settings
        by_text = s.item_representation != "id" or s.item_ids == "pca"
        text = dataset.item_vectors() if by_text else None
        encoder = item_encoder(s.backbone)(self.n_items, s.hidden_size, s.item_representation, text)
        if s.item_ids == "pca":
            assert encoder.ids is not None and text is not None
            encoder.ids.weight.data[1:] = principal_components(text[1:], s.hidden_size)
        return encoder

    @property
    def item_embedding(self) -> ItemEncoder:
        """The item encoder, held by the backbone."""
        return self.backbone.item_embedding

    @property
    def finetuned(self) -> bool:
        """Whether its training has the second phase."""
        return len(self.trained_phases) > 1

    def item_vectors(self, items: Tensor) -> Tensor:
        return self.item_embedding(items)

    @property
    def item_table(self) -> Tensor:
        return self.item_embedding.weight

    # ---- training ------------------------------------------------------------------------------------------------

    def calculate_loss(self, interaction: Any) -> tuple[Tensor, ...] | Tensor:
        """Pre-training: Eq. 9, and alpha times Eq. 13 if profiles are on. Fine-tuning: Eq. 12 of A and of B."""
        if self.phase == "finetune":
            return self._finetuning_loss(interaction)
        item_seq, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        predicted, place, target, domain, negative = self._predictions(interaction)
        with self.item_embedding.shared(item_seq, target, negative):
            states = self.backbone.training_states(item_seq, length, predicted)
            parts = self._domain_losses(states[place], target, domain, negative)
            loss = sum(mean * n for mean, n in parts) / max(len(target), 1)
            if self.profile_adapter is None:
                return loss
            return loss, self.settings.alpha * self._alignment(interaction, states, self.settings.align_denominator)

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
            mine = (domain == d) & interaction[HAS_OWN]
            vector = vector + adapter(interaction[OWN_STATE]) * mine.unsqueeze(-1)
        return tuple(loss for loss, _ in self._domain_losses(vector, target, domain, negative))

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
            position = self.own_positions(item_seq, length, d)[counted]
            mine = (self.item_domain[target] == d + 1) & (position >= 0)
            own[mine], has_own[mine] = states[row[mine], position[mine]], True
        user = interaction[self.USER_ID][row]
        return Interaction({self.USER_ID: user, self.ITEM_ID: target, STATE: state, OWN_STATE: own, HAS_OWN: has_own})

    def _states_of_rows(self, interaction: Any) -> Interaction:
        user, target = interaction[self.USER_ID], interaction[self.ITEM_ID]
        known = self.last_states(interaction)
        own = torch.arange(len(target), device=target.device), self.item_domain[target] - 1
        found = Interaction({key: known[key][own] for key in (OWN_STATE, HAS_OWN)})
        found.update(Interaction({self.USER_ID: user, self.ITEM_ID: target, STATE: known[STATE]}))
        return found

    # ---- inference -----------------------------------------------------------------------------------------------

    def user_vectors(self, interaction: Any) -> Tensor:
        """``u~ + u^A`` and ``u~ + u^B`` after the whole sequence (Eq. 11), ``[2, B, H]``.

        A user without history in a domain has ``u^d = 0`` there: the global vector alone.
        """
        if self.phase == "pretrain":
            return self.backbone(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]).expand(2, -1, -1)
        if STATE not in interaction:
            interaction = self.last_states(interaction)
        own = zip(self.user_adapters, interaction[OWN_STATE].unbind(1), interaction[HAS_OWN].unbind(1), strict=True)
        return torch.stack([interaction[STATE] + adapter(one) * has.unsqueeze(-1) for adapter, one, has in own])

    @torch.no_grad()
    def last_states(self, interaction: Any) -> Interaction:
        """What ``user_vectors`` needs of the frozen backbone, one row per history ``[B]``.

        ``state`` ``[B, H]`` is u~, ``own_state`` ``[B, 2, H]`` is h^A and h^B (Eq. 10), ``has_own`` ``[B, 2]``.
        """
        # All three sequences of a user in one pass.
        item_seq = interaction[self.ITEM_SEQ]
        width = item_seq.shape[1]
        parts = [item_seq, *(F.pad(interaction[key], (0, width - interaction[key].shape[1])) for key in DOMAIN_SEQ)]
        own_lengths = [interaction[key] for key in DOMAIN_SEQ_LEN]
        states = self.backbone(torch.cat(parts), torch.cat([interaction[self.ITEM_SEQ_LEN], *own_lengths]))
        state, *own = states.chunk(3)
        has_own = torch.stack(own_lengths, 1) > 0
        return Interaction({STATE: state, OWN_STATE: torch.stack(own, 1), HAS_OWN: has_own})
