"""The Heavy Ranker with its loss, as it is trained."""

from collections.abc import Sequence

import torch
from torch import nn

from core.losses import multi_task_cross_entropy
from projects.home.recap.data.batch import RecapBatch
from projects.home.recap.model.config import StratifierConfig, TaskModel
from projects.home.recap.model.heavy_ranker import HeavyRanker


class ModelAndLoss(nn.Module):
    """Scores a batch and computes the loss against its labels, matching tasks by name."""

    def __init__(
        self, ranker: HeavyRanker, towers: Sequence[TaskModel], stratifiers: Sequence[StratifierConfig] = ()
    ) -> None:
        """Wrap a ranker.

        Args:
          ranker: the model.
          towers: configurations of the towers, with the settings of their losses, in the order of the ranker's tasks.
          stratifiers: strata to compute in evaluation.
        """
        super().__init__()
        self.ranker = ranker
        self._strata = [(stratifier.index, stratifier.value) for stratifier in stratifiers]
        for name, values in (
            ("_pos_weights", [tower.pos_weight for tower in towers]),
            ("_loss_weights", [tower.loss_weight for tower in towers]),
            ("_smoothing", [tower.label_smoothing for tower in towers]),
        ):
            self.register_buffer(name, torch.tensor(values), persistent=False)
        self._pos_weights: torch.Tensor
        self._loss_weights: torch.Tensor
        self._smoothing: torch.Tensor

    def forward(self, batch: RecapBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss and the outputs.

        Returns:
          The loss (scalar) and a mapping with the ranker's outputs, "labels", "weights" and, if the batch has them,
          "reference_probabilities", each [batch, tasks] in the order of the ranker's tasks; and "groups" if the batch
          has them. In evaluation, if there are stratifiers, also "strata", bool [batch, strata]: True if the example is
          in the stratum.

        Raises:
          ValueError: the batch has no labels for a task.
        """
        batch = batch.in_order_of(self.ranker.tasks)
        outputs: dict[str, torch.Tensor] = self.ranker(
            batch.continuous,
            batch.binary,
            batch.user_embedding,
            batch.user_eng_embedding,
            batch.author_embedding,
            batch.discrete,
            batch.ids,
            batch.embeddings,
        )
        outputs |= {"labels": batch.labels, "weights": batch.weights}
        if batch.reference_probabilities is not None:
            outputs["reference_probabilities"] = batch.reference_probabilities
        if batch.groups is not None:
            outputs["groups"] = batch.groups
        if self._strata and not self.training:
            assert batch.discrete is not None, "check_strata() requires discrete features"
            discrete = batch.discrete.long()  # uint8 would compare the value modulo 256
            outputs["strata"] = torch.stack([discrete[:, index] == value for index, value in self._strata], dim=1)
        targets = batch.labels * (1 - self._smoothing) + self._smoothing / 2
        weights = batch.weights * self._loss_weights
        return multi_task_cross_entropy(outputs["logits"], targets, weights, self._pos_weights), outputs
