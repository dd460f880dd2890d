"""LayerNorm against the closed form, and its options."""

import pytest
import torch

from common.modules.config import LayerNormConfig
from common.modules.layer_norm import LayerNorm


@pytest.mark.parametrize("epsilon", [0.0, 0.001])
def test_the_output_equals_the_closed_form_in_float64(epsilon: float) -> None:
    x = torch.randn(5, 9, dtype=torch.float64)
    expected = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + epsilon).sqrt()
    torch.testing.assert_close(LayerNorm(9, LayerNormConfig(epsilon=epsilon)).double()(x), expected)


def test_a_constant_row_with_epsilon_0_gives_zeros_and_finite_gradients() -> None:
    norm = LayerNorm(4, LayerNormConfig(epsilon=0.0))
    x = torch.full((2, 4), 3.0, requires_grad=True)
    outputs = norm(x)
    assert torch.equal(outputs, torch.zeros(2, 4))
    outputs.square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(("center", "scale"), [(True, False), (False, True), (False, False)])
def test_scale_and_shift_are_parameters_only_if_configured(center: bool, scale: bool) -> None:
    names = [name for name, _ in LayerNorm(4, LayerNormConfig(center=center, scale=scale)).named_parameters()]
    assert names == ["weight"] * scale + ["bias"] * center
