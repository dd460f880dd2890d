"""Losses of edges' scores against those of their negatives, as formulas on the whole matrix of scores.

fused_loss.py has the same losses without that matrix.
"""

from typing import Literal

import torch
import torch.nn.functional as F

Loss = Literal["logistic", "softmax", "margin"]


def edge_losses(
    loss: Loss, margin: float, positives: torch.Tensor, negatives: torch.Tensor, masked: torch.Tensor
) -> torch.Tensor:
    """The loss of each edge, whose score is s+, against its n negatives, whose scores are s-.

    logistic: softplus(-s+) + 1/n sum softplus(s-), the cross-entropy of labels 1 and 0 with as much weight on the
    negatives as on the edge. Without negatives the first term alone.
    softmax: -log(exp s+ / (exp s+ + sum exp s-)).
    margin: 1/n sum max(0, margin - s+ + s-).
    All as in PyTorch-BigGraph (arXiv 1903.12287, section 3; torchbiggraph/losses.py), but that it has no 1/n in margin.

    Args:
      margin: of margin.
      positives: float [n].
      negatives: float [n, m].
      masked: bool [n, m], which of those are none.

    Returns:
      [n], float32 at least.
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
