import math
from typing import Any

import pytest
import torch

from core.config import load_config_from_yaml
from projects.home.recap.config import RecapConfig
from projects.home.recap.data.schema import FeatureWidths
from projects.home.recap.model.config import ModelConfig
from projects.home.recap.model.heavy_ranker import HeavyRanker
from tests.conftest import LOCAL_YAML

WIDTHS = FeatureWidths(6, 3, {"user_embedding": 4, "user_eng_embedding": 4, "author_embedding": 4})


def model_config() -> ModelConfig:
    return load_config_from_yaml(RecapConfig, str(LOCAL_YAML)).model


def build(rates: dict[str, tuple[float, float]] | None = None, widths: FeatureWidths = WIDTHS) -> HeavyRanker:
    torch.manual_seed(0)
    config = model_config()
    return HeavyRanker(config, widths, dict.fromkeys(config.tasks, (1.0, 1.0)) | (rates or {})).eval()


def inputs(rows: int = 5) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(1)
    shapes = (6, 3, 4, 4, 4)
    return tuple(torch.randn(rows, width, generator=generator) for width in shapes)


def test_outputs_have_a_column_per_task() -> None:
    outputs = build()(*inputs())
    assert set(outputs) == {"logits", "probabilities", "calibrated_probabilities"}
    assert all(values.shape == (5, 10) and values.dtype == torch.float32 for values in outputs.values())
    torch.testing.assert_close(outputs["probabilities"], outputs["logits"].sigmoid())
    torch.testing.assert_close(outputs["calibrated_probabilities"], outputs["probabilities"])


def test_calibration_takes_down_sampling_back() -> None:
    """p / (p + (1 - p) ...) of the sampled data, Bayes' rule written out in float64."""
    task = "recap.engagement.is_favorited"
    outputs = build({task: (0.8, 0.01)})(*inputs())
    p = outputs["probabilities"][:, 0].double()
    before = (p / 0.8) / (p / 0.8 + (1 - p) / 0.01)
    torch.testing.assert_close(outputs["calibrated_probabilities"][:, 0].double(), before, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(outputs["calibrated_probabilities"][:, 1], outputs["probabilities"][:, 1])


def test_affine_map_begins_at_the_base_rate() -> None:
    config = model_config()
    logits = build()(*inputs(500))["logits"]
    for column, tower in enumerate(config.tasks.values()):
        assert tower.affine_map is not None
        assert abs(logits[:, column].mean().item() - tower.affine_map.bias) < 1.5


def test_each_tower_feeds_its_own_column() -> None:
    ranker = build()
    before = ranker(*inputs())["logits"]
    with torch.no_grad():
        for parameter in ranker.towers["recap/engagement/is_replied"].parameters():
            parameter.zero_()
    changed = (ranker(*inputs())["logits"] != before).any(0)
    assert changed.tolist() == [task == "recap.engagement.is_replied" for task in ranker.tasks]


def test_each_embedding_is_layer_normed() -> None:
    ranker = build()
    scaled = inputs()
    scaled = (*scaled[:2], *(3.0 * embedding + 7.0 for embedding in scaled[2:]))
    torch.testing.assert_close(ranker(*scaled)["logits"], ranker(*inputs())["logits"], rtol=1e-3, atol=1e-3)


def test_is_finite_whatever_it_gets() -> None:
    outputs = build()(*(torch.full_like(values, math.nan) for values in inputs()))
    assert all(values.isfinite().all() for values in outputs.values())


def test_works_without_embeddings() -> None:
    ranker = build(widths=FeatureWidths(6, 3, {}))
    assert ranker(*inputs()[:2])["logits"].shape == (5, 10)


def test_can_be_exported() -> None:
    ranker = build()
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(ranker, inputs(), dynamic_shapes=tuple({0: batch} for _ in range(5)))
    torch.testing.assert_close(exported.module()(*inputs(9)), ranker(*inputs(9)))


@pytest.mark.parametrize("task", ["recap.engagement.is_favorited", "recap.engagement.is_video_playback_50"])
def test_parameters_are_named_by_task(task: str) -> None:
    assert any(f"towers.{task.replace('.', '/')}." in name for name in build().state_dict())
