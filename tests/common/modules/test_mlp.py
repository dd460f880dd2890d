import torch
from torch import nn

from common.modules.config import BatchNormConfig, DropoutConfig, MlpConfig
from common.modules.mlp import Mlp


def kinds(mlp: Mlp) -> list[str]:
    return [type(layer).__name__ for layer in mlp.layers]


def test_layers_are_linear_norm_activation_dropout() -> None:
    config = MlpConfig(layer_sizes=[5, 3, 1], batch_norm=BatchNormConfig(affine=False), dropout=DropoutConfig(rate=0.2))
    hidden = ["Linear", "BatchNorm1d", "ReLU", "Dropout"]
    mlp = Mlp(7, config)
    assert kinds(mlp) == [*hidden, *hidden, "Linear"]
    assert mlp(torch.randn(4, 7)).shape == (4, 1)
    assert not list(mlp.layers[1].parameters())


def test_one_layer_with_and_without_final_activation() -> None:
    assert kinds(Mlp(3, MlpConfig(layer_sizes=[2]))) == ["Linear"]
    assert kinds(Mlp(3, MlpConfig(layer_sizes=[2], final_layer_activation=True))) == ["Linear", "ReLU"]


def test_equals_the_closed_form() -> None:
    mlp = Mlp(3, MlpConfig(layer_sizes=[4, 2])).double()
    first, last = (layer for layer in mlp.layers if isinstance(layer, nn.Linear))
    inputs = torch.randn(6, 3, dtype=torch.float64)
    expected = (inputs @ first.weight.T + first.bias).clamp(min=0) @ last.weight.T + last.bias
    torch.testing.assert_close(mlp(inputs), expected)
    assert not first.bias.any()
    assert first.weight.abs().max() <= (6 / (3 + 4)) ** 0.5  # Glorot's bound
