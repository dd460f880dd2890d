"""Cross-entropy of binary predictions, and relative cross-entropy."""

import torch

# Predictions are clipped into (EPSILON, 1 - EPSILON): a wrong prediction of exactly 0 or 1 stays finite.
EPSILON = 1e-12


def cross_entropy(predictions: torch.Tensor, labels: torch.Tensor | float) -> torch.Tensor:
    """Of each prediction, in nats: float64 of any shape. Labels from 0 to 1, of a shape that fits."""
    predictions = predictions.clamp(EPSILON, 1 - EPSILON)
    return -(labels * predictions.log() + (1 - labels) * torch.log1p(-predictions))


def relative_cross_entropy(cross_entropy_sum: float, weight: float, positive: float) -> float | None:
    """100 * (1 - CE / CE of the base rate as a constant prediction); None without positives or without negatives.

    Args:
      cross_entropy_sum: of the model, weighted, in nats.
      weight: of all examples.
      positive: weight of the positives.
    """
    if not 0 < positive < weight:
        return None
    rate = torch.tensor(positive / weight, dtype=torch.float64)
    return 100.0 * (1.0 - cross_entropy_sum / (weight * float(cross_entropy(rate, float(rate)))))
