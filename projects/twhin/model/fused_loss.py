"""losses.py's losses of dot products, block by block of edges, without the matrix of all scores.

A block's scores are turned into the loss and its gradients at once, in a buffer that stays in the processor's cache:
three matrix products and as few other passes over it as can be. Where G_ij is the gradient by the score of edge i's
negative j, those of queries are G C, those of the candidates G^T Q.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from projects.twhin.model.losses import Loss

_BLOCK_SCORES = 2**19
"""Scores at a time on a CPU."""


def fused_loss(
    loss: Loss,
    margin: float,
    queries: torch.Tensor,
    own: torch.Tensor,
    candidates: torch.Tensor,
    own_ids: torch.Tensor,
    candidate_ids: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """The weighted sum of losses.edge_losses(), scores being dot products.

    Under autocast the matrix products are in its dtype, all else is in that of the inputs.

    Args:
      queries: [n, dim].
      own: [n, dim], the edges' own entities, so that a positive score is a row of queries * own.
      candidates: [m, dim].
      own_ids: [n]; candidate_ids: [m]. Candidates with the edge's own id are left out.
      weights: [n].

    Returns:
      a scalar, of the dtype of queries.
    """
    device = queries.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else queries.dtype
    with torch.autocast(device, enabled=False):
        arguments = (queries, own, candidates, own_ids, candidate_ids, weights.to(queries.dtype))
        result: torch.Tensor = _FusedLoss.apply(*arguments, loss, margin, dtype)  # type: ignore[no-untyped-call]
    return result


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: torch.Tensor,
        own: torch.Tensor,
        candidates: torch.Tensor,
        own_ids: torch.Tensor,
        candidate_ids: torch.Tensor,
        weights: torch.Tensor,
        loss: Loss,
        margin: float,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        block = _edges_at_a_time(queries, candidates)
        masked = _Masked(own_ids, candidate_ids, block)
        # Where exponents are not looked at, exp can overflow: so rarely that it may cost a second pass. On a GPU one
        # would have to wait to know; and a type of 16 bits needs small numbers.
        careful = _is_asynchronous(queries) or dtype != queries.dtype
        arguments = (queries, own, candidates, masked, weights, loss, margin, dtype, block)
        total, *gradients = _loss_and_gradients(*arguments, careful=careful)
        if not careful and not math.isfinite(total.item()):
            total, *gradients = _loss_and_gradients(*arguments, careful=True)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad_output,) = grad_outputs
        of_queries, of_own, of_candidates = (gradient * grad_output for gradient in ctx.saved_tensors)
        return of_queries, of_own, of_candidates, *(None,) * 6


def _is_asynchronous(tensor: torch.Tensor) -> bool:
    """Whether to read a value is to wait for all that the device has still to do."""
    return tensor.device.type != "cpu"


def _edges_at_a_time(queries: torch.Tensor, candidates: torch.Tensor) -> int:
    """On a GPU all; on a CPU as many as make blocks of one size."""
    edges = max(len(queries), 1)
    if _is_asynchronous(queries):
        return edges
    return math.ceil(edges / math.ceil(edges * len(candidates) / _BLOCK_SCORES or 1))


class _Masked:
    """Which candidates are an edge's own entity."""

    def __init__(self, own_ids: torch.Tensor, candidate_ids: torch.Tensor, block: int) -> None:
        """On a CPU as a list of the few that are; elsewhere their number is not known without waiting."""
        self._dense: torch.Tensor | None = None
        if _is_asynchronous(own_ids):
            self._dense = own_ids[:, None] == candidate_ids
            self.counts = self._dense.sum(1)
            return
        ascending, order = candidate_ids.sort()
        first = torch.searchsorted(ascending, own_ids)
        self.counts = torch.searchsorted(ascending, own_ids, right=True) - first
        before = self.counts.cumsum(0) - self.counts
        edges = torch.repeat_interleave(self.counts)
        nth = torch.arange(len(edges)) - before[edges]  # of the candidates with the edge's id
        self._flat = edges * len(candidate_ids) + order[first[edges] + nth]
        self._block = block
        self._before = [*before[::block].tolist(), len(edges)]

    def fill(self, scores: torch.Tensor, start: int, value: float) -> None:
        """Sets those of a block; scores: contiguous [edges, candidates] of the edges from start on."""
        if self._dense is not None:
            scores.masked_fill_(self._dense, value)
            return
        block = start // self._block
        flat = self._flat[self._before[block] : self._before[block + 1]] - start * scores.shape[1]
        scores.view(-1).index_fill_(0, flat, value)


class _Products:
    """The three matrix products of a block, in a type of their own; all they return is in that of the queries."""

    def __init__(self, queries: torch.Tensor, candidates: torch.Tensor, dtype: torch.dtype, block: int) -> None:
        """Args:
        dtype: of the products.
        block: the most edges of one.
        """
        self._queries = queries
        self._dtype = dtype
        self._rounded = dtype != queries.dtype
        self._left, self._right = queries.to(dtype), candidates.to(dtype)
        self._buffer = queries.new_empty(block, len(candidates))
        self.of_queries = torch.empty_like(queries)
        # Transposed: of the two orders of this product the one that is faster.
        self.of_candidates = torch.zeros_like(candidates.T, memory_format=torch.contiguous_format)

    def scores(self, block: slice) -> torch.Tensor:
        """[edges, candidates], in a buffer that the next call uses too."""
        left = self._left[block]
        buffer = self._buffer[: len(left)]
        if self._rounded:
            return buffer.copy_(left @ self._right.T)
        return torch.mm(left, self._right.T, out=buffer)

    def add_gradients(self, block: slice, by_scores: torch.Tensor, factors: torch.Tensor) -> None:
        """Those of the queries and candidates.

        Args:
          by_scores: [edges, candidates]; factors: [edges], what those are still to be multiplied by.
        """
        queries, of_queries = self._queries[block], self.of_queries[block]
        if self._rounded:
            # In float16 the factors, which are divided by the batch, would be next to 0.
            greatest = factors.max().clamp_min(torch.finfo(factors.dtype).tiny)
            rounded = by_scores.to(self._dtype)
            of_queries.copy_(rounded @ self._right)
            self.of_candidates += ((queries * (factors / greatest)[:, None]).to(self._dtype).T @ rounded) * greatest
        else:
            torch.mm(by_scores, self._right, out=of_queries)
            self.of_candidates.addmm_((queries * factors[:, None]).T, by_scores)
        of_queries *= factors[:, None]


def _loss_and_gradients(
    queries: torch.Tensor,
    own: torch.Tensor,
    candidates: torch.Tensor,
    masked: _Masked,
    weights: torch.Tensor,
    loss: Loss,
    margin: float,
    dtype: torch.dtype,
    size: int,
    *,
    careful: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss, and its gradients by queries, own and candidates.

    Args:
      size: edges of a block.
      careful: exponents may be of any size.
    """
    positives = (queries * own).sum(1)
    products = _Products(queries, candidates, dtype, size)
    negatives = (len(candidates) - masked.counts).clamp_min_(1)
    aside, sums, factors = (torch.empty_like(positives) for _ in range(3))
    for start in range(0, len(queries), size):
        block = slice(start, start + size)
        scores = products.scores(block)
        if loss != "logistic":
            scores -= (positives[block] - (margin if loss == "margin" else 0))[:, None]
        aside[block] = _to_gradients(loss, scores, functools.partial(masked.fill, scores, start), careful)
        sums[block] = scores.sum(1)
        divisors = (-aside[block]).exp_() + sums[block] if loss == "softmax" else negatives[block]
        torch.div(weights[block], divisors, out=factors[block])
        products.add_gradients(block, scores, factors[block])
    match loss:
        case "softmax":
            losses = aside + ((-aside).exp_() + sums).log_()
            of_positives = -factors * sums
        case "logistic":
            losses = F.softplus(-positives) + aside / negatives
            of_positives = -weights * (-positives).sigmoid_()
        case "margin":
            losses = aside / negatives
            of_positives = -factors * sums
    of_queries = products.of_queries.addcmul_(own, of_positives[:, None])
    return (losses * weights).sum(), of_queries, queries * of_positives[:, None], products.of_candidates.T


def _to_gradients(loss: Loss, scores: torch.Tensor, fill: Callable[[float], None], careful: bool) -> torch.Tensor:
    """Turns a block's scores into gradients by them, in place, but for a factor of each edge's.

    Args:
      scores: [n, m], of negatives; of softmax less the positive's, of margin that and plus the margin.
      fill: sets those that are masked to a value, in place.

    Returns:
      [n]: of logistic and margin the sum of the negatives' terms. Of softmax by how much exponents were reduced, and
      with them the gradients: the loss is that + log(exp(-that) + the gradients' sum).
    """
    if loss == "margin":
        scores.relu_()
        fill(0)
        terms = scores.sum(1)
        scores.sign_()
        return terms
    if loss == "softmax":
        reduced = scores.new_zeros(len(scores))
        if careful and scores.shape[1]:
            fill(-torch.inf)
            reduced = scores.amax(1).clamp_min_(0)
            scores -= reduced[:, None]
        scores.exp_()
        fill(0)
        return reduced
    if careful:
        fill(-torch.inf)
        terms = F.softplus(scores).sum(1)
        scores.sigmoid_()
        return terms
    scores.exp_()
    fill(0)
    more = scores + 1
    scores /= more
    return more.log_().sum(1)
