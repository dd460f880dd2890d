"""Checks that a folded ranker computes what the ranker computes, with fewer layers, for every architecture."""

from typing import Any

import pytest
import torch
from torch import nn

from projects.home.recap.data.schema import FeatureWidths
from projects.home.recap.export.fold import folded
from projects.home.recap.model.config import ModelConfig
from projects.home.recap.model.heavy_ranker import HeavyRanker

MLP = {"layer_sizes": [5, 4], "batch_norm": {"affine": True, "momentum": 0.1}, "final_layer_activation": True}
LAST = {"layer_sizes": [6, 3, 1], "batch_norm": {"affine": False, "momentum": 0.1}}
BLOCK = {"aggregation_size": 4, "output_size": 4, "input_layer_norm": True}
TOWERS: dict[str, dict[str, Any]] = {
    "mlp": {"mlp_config": LAST},
    "without batch norm": {"mlp_config": {"layer_sizes": [3, 1], "dropout": {"rate": 0.5}}},
    "mask net": {"mask_net_config": {"use_parallel": True, "mask_blocks": [BLOCK, BLOCK], "mlp": LAST}},
    "dcn, deep part last": {"dcn_config": {"poly_degree": 2, "use_parallel": False, "parallel_mlp": LAST}},
    "dcn": {"dcn_config": {"poly_degree": 2, "use_parallel": True, "parallel_mlp": MLP, "output_mlp": LAST}},
}


def build(tower: dict[str, Any], affine: bool) -> HeavyRanker:
    """Return a ranker with every weight and every statistic of batch norms drawn at random."""
    tower = tower | ({"affine_map": {"scale": 1.0, "bias": 0.0}} if affine else {})
    config = ModelConfig.model_validate(
        {
            "multi_task_type": "share_all",
            "featurization_config": {
                "double_norm_log_config": {"batch_norm_config": {"affine": True, "momentum": 0.1}}
            },
            "backbone": {"mlp_config": MLP},
            "tasks": {"a": tower, "b.c": tower},
        }
    )
    torch.manual_seed(0)
    ranker = HeavyRanker(config, FeatureWidths(4, 2, {"user_embedding": 3}), {"a": (1.0, 1.0), "b.c": (0.5, 1.0)})
    with torch.no_grad():
        for tensor in [*ranker.parameters(), *ranker.buffers()]:
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
        for name, tensor in ranker.named_parameters():
            if name.endswith("weight") and tensor.ndim == 2:
                tensor.normal_()
    return ranker.eval()


def inputs(rows: int = 50) -> dict[str, torch.Tensor]:
    """Return random rows."""
    generator = torch.Generator().manual_seed(1)
    widths = {"continuous": 4, "binary": 2, "user_embedding": 3}
    return {name: torch.randn(rows, width, generator=generator) * 3 for name, width in widths.items()}


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", TOWERS)
def test_a_folded_ranker_equals_the_ranker_without_its_batch_norms_and_affine_maps(kind: str, affine: bool) -> None:
    ranker = build(TOWERS[kind], affine)
    expected = ranker(**inputs())
    before = {name: value.clone() for name, value in ranker.state_dict().items()}
    fewer = folded(ranker)
    outputs = fewer(**inputs())
    assert expected["logits"].std() > 0.1
    for name, values in expected.items():
        torch.testing.assert_close(outputs[name], values, rtol=1e-5, atol=1e-5)
    names = [name for name, module in fewer.named_modules() if isinstance(module, nn.BatchNorm1d)]
    assert names == ["featurization.batch_norm"]  # a clamp follows it
    assert not any(name.endswith(".scale") for name, _ in fewer.named_parameters())
    for name, value in ranker.state_dict().items():
        assert torch.equal(value, before[name])


def test_layers_that_stay_share_their_tensors() -> None:
    ranker = build(TOWERS["mlp"], affine=True)
    fewer = folded(ranker)
    assert fewer.embedding_norms["user_embedding"].weight is ranker.embedding_norms["user_embedding"].weight
    assert fewer.featurization is not ranker.featurization


def test_a_ranker_in_training_is_refused() -> None:
    with pytest.raises(AssertionError, match="training"):
        folded(build(TOWERS["mlp"], affine=True).train())
