"""Computes the losses of losses.py from dot products, one block of edges at a time, without the matrix of all scores.

The scores of a block are turned into the loss and its gradients at once, in a buffer that stays in the processor's
cache. This takes three matrix products and as few other passes over the buffer as possible. Let G_ij be the gradient
with respect to the score of edge i's negative j, C the candidates and Q the queries. The gradient with respect to the
queries is G C, and the gradient with respect to the candidates is G^T Q.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from projects.twhin.model.losses import Loss

_BLOCK_SCORES = 2**19
"""Number of scores per block on a CPU."""


class _Settings(NamedTuple):
    """Settings of the loss computation.

    Attributes:
      loss: name of the loss.
      margin: margin of the margin loss.
      dtype: dtype of matrix products.
    """

    loss: Loss
    margin: float
    dtype: torch.dtype


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
    """Return the weighted sum of losses.edge_losses() with dot products as scores.

    Under autocast, matrix products use its dtype. Everything else uses the dtype of the inputs.

    Args:
      loss: name of the loss.
      margin: margin of the margin loss.
      queries: vectors to compare entities with: [n, dim].
      own: vectors of the edges' own entities: [n, dim]. The score of an edge is the sum of its row of queries * own.
      candidates: vectors of candidates: [m, dim].
      own_ids: ids of the edges' own entities: [n].
      candidate_ids: ids of the candidates: [m]. A candidate with the edge's own id is not one of its negatives.
      weights: weights of the edges: [n].

    Returns:
      The loss: a scalar in the dtype of queries.
    """
    device = queries.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else queries.dtype
    with torch.autocast(device, enabled=False):
        tensors = (queries, own, candidates, own_ids, candidate_ids, weights.to(queries.dtype))
        settings = _Settings(loss, margin, dtype)
        result: torch.Tensor = _FusedLoss.apply(*tensors, settings)  # type: ignore[no-untyped-call]
    return result


class _FusedLoss(torch.autograd.Function):
    """Computes the loss and its gradients in the forward pass, and scales the gradients in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: torch.Tensor,
        own: torch.Tensor,
        candidates: torch.Tensor,
        own_ids: torch.Tensor,
        candidate_ids: torch.Tensor,
        weights: torch.Tensor,
        settings: _Settings,
    ) -> torch.Tensor:
        block_size = _edges_per_block(queries, candidates)
        mask = _OwnEntityMask(own_ids, candidate_ids, block_size)
        # If exponents are not reduced, exp can overflow. This is so rare that a second pass is cheaper than always
        # reducing them. On a GPU, checking for an overflow would wait for the device. A 16-bit dtype needs small
        # numbers.
        reduce_exponents = _is_asynchronous(queries) or settings.dtype != queries.dtype
        arguments = (queries, own, candidates, mask, weights, settings, block_size)
        total, *gradients = _loss_and_gradients(*arguments, reduce_exponents=reduce_exponents)
        if not reduce_exponents and not math.isfinite(total.item()):
            total, *gradients = _loss_and_gradients(*arguments, reduce_exponents=True)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad_output,) = grad_outputs
        grad_queries, grad_own, grad_candidates = (gradient * grad_output for gradient in ctx.saved_tensors)
        return grad_queries, grad_own, grad_candidates, *(None,) * 4


def _is_asynchronous(tensor: torch.Tensor) -> bool:
    """Return True if reading a value waits for all pending work of the tensor's device."""
    return tensor.device.type != "cpu"


def _edges_per_block(queries: torch.Tensor, candidates: torch.Tensor) -> int:
    """Return the number of edges per block: all edges on a GPU, or a number that splits them evenly on a CPU."""
    edges = max(len(queries), 1)
    if _is_asynchronous(queries):
        return edges
    return math.ceil(edges / math.ceil(edges * len(candidates) / _BLOCK_SCORES or 1))


class _OwnEntityMask:
    """Marks the candidates that are an edge's own entity.

    Attributes:
      counts: number of such candidates of each edge: [n].
    """

    def __init__(self, own_ids: torch.Tensor, candidate_ids: torch.Tensor, block_size: int) -> None:
        """Find the candidates.

        On a CPU, the mask is a short list of positions. On other devices it is dense, because reading the number of
        positions would wait for the device.
        """
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
        nth = torch.arange(len(edges)) - before[edges]  # index among the candidates with the edge's id
        self._flat = edges * len(candidate_ids) + order[first[edges] + nth]
        self._block_size = block_size
        self._before = [*before[::block_size].tolist(), len(edges)]

    def fill(self, scores: torch.Tensor, start: int, value: float) -> None:
        """Set the masked scores of a block in place.

        Args:
          scores: scores of the block: [edges, candidates], contiguous.
          start: position of the block's first edge.
          value: value to set.
        """
        if self._dense is not None:
            scores.masked_fill_(self._dense, value)
            return
        block = start // self._block_size
        flat = self._flat[self._before[block] : self._before[block + 1]] - start * scores.shape[1]
        scores.view(-1).index_fill_(0, flat, value)


class _Products:
    """The three matrix products of each block.

    The products are computed in their own dtype, but results have the dtype of the queries.

    Attributes:
      grad_queries: gradient with respect to the queries, without the terms of the edges' own entities: [n, dim].
      grad_candidates: gradient with respect to the candidates, transposed: [dim, m].
    """

    def __init__(self, queries: torch.Tensor, candidates: torch.Tensor, dtype: torch.dtype, block_size: int) -> None:
        """Allocate buffers and gradients.

        Args:
          queries: [n, dim].
          candidates: [m, dim].
          dtype: dtype of the products.
          block_size: maximum number of edges per block.
        """
        self._queries = queries
        self._dtype = dtype
        self._rounded = dtype != queries.dtype
        self._left, self._right = queries.to(dtype), candidates.to(dtype)
        self._buffer = queries.new_empty(block_size, len(candidates))
        self.grad_queries = torch.empty_like(queries)
        # The transposed product is faster.
        self.grad_candidates = torch.zeros_like(candidates.T, memory_format=torch.contiguous_format)

    def scores(self, block: slice) -> torch.Tensor:
        """Return scores, [edges, candidates], in a buffer that the next call reuses."""
        left = self._left[block]
        buffer = self._buffer[: len(left)]
        if self._rounded:
            return buffer.copy_(left @ self._right.T)
        return torch.mm(left, self._right.T, out=buffer)

    def add_gradients(self, block: slice, grad_scores: torch.Tensor, factors: torch.Tensor) -> None:
        """Add a block's part of the gradients with respect to queries and candidates.

        Args:
          block: edges of the block.
          grad_scores: gradients with respect to the scores, without a factor per edge: [edges, candidates].
          factors: the factor of each edge: [edges].
        """
        queries, grad_queries = self._queries[block], self.grad_queries[block]
        if self._rounded:
            # The factors are divided by the batch size and would be almost 0 in float16.
            greatest = factors.max().clamp_min(torch.finfo(factors.dtype).tiny)
            rounded = grad_scores.to(self._dtype)
            grad_queries.copy_(rounded @ self._right)
            self.grad_candidates += ((queries * (factors / greatest)[:, None]).to(self._dtype).T @ rounded) * greatest
        else:
            torch.mm(grad_scores, self._right, out=grad_queries)
            self.grad_candidates.addmm_((queries * factors[:, None]).T, grad_scores)
        grad_queries *= factors[:, None]


def _loss_and_gradients(
    queries: torch.Tensor,
    own: torch.Tensor,
    candidates: torch.Tensor,
    mask: _OwnEntityMask,
    weights: torch.Tensor,
    settings: _Settings,
    block_size: int,
    *,
    reduce_exponents: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the loss and its gradients with respect to queries, own and candidates.

    Args:
      block_size: number of edges per block.
      reduce_exponents: True to reduce exponents before exp, so that scores of any size give finite results.
    """
    loss, margin, dtype = settings
    positives = (queries * own).sum(1)
    products = _Products(queries, candidates, dtype, block_size)
    negatives = (len(candidates) - mask.counts).clamp_min_(1)
    partials, sums, factors = (torch.empty_like(positives) for _ in range(3))
    for start in range(0, len(queries), block_size):
        block = slice(start, start + block_size)
        scores = products.scores(block)
        if loss != "logistic":
            scores -= (positives[block] - (margin if loss == "margin" else 0))[:, None]
        partials[block] = _to_gradients(loss, scores, functools.partial(mask.fill, scores, start), reduce_exponents)
        sums[block] = scores.sum(1)
        divisors = (-partials[block]).exp_() + sums[block] if loss == "softmax" else negatives[block]
        torch.div(weights[block], divisors, out=factors[block])
        products.add_gradients(block, scores, factors[block])
    match loss:
        case "softmax":
            losses = partials + ((-partials).exp_() + sums).log_()
            grad_positives = -factors * sums
        case "logistic":
            losses = F.softplus(-positives) + partials / negatives
            grad_positives = -weights * (-positives).sigmoid_()
        case "margin":
            losses = partials / negatives
            grad_positives = -factors * sums
    grad_queries = products.grad_queries.addcmul_(own, grad_positives[:, None])
    return (losses * weights).sum(), grad_queries, queries * grad_positives[:, None], products.grad_candidates.T


def _to_gradients(
    loss: Loss, scores: torch.Tensor, fill: Callable[[float], None], reduce_exponents: bool
) -> torch.Tensor:
    """Replace a block's scores by the gradients with respect to them, without a factor per edge, in place.

    Args:
      loss: name of the loss.
      scores: scores of candidates, [n, m]. softmax subtracts the positive's score; margin also adds the margin.
      fill: sets the masked scores to a value, in place.
      reduce_exponents: True to reduce exponents before exp.

    Returns:
      A number per edge, [n]. For logistic and margin, this is the sum of the negatives' terms. For softmax, it is the
      number r by which exponents were reduced. Gradients are reduced accordingly, and the loss is
      r + log(exp(-r) + their sum).
    """
    if loss == "margin":
        scores.relu_()
        fill(0)
        terms = scores.sum(1)
        scores.sign_()
        return terms
    if loss == "softmax":
        reduced = scores.new_zeros(len(scores))
        if reduce_exponents and scores.shape[1]:
            fill(-torch.inf)
            reduced = scores.amax(1).clamp_min_(0)
            scores -= reduced[:, None]
        scores.exp_()
        fill(0)
        return reduced
    if reduce_exponents:
        fill(-torch.inf)
        terms = F.softplus(scores).sum(1)
        scores.sigmoid_()
        return terms
    scores.exp_()
    fill(0)
    more = scores + 1
    scores /= more
    return more.log_().sum(1)
