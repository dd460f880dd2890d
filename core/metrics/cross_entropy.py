"""Computes the cross-entropy and the relative cross-entropy of binary predictions.

Predictions are logits: rounded to float32, all probabilities above a logit of 17 are 1, and in float64 above 37.
"""

import math

import torch

# An infinite logit counts as this one, so that the loss of a wrong prediction stays finite.
_LARGEST_LOGIT = torch.finfo(torch.float32).max


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor | float) -> torch.Tensor:
    """Return the cross-entropy of each prediction in nats.

    Args:
      logits: logits of the predicted probabilities, float64 of any shape.
      labels: labels from 0 to 1, broadcastable to the shape of the logits.
    """
    logits = logits.clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT)
    # The difference is exactly 0 for a label that the prediction favors, so that the small rest is not rounded away.
    return (logits.relu() - labels * logits) + torch.log1p(torch.exp(-logits.abs()))


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Return the entropy of each binary distribution in nats, which is its cross-entropy with itself.

    Args:
      probabilities: probabilities of one of both values, float64 of any shape.
    """
    complements = 1 - probabilities
    return -(torch.xlogy(probabilities, probabilities) + torch.xlogy(complements, complements))


def relative_cross_entropy(cross_entropy_sum: float, weight: float, positive: float) -> float | None:
    """Return 100 * (1 - CE / CE of the base rate as a constant prediction), or None if a class has no examples.

    Args:
      cross_entropy_sum: weighted sum of the model's cross-entropies, in nats.
      weight: total weight of all examples.
      positive: total weight of the positives.
    """
    if not 0 < positive < weight:
        return None
    negative = weight - positive
    constant = -(positive * math.log(positive / weight) + negative * math.log(negative / weight))
    return 100.0 * (1.0 - cross_entropy_sum / constant)
