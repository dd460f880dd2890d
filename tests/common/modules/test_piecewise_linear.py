"""The piecewise-linear encoding against equation 1 of arXiv 2203.05556, number by number."""

import pytest
import torch

from common.modules.piecewise_linear import PiecewiseLinear

EDGES = [[0.0, 1.0, 4.0, 4.5], [-10.0, 10.0], [1e-38, 2e-38, 1e30]]


def encoded(x: float, edges: list[float]) -> list[float]:
    """Return the encoding of one number. Beyond the edges, it is limited to 10 widths."""
    shares = []
    for t in range(1, len(edges)):
        low, high = edges[t - 1], edges[t]
        if x < low and t > 1:
            share = 0.0
        elif x >= high and t < len(edges) - 1:
            share = 1.0
        else:
            share = (x - low) / (high - low)
        shares.append(min(max(share, -10.0), 10.0))
    return shares


@pytest.mark.parametrize("x", [-1e30, -50.0, -0.5, 0.0, 0.25, 1.0, 2.0, 4.0, 4.2, 4.5, 5.0, 1e30, 3.4e38])
def test_the_encoding_equals_the_paper_s(x: float) -> None:
    encoding = PiecewiseLinear(EDGES)
    expected = [share for edges in EDGES for share in encoded(x, edges)]
    found = encoding(torch.full((2, 3), x))
    assert found.shape == (2, encoding.out_features) == (2, 6)
    torch.testing.assert_close(found, torch.tensor([expected, expected]), rtol=1e-5, atol=1e-6)


def test_rows_and_numbers_are_independent() -> None:
    encoding = PiecewiseLinear([[0.0, 1.0, 2.0], [0.0, 10.0]])
    found = encoding(torch.tensor([[0.5, 5.0], [1.5, 0.0]]))
    assert found.tolist() == [[0.5, 0.0, 0.5], [1.0, 0.5, 0.0]]


def test_the_buckets_follow_the_configuration_and_are_not_saved() -> None:
    assert PiecewiseLinear(EDGES).state_dict() == {}
