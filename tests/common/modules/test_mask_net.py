"""MaskBlock and MaskNet against the equations of the paper."""

import pytest
import torch
from torch import nn

from common.modules.config import MaskBlockConfig, MaskNetConfig, MlpConfig
from common.modules.mask_net import MaskBlock, MaskNet


def block_config(output_size: int, *, norm: bool = False) -> MaskBlockConfig:
    return MaskBlockConfig(output_size=output_size, aggregation_size=7, input_layer_norm=norm)


def normalized(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()


def closed_form(block: MaskBlock, inputs: torch.Tensor, mask_inputs: torch.Tensor, *, norm: bool) -> torch.Tensor:
    """Compute equations 4, 7 and 9 of arXiv 2102.07619."""
    up, _, down = block.mask
    assert isinstance(up, nn.Linear)
    assert isinstance(down, nn.Linear)
    mask = (mask_inputs @ up.weight.T + up.bias).clamp(min=0) @ down.weight.T + down.bias
    hidden = ((normalized(inputs) if norm else inputs) * mask) @ block.hidden.weight.T + block.hidden.bias
    return normalized(hidden).clamp(min=0)


@pytest.mark.parametrize("norm", [False, True])
def test_a_block_equals_the_closed_form(norm: bool) -> None:
    block = MaskBlock(5, 3, block_config(4, norm=norm)).double()
    inputs, mask_inputs = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    torch.testing.assert_close(block(inputs, mask_inputs), closed_form(block, inputs, mask_inputs, norm=norm))


def test_the_reduction_factor_is_relative_to_the_width_of_the_masks_input() -> None:
    config = MaskBlockConfig(output_size=4, reduction_factor=1.5, input_layer_norm=False)
    assert MaskBlock(5, 6, config).mask[0].out_features == 9


def test_parallel_blocks_share_the_input_and_their_outputs_are_concatenated() -> None:
    config = MaskNetConfig(mask_blocks=[block_config(4), block_config(2)], use_parallel=True)
    net = MaskNet(5, config).double()
    inputs = torch.randn(3, 5, dtype=torch.float64)
    expected = torch.cat([closed_form(block, inputs, inputs, norm=False) for block in net.blocks], dim=1)  # type: ignore[arg-type]
    torch.testing.assert_close(net(inputs), expected)
    assert net.out_features == 6


def test_serial_blocks_are_chained_and_their_masks_use_the_input_of_the_net() -> None:
    config = MaskNetConfig(mask_blocks=[block_config(4), block_config(2)], mlp=MlpConfig(layer_sizes=[1]))
    net = MaskNet(5, config).double()
    inputs = torch.randn(3, 5, dtype=torch.float64)
    first, second = net.blocks
    hidden = closed_form(second, closed_form(first, inputs, inputs, norm=False), inputs, norm=False)  # type: ignore[arg-type]
    assert net.mlp is not None
    torch.testing.assert_close(net(inputs), net.mlp(hidden))
    assert net.out_features == 1
