"""CrossLayer and Dcn against the equations of the paper, computed by numpy in float64."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from common.modules.config import DcnConfig, MlpConfig
from common.modules.dcn import CrossLayer, Dcn
from common.modules.mlp import Mlp

Array = NDArray[np.float64]


def arrays(module: torch.nn.Module) -> list[Array]:
    return [parameter.detach().double().numpy() for parameter in module.parameters()]


def closed_form(layer: CrossLayer, first: Array, inputs: Array) -> Array:
    """Compute a cross layer as in sections 3.2 and 3.5 of arXiv 2008.13535."""
    *projection, weight, bias = arrays(layer)
    matrix = weight @ projection[0] if projection else weight
    return first * (inputs @ matrix.T + bias) + inputs


def net(**settings: object) -> Dcn:
    """Return a DCN of 5 inputs with random biases, in float64."""
    torch.manual_seed(0)
    dcn = Dcn(5, DcnConfig.model_validate({"poly_degree": 3, **settings})).double()
    for parameter in dcn.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter)
    return dcn


def inputs() -> torch.Tensor:
    return torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def crossed(dcn: Dcn) -> Array:
    first = outputs = inputs().numpy()
    for layer in dcn.crosses:
        assert isinstance(layer, CrossLayer)
        outputs = closed_form(layer, first, outputs)
    return outputs


@pytest.mark.parametrize("rank", [None, 2])
def test_cross_layers_equal_the_closed_form(rank: int | None) -> None:
    dcn = net(projection_dim=rank)
    assert (len(dcn.crosses), dcn.out_features) == (2, 5)
    np.testing.assert_allclose(dcn(inputs()).detach().numpy(), crossed(dcn), rtol=1e-12)
    assert sum(parameter.numel() for parameter in dcn.crosses[0].parameters()) == (30 if rank is None else 25)


@pytest.mark.parametrize("degree", [2, 4])
def test_the_output_is_a_polynomial_of_the_configured_degree(degree: int) -> None:
    """Differences of order degree + 1 of a polynomial are 0, those of order degree are not."""
    dcn = net(poly_degree=degree)
    line = torch.arange(degree + 2, dtype=torch.float64)[:, None] * inputs()[:1] + inputs()[1:2]
    values = dcn(line).detach().numpy()
    assert np.abs(np.diff(values, n=degree, axis=0)).min() > 1e-6
    np.testing.assert_allclose(np.diff(values, n=degree + 1, axis=0), 0, atol=1e-9)


def test_a_parallel_mlp_has_the_same_input_and_its_output_follows() -> None:
    dcn = net(parallel_mlp=MlpConfig(layer_sizes=[3]))
    assert dcn.out_features == 8
    weight, bias = arrays(dcn.mlp or torch.nn.Identity())
    expected = np.concatenate([crossed(dcn), inputs().numpy() @ weight.T + bias], axis=1)
    np.testing.assert_allclose(dcn(inputs()).detach().numpy(), expected, rtol=1e-12)


def test_a_stacked_mlp_follows_the_cross_layers() -> None:
    dcn = net(parallel_mlp=MlpConfig(layer_sizes=[3]), use_parallel=False)
    assert dcn.out_features == 3
    weight, bias = arrays(dcn.mlp or torch.nn.Identity())
    np.testing.assert_allclose(dcn(inputs()).detach().numpy(), crossed(dcn) @ weight.T + bias, rtol=1e-12)


def test_an_output_mlp_is_last() -> None:
    mlp = MlpConfig(layer_sizes=[3])
    dcn = net(parallel_mlp=mlp, output_mlp=MlpConfig(layer_sizes=[2]))
    assert isinstance(dcn.output_mlp, Mlp)
    without, (weight, bias) = dcn.output_mlp, arrays(dcn.output_mlp)
    dcn.output_mlp = None
    both = dcn(inputs()).detach().numpy()
    dcn.output_mlp = without
    assert dcn.out_features == 2
    np.testing.assert_allclose(dcn(inputs()).detach().numpy(), both @ weight.T + bias, rtol=1e-12)


def test_all_parameters_get_a_gradient() -> None:
    dcn = net(projection_dim=2, parallel_mlp=MlpConfig(layer_sizes=[3]), output_mlp=MlpConfig(layer_sizes=[1]))
    dcn(inputs()).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in dcn.parameters())


def test_bfloat16_autocast_is_near_float32() -> None:
    dcn = net(parallel_mlp=MlpConfig(layer_sizes=[3])).float()
    exact = dcn(inputs().float())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = dcn(inputs().float())
    torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.05)
    assert not torch.equal(rounded.float(), exact)
