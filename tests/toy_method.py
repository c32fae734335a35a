"""A method of the smallest kind: learnt items, no text, no profiles, no inserted rows, and two phases."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from recbole_edt.models.base import CommonSettings, TwoDomainModel, read_settings
from recbole_edt.models.parts.backbones import build_backbone, item_encoder
from recbole_edt.models.registry import Method, Phase


@dataclass(frozen=True)
class ToySettings(CommonSettings):
    warm_epochs: int = 1
    warm_learning_rate: float = 0.01
    warm_stopping_step: int = 5


class Toy(TwoDomainModel):
    method = Method(
        "The toy",
        (ToySettings,),
        text=False,
        recbole={"learner": "sgd"},
        phases=(Phase("warm", "warm_", ("backbone",)), Phase("train", trains=("scale", "backbone"))),
    )

    def __init__(self, config, dataset):
        settings = read_settings(ToySettings, config)
        super().__init__(config, dataset, settings)
        encoder = item_encoder(settings.backbone)(self.n_items, settings.hidden_size, "id")
        self.backbone = build_backbone(settings.backbone, config, dataset, encoder)
        self.scale = nn.Linear(settings.hidden_size, settings.hidden_size)

    def calculate_loss(self, interaction):
        predicted, place, target, domain, negative = self._predictions(interaction)
        states = self.backbone.training_states(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN], predicted)
        return tuple(loss for loss, _ in self._domain_losses(self.scale(states[place]), target, domain, negative))

    def user_vectors(self, interaction):
        state = self.backbone(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        return self.scale(state).expand(2, -1, -1)

    def item_vectors(self, items):
        return self.backbone.item_embedding(items)

    @property
    def item_table(self):
        return self.backbone.item_embedding.weight
