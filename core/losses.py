"""Losses."""

import torch
import torch.nn.functional as F


def multi_task_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, pos_weights: torch.Tensor
) -> torch.Tensor:
    """Weighted binary cross-entropy of several tasks, in nats.

    Divided by the number of examples, not by the sum of their weights: the mean of this over equal parts of a batch is
    this of the whole batch, whatever the weights.

    Args:
      logits: float [batch, tasks].
      labels: 0 or 1, float [batch, tasks].
      weights: of the examples, per task, float [batch, tasks].
      pos_weights: factors of the positives' loss, float [tasks].

    Returns:
      the mean over tasks of the losses per task, a float32 scalar.
    """
    losses = F.binary_cross_entropy_with_logits(
        logits.float(), labels, weight=weights, pos_weight=pos_weights, reduction="none"
    )
    return losses.mean()
