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
@pytest.mark.parametrize("value", [1.0, 0.0])
def test_gradients_of_equal_vectors_equal_the_closed_form(name: Name, value: float):
    """Each row is compared with three rows.

    With dot, the gradient of a row is the sum of these three rows. With cos and l2 it is 0: the similarity of equal
    vectors is at its maximum, and zero vectors have no direction.
    """
    a, b = (torch.full((2, 5), value, requires_grad=True) for _ in range(2))
    torch.autograd.backward(comparator(name).pairs(a, b).sum() + comparator(name).all_pairs(a, b).sum())
    expected = torch.full((2, 5), 3 * value if name == "dot" else 0.0)
    for leaf in (a, b):
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_empty_inputs_give_empty_scores(name: Name):
    a, none = torch.randn(3, 5), torch.empty(0, 5)
    assert comparator(name).all_pairs(a, none).shape == (3, 0)
    assert comparator(name).all_pairs(none, a).shape == (0, 3)
    assert comparator(name).pairs(none, none).shape == (0,)


def test_products_follow_autocast_but_distances_do_not():
    a = torch.randn(3, 8)
    b = a + 1e-3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert comparator("dot").all_pairs(a, b).dtype == torch.bfloat16
        assert comparator("cos").all_pairs(a, b).dtype == torch.bfloat16
        assert comparator("dot").pairs(a, b).dtype == torch.float32
        distances = -comparator("l2").all_pairs(a, b).diagonal()
    torch.testing.assert_close(distances, torch.full((3,), 1e-3 * 8**0.5), rtol=0.3, atol=0)
