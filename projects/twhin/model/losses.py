"""Losses of edges' scores against the scores of their negatives, computed from the whole matrix of scores.

fused_loss.py computes the same losses without that matrix.
"""

from typing import Literal

import torch
import torch.nn.functional as F

Loss = Literal["logistic", "softmax", "margin"]


def edge_losses(
    loss: Loss, margin: float, positives: torch.Tensor, negatives: torch.Tensor, masked: torch.Tensor
) -> torch.Tensor:
    """Compute the loss of each edge with score s+ against its n negatives with scores s-.

    - logistic: softplus(-s+) + 1/n sum softplus(s-), the cross-entropy of labels 1 and 0 in which all negatives
      together have the weight of the edge. Without negatives, only the first term remains.
    - softmax: -log(exp s+ / (exp s+ + sum exp s-)).
    - margin: 1/n sum max(0, margin - s+ + s-).

    The losses are those of PyTorch-BigGraph (arXiv 1903.12287, section 3; torchbiggraph/losses.py), except that its
    margin loss has no factor 1/n.

    Args:
      loss: name of the loss.
      margin: margin of the margin loss.
      positives: scores of the edges: [edges], floating point.
      negatives: scores of candidates: [edges, candidates], floating point.
      masked: True for candidates that are not negatives of the edge: [edges, candidates], bool.

    Returns:
      Losses: [edges], float32 or wider.
    """
    positives, negatives = (
        scores.float() if scores.dtype.itemsize < 4 else scores for scores in (positives, negatives)
    )
    if loss == "softmax":
        negatives = negatives.masked_fill(masked, -torch.inf)
        return torch.cat([positives[:, None], negatives], dim=1).logsumexp(1) - positives
    counts = (~masked).sum(1).clamp_min(1)
    if loss == "logistic":
        return F.softplus(-positives) + F.softplus(negatives).masked_fill(masked, 0).sum(1) / counts
    return F.relu(margin - positives[:, None] + negatives).masked_fill(masked, 0).sum(1) / counts
