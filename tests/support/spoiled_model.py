"""A model that spoils its batches, weights or gradients at chosen steps."""

import math
from collections.abc import Callable
from typing import Any

import torch

from tests.support.toy import ToyBatch, ToyModel

NAN = math.nan


class SpoiledModel(ToyModel):
    """Spoils a batch or the model during some of its forward passes in training, which are counted from 1."""

    def __init__(self, when: Callable[[int], bool], spoil: Callable[["SpoiledModel", ToyBatch], None], **options: Any):
        super().__init__(**options)
        self.calls = 0
        self._when = when
        self._spoil = spoil

    def forward(self, batch: ToyBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        self.calls += self.training
        if self.training and self._when(self.calls):
            self._spoil(self, batch)
        return super().forward(batch)


def spoil_batch(_: ToyModel, batch: ToyBatch) -> None:
    batch.features[5, 2] = NAN
