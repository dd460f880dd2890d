"""Computes the cross-entropy and the relative cross-entropy of binary predictions."""

import torch

# Predictions are clipped to [EPSILON, 1 - EPSILON], so that the loss of a wrong prediction of 0 or 1 stays finite.
EPSILON = 1e-12


def cross_entropy(predictions: torch.Tensor, labels: torch.Tensor | float) -> torch.Tensor:
    """Return the cross-entropy of each prediction in nats.

    Args:
      predictions: probabilities, float64 of any shape.
      labels: labels from 0 to 1, broadcastable to the shape of the predictions.
    """
    predictions = predictions.clamp(EPSILON, 1 - EPSILON)
    return -(labels * predictions.log() + (1 - labels) * torch.log1p(-predictions))


def relative_cross_entropy(cross_entropy_sum: float, weight: float, positive: float) -> float | None:
    """Return 100 * (1 - CE / CE of the base rate as a constant prediction), or None if a class has no examples.

    Args:
      cross_entropy_sum: weighted sum of the model's cross-entropies, in nats.
      weight: total weight of all examples.
      positive: total weight of the positives.
    """
    if not 0 < positive < weight:
        return None
    rate = torch.tensor(positive / weight, dtype=torch.float64)
    return 100.0 * (1.0 - cross_entropy_sum / (weight * float(cross_entropy(rate, float(rate)))))
