import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from common.errors import ConfigError
from common.modules.dlrm import Dlrm
from core.config import load_config_from_yaml
from projects.home.recap.config import RecapConfig
from projects.home.recap.data.schema import FeatureWidths
from projects.home.recap.model.config import ModelConfig
from projects.home.recap.model.heavy_ranker import HeavyRanker
from tests.support.export import forget_precision
from tests.support.runs import LOCAL_YAML

WIDTHS = FeatureWidths(6, 3, {"user_embedding": 4, "user_eng_embedding": 4, "author_embedding": 4})


def model_config(*overrides: str) -> ModelConfig:
    return load_config_from_yaml(RecapConfig, str(LOCAL_YAML), overrides).model


def build(
    rates: dict[str, tuple[float, float]] | None = None, widths: FeatureWidths = WIDTHS, overrides: Sequence[str] = ()
) -> HeavyRanker:
    torch.manual_seed(0)
    config = model_config(*overrides)
    return HeavyRanker(config, widths, dict.fromkeys(config.tasks, (1.0, 1.0)) | (rates or {})).eval()


def inputs(rows: int = 5) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(1)
    shapes = (6, 3, 4, 4, 4)
    return tuple(torch.randn(rows, width, generator=generator) for width in shapes)


SHARE_NONE = ("model.multi_task_type=share_none", "model.backbone=null")
SHARE_PARTIAL = ("model.multi_task_type=share_partial",)
SMALL_EMBEDDINGS = (
    "model.small_embeddings={tables: [{name: country, num_embeddings: 9, embedding_dim: 3, index: 1}, "
    "{name: kind, num_embeddings: 4, embedding_dim: 2, index: 0}]}"
)
DCN = "{dcn_config: {poly_degree: 3, projection_dim: 2, parallel_mlp: {layer_sizes: [4]}}}"
DLRM = "{dlrm_config: {bottom_mlp: {layer_sizes: [4]}, top_mlp: {layer_sizes: [6], final_layer_activation: true}}}"


def discrete(rows: int = 5) -> torch.Tensor:
    """Return random ids of two features, with four and nine ids."""
    generator = torch.Generator().manual_seed(2)
    return torch.stack([torch.randint(size, (rows,), generator=generator) for size in (4, 9)], dim=1)


def test_outputs_have_one_column_per_task() -> None:
    outputs = build()(*inputs())
    assert set(outputs) == {"logits", "probabilities", "calibrated_logits", "calibrated_probabilities", "score"}
    score = outputs.pop("score")
    assert (score.shape, score.dtype) == ((5,), torch.float64)
    assert all(values.dtype == torch.float32 for values in outputs.values())
    assert all(values.shape == (5, 10) for values in outputs.values())
    torch.testing.assert_close(outputs["probabilities"], outputs["logits"].sigmoid())
    torch.testing.assert_close(outputs["calibrated_probabilities"], outputs["probabilities"])


def test_calibration_corrects_for_down_sampling() -> None:
    """Compares with Bayes' rule in float64."""
    task = "recap.engagement.is_favorited"
    outputs = build({task: (0.8, 0.01)})(*inputs())
    p = outputs["probabilities"][:, 0].double()
    before = (p / 0.8) / (p / 0.8 + (1 - p) / 0.01)
    torch.testing.assert_close(outputs["calibrated_probabilities"][:, 0].double(), before, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(outputs["calibrated_probabilities"][:, 1], outputs["probabilities"][:, 1])
    torch.testing.assert_close(outputs["calibrated_logits"].sigmoid(), outputs["calibrated_probabilities"])


PUBLISHED = {
    "is_favorited": 0.5,
    "is_retweeted": 1.0,
    "is_replied": 13.5,
    "is_profile_clicked_and_profile_engaged": 12.0,
    "is_video_playback_50": 0.005,
    "is_replied_reply_engaged_by_author": 75.0,
    "is_good_clicked_convo_desc_favorited_or_replied": 11.0,
    "is_good_clicked_convo_desc_v2": 10.0,
    "is_negative_feedback_v2": -74.0,
    "is_report_tweet_clicked": -369.0,
}


def test_score_weighs_calibrated_probabilities_as_published() -> None:
    rates = {task: (1.0, 0.01 * (index + 1)) for index, task in enumerate(model_config().tasks)}
    ranker = build(rates)
    outputs = ranker(*inputs())
    expected = torch.zeros(5, dtype=torch.float64)
    for name, weight in PUBLISHED.items():
        column = ranker.tasks.index(f"recap.engagement.{name}")
        expected += weight * outputs["calibrated_probabilities"][:, column].double()
    torch.testing.assert_close(outputs["score"].double(), expected, rtol=1e-5, atol=1e-6)
    shipped = load_config_from_yaml(RecapConfig, LOCAL_YAML.with_name("production.yaml")).model.score_weights
    assert shipped == model_config().score_weights == {f"recap.engagement.{n}": w for n, w in PUBLISHED.items()}


def test_tasks_may_have_the_names_of_attributes_of_modules() -> None:
    tower = model_config().tasks["recap.engagement.is_replied"]
    names = ("type", "items", "forward", "training", "a.b", "weight")
    config = model_config().model_copy(update={"tasks": dict.fromkeys(names, tower), "score_weights": {"type": 2.0}})
    ranker = HeavyRanker(config, WIDTHS, dict.fromkeys(names, (1.0, 1.0))).eval()
    outputs = ranker(*inputs())
    assert ranker.tasks == names
    assert outputs["logits"].shape == (5, len(names))
    assert len({tuple(column) for column in outputs["logits"].T.tolist()}) == len(names)
    torch.testing.assert_close(outputs["score"].float(), 2 * outputs["probabilities"][:, 0])


def test_no_score_without_weights() -> None:
    assert "score" not in build(overrides=["model.score_weights=null"])(*inputs())


def test_initial_logits_are_near_the_bias_of_the_affine_map() -> None:
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


def test_huge_numbers_of_embeddings_are_normalized() -> None:
    """Numbers above 2^50 count as 2^50, whose squares float32 can hold."""
    ranker = build()
    features = inputs(3)
    huge = torch.tensor([[1e30, -1e30, 3e38, 5.0], [7.0, 1e30, 0.0, -3.0], [1e30] * 4])
    expected = torch.nn.functional.layer_norm(huge.double().clamp(-(2.0**50), 2.0**50), (4,)).float()
    seen: list[torch.Tensor] = []
    norm = ranker.embedding_norms["user_embedding"]
    norm.register_forward_hook(lambda _, __, output: seen.append(output))
    outputs = ranker(*features[:2], huge, *features[3:])
    torch.testing.assert_close(seen[0], expected)
    assert torch.equal(seen[0][2], torch.zeros(4))
    assert all(values.isfinite().all() for values in outputs.values())


@pytest.mark.parametrize("overrides", [(), (f"model.backbone={DCN}",)], ids=str)
def test_huge_binary_features_give_finite_outputs(overrides: Sequence[str]) -> None:
    """No layer norm precedes the backbone."""
    ranker = build(overrides=("model.featurization_config={log1p_abs_config: {}}", *overrides))
    features = list(inputs(3))
    features[1] = torch.tensor([[1e30, -1e30, 3e38], [1.0, 1e30, 0.0], [1e30, 1e30, 1e30]])
    assert all(values.isfinite().all() for values in ranker(*features).values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8, torch.bool])
def test_narrow_features_give_bit_equal_outputs(dtype: torch.dtype) -> None:
    """Uses values that the narrow type represents exactly."""
    ranker = build(overrides=[SMALL_EMBEDDINGS])
    integers = tuple(features.mul(3).abs().round() for features in inputs())
    features = tuple(values.to(dtype) for values in integers)
    narrow_outputs = ranker(*features, discrete().to(torch.uint8))
    wide_outputs = ranker(*(values.float() for values in features), discrete())
    assert all(torch.equal(narrow_outputs[name], wide_outputs[name]) for name in wide_outputs)
    if dtype != torch.bool:
        assert torch.equal(narrow_outputs["logits"], ranker(*integers, discrete())["logits"])


def test_outputs_are_finite_for_nan_inputs() -> None:
    outputs = build()(*(torch.full_like(values, math.nan) for values in inputs()))
    assert all(values.isfinite().all() for values in outputs.values())


def test_works_without_embeddings() -> None:
    ranker = build(widths=FeatureWidths(6, 3, {}))
    assert ranker(*inputs()[:2])["logits"].shape == (5, 10)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        SHARE_NONE,
        SHARE_PARTIAL,
        (SMALL_EMBEDDINGS,),
        (f"model.backbone={DCN}",),
        (f"model.backbone={DLRM}", SMALL_EMBEDDINGS),
        ("model.position_debias_config={position_feature_index: 1}",),
    ],
    ids=str,
)
def test_can_be_exported(overrides: Sequence[str]) -> None:
    forget_precision()
    ranker = build(overrides=overrides)
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(ranker, (*inputs(), discrete()), dynamic_shapes=tuple({0: batch} for _ in range(6)))
    torch.testing.assert_close(exported.module()(*inputs(9), discrete(9)), ranker(*inputs(9), discrete(9)))


# Inputs of the towers, compared with closed forms. Each tower is one linear layer.


def linear_towers(ranker: HeavyRanker) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights [tasks, features] and biases [tasks] of towers with layer_sizes [1]."""
    parameters = [list(tower.parameters()) for tower in ranker.towers.values()]
    return torch.cat([weight for weight, _ in parameters]), torch.cat([bias for _, bias in parameters])


LINEAR = (
    "model.tasks={a: {mlp_config: &m {layer_sizes: [1]}}, b: {mlp_config: *m}}",
    "model.score_weights=null",
    "optimizer={adam: {}, single_task_learning_rate: {constant: 0.1}}",
    "train_data.tasks={a: {}, b: {}}",
    "validation_data={}",
)


def features(ranker: HeavyRanker) -> torch.Tensor:
    continuous, binary, *embeddings = inputs()
    normed = [torch.nn.functional.layer_norm(embedding, (4,)) for embedding in embeddings]
    return torch.cat([ranker.featurization(continuous, binary), *normed], dim=1)


def test_share_none_feeds_only_the_features_to_the_towers() -> None:
    ranker = build(overrides=(*SHARE_NONE, *LINEAR))
    assert ranker.backbone is None
    weights, biases = linear_towers(ranker)
    torch.testing.assert_close(ranker(*inputs())["logits"], features(ranker) @ weights.T + biases)


def test_affine_map_is_learned_and_scales_and_shifts_the_logit() -> None:
    affine = "model.tasks.b={mlp_config: {layer_sizes: [1]}, affine_map: {scale: -2.0, bias: 0.5}}"
    ranker = build(overrides=(*SHARE_NONE, *LINEAR, affine))
    weight, shift, scale, bias = ranker.towers["b"].parameters()
    plain = features(ranker) @ weight.T + shift
    logits = ranker(*inputs())["logits"][:, 1:]
    torch.testing.assert_close(logits, -2.0 * plain + 0.5)
    by_scale, by_bias = torch.autograd.grad(logits.sum(), [scale, bias])
    torch.testing.assert_close(by_scale, plain.sum())
    assert by_bias.item() == 5


def test_share_all_feeds_only_the_backbone_to_the_towers() -> None:
    ranker = build(overrides=LINEAR)
    assert ranker.backbone is not None
    weights, biases = linear_towers(ranker)
    torch.testing.assert_close(ranker(*inputs())["logits"], ranker.backbone(features(ranker)) @ weights.T + biases)


def test_share_partial_feeds_backbone_and_features_to_the_towers() -> None:
    ranker = build(overrides=(*SHARE_PARTIAL, *LINEAR))
    assert ranker.backbone is not None
    weights, biases = linear_towers(ranker)
    both = torch.cat([ranker.backbone(features(ranker)), features(ranker)], dim=1)
    torch.testing.assert_close(ranker(*inputs())["logits"], both @ weights.T + biases)


def test_small_embeddings_follow_the_other_embeddings() -> None:
    ranker = build(overrides=(*SHARE_NONE, SMALL_EMBEDDINGS, *LINEAR))
    weights, biases = linear_towers(ranker)
    assert ranker.small_embeddings is not None
    country, kind = ranker.small_embeddings.parameters()
    looked_up = [country[discrete()[:, 1]], kind[discrete()[:, 0]]]
    expected = torch.cat([features(ranker), *looked_up], dim=1) @ weights.T + biases
    torch.testing.assert_close(ranker(*inputs(), discrete())["logits"], expected)


MASK_NET = "{{use_parallel: {}, mask_blocks: [{{aggregation_size: 4, output_size: 5, input_layer_norm: true}}]{}}}"


@pytest.mark.parametrize(
    "backbone",
    [
        "{mlp_config: {layer_sizes: [7, 6], final_layer_activation: true}}",
        f"{{mask_net_config: {MASK_NET.format('false', '')}}}",
        f"{{mask_net_config: {MASK_NET.format('true', ', mlp: {layer_sizes: [3]}')}}}",
        DCN,
        DLRM,
    ],
    ids=["mlp", "serial mask net", "parallel mask net", "dcn", "dlrm"],
)
@pytest.mark.parametrize(
    "tower",
    [
        "{mlp_config: {layer_sizes: [4, 1]}}",
        f"{{mask_net_config: {MASK_NET.format('false', ', mlp: {layer_sizes: [1]}')}}}",
        "{dcn_config: {poly_degree: 2, output_mlp: {layer_sizes: [1]}}}",
        "{dcn_config: {poly_degree: 2, use_parallel: false, parallel_mlp: {layer_sizes: [1]}}}",
        "{dlrm_config: {bottom_mlp: {layer_sizes: [3]}, top_mlp: {layer_sizes: [1]}}, affine_map: {}}",
    ],
    ids=["mlp", "mask net", "dcn", "stacked dcn", "dlrm"],
)
def test_backbone_and_towers_may_have_any_architecture(backbone: str, tower: str) -> None:
    task = f"model.tasks[recap.engagement.is_replied]={tower}"
    ranker = build(overrides=(f"model.backbone={backbone}", task, *SHARE_PARTIAL)).train()
    logits = ranker(*inputs())["logits"]
    assert logits.shape == (5, 10)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in ranker.parameters())


def test_a_dlrm_takes_dot_products_with_the_embeddings_and_small_embeddings() -> None:
    """Compares with a loop in float64 over the vectors of each row."""
    ranker = build(overrides=(f"model.backbone={DLRM}", *SHARE_PARTIAL, SMALL_EMBEDDINGS)).double()
    assert isinstance(ranker.backbone, Dlrm)
    assert ranker.small_embeddings is not None
    parts = [ranker.featurization(*(values.double() for values in inputs()[:2]))]
    parts += [torch.nn.functional.layer_norm(embedding.double(), (4,)) for embedding in inputs()[2:]]
    parts += ranker.small_embeddings(discrete()).split([3, 2], dim=1)
    vectors = [ranker.backbone.bottom_mlp(parts[0]), *parts[1:4]]
    projections = list(ranker.backbone.projections.parameters())
    assert [list(projection.shape) for projection in projections] == [[4, 3], [4, 2]]
    vectors += [part @ projection.T for part, projection in zip(parts[4:], projections, strict=True)]
    products = [(vectors[i] * vectors[j]).sum(1, keepdim=True) for i in range(6) for j in range(i)]
    expected = ranker.backbone.top_mlp(torch.cat([vectors[0], *products], dim=1))
    torch.testing.assert_close(ranker.backbone(torch.cat(parts, dim=1)), expected)


@pytest.mark.parametrize(
    ("overrides", "widths"),
    [
        ((f"model.backbone={DLRM}",), FeatureWidths(6, 3, {})),
        (
            (
                "model.tasks[recap.engagement.is_replied]={dlrm_config: "
                "{bottom_mlp: {layer_sizes: [3]}, top_mlp: {layer_sizes: [1]}}}",
            ),
            WIDTHS,
        ),
    ],
    ids=["no embeddings", "the towers see only the backbone's output"],
)
def test_a_dlrm_without_embeddings_is_an_error(overrides: Sequence[str], widths: FeatureWidths) -> None:
    with pytest.raises(ConfigError, match=r"dlrm_config .*embeddings.* share_none or share_partial"):
        build(overrides=overrides, widths=widths)


@pytest.mark.parametrize("task", ["recap.engagement.is_favorited", "recap.engagement.is_video_playback_50"])
def test_parameters_are_named_by_task(task: str) -> None:
    assert any(f"towers.{task.replace('.', '/')}." in name for name in build().state_dict())
