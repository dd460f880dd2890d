"""Compares embeddings by dot product, cosine, or negative Euclidean distance (arXiv 1903.12287, section 3).

A higher score means that two embeddings are more similar.
"""

from typing import Protocol

import torch
import torch.nn.functional as F

from projects.twhin.model.config import ComparatorName

_SMALLEST_SQUARE = 1e-30
"""Lower bound of squared distances. Below it, the gradient is 0, because that of the square root is infinite at 0."""

_ROUNDING = 2.0**-43
"""Bound of the rounding error of a float64 dot product of up to 1000 terms, relative to the product of the norms."""


class Comparator(Protocol):
    """Compares rows of two matrices.

    Under autocast, matrix products use its dtype, except for distances.
    """

    def pairs(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Compare each row of a [n, dim] with the same row of b [n, dim]. Returns [n]."""

    def all_pairs(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Compare each row of a [n, dim] with each row of b [m, dim]. Returns [n, m]."""

    def tie_bounds(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return bounds of the score that all_pairs() gives a row of a and any copy of its counterpart in b.

        Two scores of equal embeddings can differ by rounding. Both are within these bounds.

        Args:
          a, b: [n, dim], float64.

        Returns:
          Lower and upper bounds, each [n], float64.
        """


class DotProduct(Comparator):
    """The dot product a . b."""

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        """Return vectors [n, dim] whose dot products are the scores."""
        return x

    def pairs(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (self.prepare(a) * self.prepare(b)).sum(1)

    def all_pairs(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.prepare(a) @ self.prepare(b).T

    def tie_bounds(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = self.prepare(a), self.prepare(b)
        scores, error = (a * b).sum(1), _ROUNDING * a.norm(dim=1) * b.norm(dim=1)
        return scores - error, scores + error


class Cosine(DotProduct):
    """The cosine a . b / (|a| |b|), with norms of at least 1e-12."""

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(x, dim=1)


class NegativeDistance(Comparator):
    """The negative Euclidean distance -|a - b|."""

    def pairs(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return -_root((a - b).square().sum(1))

    def all_pairs(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        # |a|^2 + |b|^2 - 2 a.b is nearly a single matrix product. In float32, the rounding error is about 1e-3 of the
        # norms. A 16-bit type would lose small distances entirely.
        with torch.autocast(a.device.type, enabled=False):
            squares = torch.addmm(b.square().sum(1), a, b.T, alpha=-2) + a.square().sum(1, keepdim=True)
        return -_root(squares)

    def tie_bounds(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        squares, error = (a - b).square().sum(1), _ROUNDING * (a.square().sum(1) + b.square().sum(1))
        return -_root(squares + error), -_root(squares - error)


def _root(squares: torch.Tensor) -> torch.Tensor:
    return squares.clamp_min(_SMALLEST_SQUARE).sqrt()


def comparator(name: ComparatorName) -> Comparator:
    """Return the comparator with this name in the configuration."""
    match name:
        case "dot":
            return DotProduct()
        case "cos":
            return Cosine()
        case "l2":
            return NegativeDistance()
