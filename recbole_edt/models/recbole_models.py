"""RecBole's own SASRec, GRU4Rec and BERT4Rec, trained on whole sequences instead of one row per prefix.

The models, their parameters and their scores are RecBole's; only the rows of a batch differ. For SASRec and
GRU4Rec the loss equals that of RecBole's prefix rows, for sequences within the maximum length.
"""

from __future__ import annotations

from typing import Any

import torch
from recbole.utils import get_model
from torch import Tensor

from recbole_edt.models.parts import losses
from recbole_edt.models.parts.batch_fields import TARGET_SEQ, VectorScores
from recbole_edt.models.parts.masking import other_items, random_mask
from recbole_edt.models.parts.states import AllPositions, ConfigView, Masking, PreNorm, full_precision, mixed_precision
from recbole_edt.models.registry import METHODS, model_class

# Model to the rows it trains on; every other model keeps RecBole's own way.
SEQUENCE_ROWS = {"SASRec": "sequence", "GRU4Rec": "sequence", "BERT4Rec": "masked"}


class NextItemTraining(AllPositions):
    """First base: a loss at every position of the sequence at once, RecBole's or one of LLM-EDT's."""

    def __init__(self: Any, config: Any, dataset: Any) -> None:
        loss_type = config["loss_type"]
        # RecBole's constructors refuse any loss but their own two.
        known = config if loss_type in ("BPR", "CE") else ConfigView(config, {"loss_type": "CE"})
        super().__init__(known, dataset)  # type: ignore[call-arg]
        self.loss_type = loss_type
        self.n_negatives = config["n_negatives"] or 1
        self.register_buffer("item_domain", dataset.item_domain, persistent=False)  # [N] 0 padding, 1 A, 2 B

    def calculate_loss(self: Any, interaction: Any) -> Tensor:
        """The mean over positions of CE over all items, BPR or BCE against one item other than the target, or SSM.

        CE and BPR are RecBole's; SSM is LLM-EDT's: softmax among ``n_negatives`` of the target's domain.
        """
        targets = interaction[TARGET_SEQ]
        counted = targets > 0
        states = self.states(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])[counted]  # [T, H]
        target = targets[counted]
        if self.loss_type == "CE":
            return losses.softmax_cross_entropy(states, self.item_embedding.weight, target)
        if self.loss_type == "SSM":
            return self.sampled_softmax_loss(states, target)
        negative = other_items(target, self.n_items)
        positive_score, negative_score = ((states * self.item_embedding(item)).sum(-1) for item in (target, negative))
        if self.loss_type == "BCE":
            return losses.bce(positive_score, negative_score.unsqueeze(1))
        return self.loss_fct(positive_score, negative_score)  # RecBole's BPR

    def sampled_softmax_loss(self: Any, states: Tensor, target: Tensor) -> Tensor:
        """Softmax of the target among itself and negatives of its domain, which the batch shares."""
        total = states.new_zeros(())
        for domain in (1, 2):
            pool = torch.nonzero(self.item_domain == domain).squeeze(1)
            mine = torch.nonzero(self.item_domain[target] == domain).squeeze(1)
            negative = pool[torch.randint(len(pool), (self.n_negatives,), device=pool.device)]
            own, vector = target[mine], states[mine]
            positive_score = (vector * self.item_embedding(own)).sum(-1)
            negative_score = vector @ self.item_embedding(negative).T
            hit = own.unsqueeze(1) == negative
            total = total + losses.sampled_softmax(positive_score, negative_score, hit) * len(mine)
        return total / max(len(target), 1)

    def vector_scores(self: Any, interaction: Any) -> VectorScores:
        """The scores of ``full_sort_predict`` as products."""
        user = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        return VectorScores(user, self.item_embedding.weight)


class MaskedItemTraining(Masking):
    """First base of BERT4Rec: a fresh mask over whole sequences each step, and no Python loop over the batch."""

    def calculate_loss(self: Any, interaction: Any) -> Tensor:
        """CE at the masked positions; a share ``ft_ratio`` of the rows has its last item masked instead."""
        item_seq, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        masked = random_mask(length, item_seq.shape[1], self.mask_ratio, self.ft_ratio)  # [B, L]
        with mixed_precision(self, item_seq.device):
            states = full_precision(self.forward(item_seq.masked_fill(masked, self.mask_token))[masked])  # [T, H]
        table = self.item_embedding.weight[: self.n_items]
        return losses.softmax_cross_entropy(states, table, item_seq[masked], self.output_bias)

    def reconstruct_test_data(self: Any, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        """The sequence without its first item, and the mask token after its last, as RecBole has it."""
        longer = torch.cat([item_seq, torch.zeros_like(item_seq[:, :1])], dim=1)
        return longer.scatter(1, item_seq_len.unsqueeze(1), self.mask_token)[:, 1:]


def sequence_trained(name: str) -> type:
    """RecBole's model ``name`` with whole-sequence training, under its own name."""
    cls = get_model(name)
    base: type = NextItemTraining if SEQUENCE_ROWS[name] == "sequence" else MaskedItemTraining
    return type(name, (base, PreNorm, cls), {})


def trained_on(rows: str, name: str) -> type:
    """The class of a model that trains on such rows (``EDTDataset.parts``): a method's, RecBole's, or one of these."""
    if name in METHODS:
        return model_class(name)
    return sequence_trained(name) if rows == SEQUENCE_ROWS.get(name) else get_model(name)
