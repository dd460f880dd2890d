"""Dlrm against section 2 of the paper, computed by a loop in float64."""

import numpy as np
import pytest
import torch

from common.modules.config import DlrmConfig, MlpConfig
from common.modules.dlrm import Dlrm

WIDTHS = (4, 2, 4)
"""Widths of the embeddings. The second differs from the output of the bottom MLP."""


def net(widths: tuple[int, ...] = WIDTHS) -> Dlrm:
    """Return a DLRM of three dense inputs and embeddings, in float64."""
    torch.manual_seed(0)
    config = DlrmConfig(bottom_mlp=MlpConfig(layer_sizes=[4]), top_mlp=MlpConfig(layer_sizes=[2]))
    return Dlrm(3 + sum(widths), widths, config).double()


def inputs() -> torch.Tensor:
    return torch.randn(5, 3 + sum(WIDTHS), dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_the_output_equals_the_closed_form() -> None:
    dlrm = net()
    (below, below_bias), (above, above_bias) = (
        [parameter.detach().numpy() for parameter in mlp.parameters()] for mlp in (dlrm.bottom_mlp, dlrm.top_mlp)
    )
    [projection] = [parameter.detach().numpy() for parameter in dlrm.projections.parameters()]
    assert projection.shape == (4, 2)
    expected = []
    for row in inputs().numpy():
        bottom = below @ row[:3] + below_bias
        vectors = [bottom, row[3:7], projection @ row[7:9], row[9:13]]
        products = [vectors[i] @ vectors[j] for i in range(4) for j in range(i)]
        expected.append(above @ np.concatenate([bottom, products]) + above_bias)
    np.testing.assert_allclose(dlrm(inputs()).detach().numpy(), np.array(expected), rtol=1e-12)
    assert dlrm.out_features == 2


def test_embeddings_of_the_same_width_are_not_projected() -> None:
    assert list(net((4, 4)).projections.parameters()) == []


def test_all_parameters_and_inputs_get_a_gradient() -> None:
    dlrm, rows = net(), inputs().requires_grad_()
    dlrm(rows).square().sum().backward()
    for tensor in (rows, *dlrm.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.all()


@pytest.mark.parametrize("widths", [(4, 4, 2), (2, 2, 2, 4)])
def test_bfloat16_autocast_is_near_float32(widths: tuple[int, ...]) -> None:
    dlrm = net(widths).float()
    exact = dlrm(inputs().float())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = dlrm(inputs().float())
    torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.1)
    assert not torch.equal(rounded.float(), exact)


def test_without_dense_inputs_the_bottom_is_its_bias() -> None:
    config = DlrmConfig(bottom_mlp=MlpConfig(layer_sizes=[4]), top_mlp=MlpConfig(layer_sizes=[2]))
    dlrm = Dlrm(8, (4, 4), config)
    outputs = dlrm(torch.ones(3, 8))
    assert outputs.shape == (3, 2)
    assert outputs.isfinite().all()
