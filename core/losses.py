"""Defines the training losses."""

import torch
import torch.nn.functional as F


def multi_task_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, pos_weights: torch.Tensor
) -> torch.Tensor:
    """Return the weighted binary cross-entropy of several tasks in nats.

    The sum of losses is divided by the number of examples, not by the sum of their weights. The loss of a batch is
    therefore the mean of the losses of its equal parts, for any weights.

    Args:
      logits: logits, float [batch, tasks].
      labels: labels 0 or 1, float [batch, tasks].
      weights: weights of the examples per task, float [batch, tasks].
      pos_weights: factors for the loss of positives, float [tasks].

    Returns:
      The mean of the losses over examples and tasks, a float32 scalar.
    """
    losses = F.binary_cross_entropy_with_logits(
        logits.float(), labels, weight=weights, pos_weight=pos_weights, reduction="none"
    )
    return losses.mean()
