"""How two embeddings are compared: dot product, cosine, or negative Euclidean distance (arXiv 1903.12287, section 3).

Higher is more alike.
"""

from typing import Literal, Protocol

import torch
import torch.nn.functional as F

_SMALLEST_SQUARE = 1e-30
"""Squared distances below this count as this, with gradient 0: the root's own gradient at 0 is infinite."""

_ROUNDING = 2.0**-43
"""Of a float64 sum of up to 1000 products, by the product of the norms."""


class Comparator(Protocol):
    """Compares rows. Under autocast products of matrices are in its dtype, except those of distances."""

    def pairs(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """[n, dim] and [n, dim]: each row with its counterpart, [n]."""

    def all_pairs(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """[n, dim] and [m, dim]: each row with each, [n, m]."""

    def tie_bounds(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[n, dim] and [n, dim], float64: between which two scores, [n] each, all_pairs() has a row's with one that
        equals its counterpart, however it is rounded."""


class DotProduct(Comparator):
    """a . b"""

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        """[n, dim]: vectors whose dot products the scores are."""
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
    """a . b / (|a| |b|), with norms of at least 1e-12."""

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(x, dim=1)


class NegativeDistance(Comparator):
    """-|a - b|"""

    def pairs(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return -_root((a - b).square().sum(1))

    def all_pairs(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        # As |a|^2 + |b|^2 - 2 a.b, nearly all of it one matrix product. Rounding leaves an error of about 1e-3 of the
        # norms in float32; in a 16 bit type nothing would be left of small distances.
        with torch.autocast(a.device.type, enabled=False):
            squares = torch.addmm(b.square().sum(1), a, b.T, alpha=-2) + a.square().sum(1, keepdim=True)
        return -_root(squares)

    def tie_bounds(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        squares, error = (a - b).square().sum(1), _ROUNDING * (a.square().sum(1) + b.square().sum(1))
        return -_root(squares + error), -_root(squares - error)


def _root(squares: torch.Tensor) -> torch.Tensor:
    return squares.clamp_min(_SMALLEST_SQUARE).sqrt()


def comparator(name: Literal["dot", "cos", "l2"]) -> Comparator:
    """By its name in the configuration."""
    match name:
        case "dot":
            return DotProduct()
        case "cos":
            return Cosine()
        case "l2":
            return NegativeDistance()
