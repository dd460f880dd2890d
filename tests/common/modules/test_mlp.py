"""The layers of Mlp and its output."""

import torch
from torch import nn

from common.modules.config import BatchNormConfig, DropoutConfig, MlpConfig
from common.modules.mlp import Mlp


def kinds(mlp: Mlp) -> list[str]:
    return [type(layer).__name__ for layer in mlp.layers]


def test_a_layer_is_linear_then_norm_then_activation_then_dropout() -> None:
    config = MlpConfig(layer_sizes=[5, 3, 1], batch_norm=BatchNormConfig(affine=False), dropout=DropoutConfig(rate=0.2))
    hidden = ["Linear", "BatchNorm1d", "ReLU", "Dropout"]
    mlp = Mlp(7, config)
    assert kinds(mlp) == [*hidden, *hidden, "Linear"]
    assert mlp(torch.randn(4, 7)).shape == (4, 1)
    assert not list(mlp.layers[1].parameters())


def test_a_single_layer_has_an_activation_only_if_configured() -> None:
    assert kinds(Mlp(3, MlpConfig(layer_sizes=[2]))) == ["Linear"]
    assert kinds(Mlp(3, MlpConfig(layer_sizes=[2], final_layer_activation=True))) == ["Linear", "ReLU"]


def test_the_output_equals_the_closed_form() -> None:
    mlp = Mlp(3, MlpConfig(layer_sizes=[4, 2])).double()
    first, last = (layer for layer in mlp.layers if isinstance(layer, nn.Linear))
    inputs = torch.randn(6, 3, dtype=torch.float64)
    expected = (inputs @ first.weight.T + first.bias).clamp(min=0) @ last.weight.T + last.bias
    torch.testing.assert_close(mlp(inputs), expected)
    assert not first.bias.any()
    assert first.weight.abs().max() <= (6 / (3 + 4)) ** 0.5  # the bound by Glorot and Bengio
