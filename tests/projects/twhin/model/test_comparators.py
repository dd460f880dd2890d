from typing import Literal

import numpy as np
import pytest
import torch

from projects.twhin.model.comparators import comparator
from tests.support.toy_twhin import compared

Name = Literal["dot", "cos", "l2"]
NAMES: tuple[Name, ...] = ("dot", "cos", "l2")


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_closed_form(name: Name):
    a, b = torch.randn(3, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    expected = [[compared(name, left, right) for right in b.numpy()] for left in a.numpy()]
    np.testing.assert_allclose(comparator(name).all_pairs(a, b), expected, rtol=1e-12)
    np.testing.assert_allclose(comparator(name).pairs(a, b[:3]), np.diag(expected), rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name: Name):
    a, b = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(comparator(name).pairs, (a, b))
    assert torch.autograd.gradcheck(comparator(name).all_pairs, (a, b))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_equal_and_of_zero_vectors_are_finite(name: Name):
    for x in (torch.ones(2, 5), torch.zeros(2, 5)):
        a, b = (x.clone().requires_grad_() for _ in range(2))
        torch.autograd.backward(comparator(name).pairs(a, b).sum() + comparator(name).all_pairs(a, b).sum())
        for leaf in (a, b):
            assert leaf.grad is not None
            assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_compare(name: Name):
    a, none = torch.randn(3, 5), torch.empty(0, 5)
    assert comparator(name).all_pairs(a, none).shape == (3, 0)
    assert comparator(name).all_pairs(none, a).shape == (0, 3)
    assert comparator(name).pairs(none, none).shape == (0,)


def test_products_follow_autocast_and_distances_do_not():
    a = torch.randn(3, 8)
    b = a + 1e-3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert comparator("dot").all_pairs(a, b).dtype == torch.bfloat16
        assert comparator("cos").all_pairs(a, b).dtype == torch.bfloat16
        assert comparator("dot").pairs(a, b).dtype == torch.float32
        distances = -comparator("l2").all_pairs(a, b).diagonal()
    torch.testing.assert_close(distances, torch.full((3,), 1e-3 * 8**0.5), rtol=0.3, atol=0)
