"""PositionDebias alone and within the Heavy Ranker."""

import dataclasses

import pytest
import torch

from common.errors import ConfigError
from common.features.layout import FeatureLayout, Lookup
from projects.home.recap.data.schema import FeatureWidths
from projects.home.recap.model.config import PositionDebiasConfig
from projects.home.recap.model.feature_tables import FeatureTables
from projects.home.recap.model.heavy_ranker import HeavyRanker
from projects.home.recap.model.position_debias import PositionDebias, check_position_index, without_position
from tests.projects.home.recap.model.test_feature_tables import IDS, layout, table
from tests.projects.home.recap.model.test_heavy_ranker import build, discrete, inputs, model_config
from tests.support.export import forget_precision

DEBIASED = "model.position_debias_config={position_feature_index: 1, max_position: 5, num_dims: 3}"


def debias(drop_probability: float = 0.0) -> PositionDebias:
    torch.manual_seed(0)
    return PositionDebias(
        PositionDebiasConfig(position_feature_index=1, max_position=3, num_dims=2, drop_probability=drop_probability)
    )


def test_training_looks_up_positions_and_later_ones_share_the_last_embedding() -> None:
    module = debias()
    positions = torch.tensor([[9, 0], [9, 2], [9, 3], [9, 4], [9, 2**40], [9, -1]])
    outputs = module(positions, None, 6)
    weight = module.positions.weight
    assert weight.shape == (4, 2)
    expected = torch.stack([weight[0], weight[2], weight[3], weight[3], weight[3], torch.zeros(2)])
    assert torch.equal(outputs, expected)
    narrow = torch.tensor([[9, 2]], dtype=torch.uint8)
    assert torch.equal(module(narrow, None, 1), weight[2:3])


def test_positions_are_dropped_with_the_configured_probability() -> None:
    module = debias(0.3)
    outputs = module(torch.full((10_000, 2), 2), None, 10_000)
    kept = (outputs == module.positions.weight[2]).all(1)
    assert torch.equal(outputs[~kept], torch.zeros(int((~kept).sum()), 2))
    # Five standard deviations of the share.
    assert kept.float().mean().item() == pytest.approx(0.7, abs=5 * (0.3 * 0.7 / 10_000) ** 0.5)


def test_gradients_reach_only_positions_that_are_kept() -> None:
    module = debias()
    module(torch.tensor([[0, 1], [0, 3], [0, 8], [0, -4]]), None, 4).sum().backward()
    gradient = module.positions.weight.grad
    assert gradient is not None
    assert gradient.tolist() == [[0, 0], [1, 1], [0, 0], [2, 2]]


def test_evaluation_does_not_depend_on_the_position() -> None:
    ranker = build(overrides=[DEBIASED])
    outputs = ranker(*inputs(), discrete())["logits"]
    assert torch.equal(outputs, ranker(*inputs(), discrete() + 1)["logits"])
    assert torch.equal(outputs, ranker(*inputs())["logits"]), "a request has no position"


def test_training_depends_on_the_position() -> None:
    ranker = build(overrides=[DEBIASED]).train()
    logits = []
    for shift in (0, 0, 1):
        torch.manual_seed(0)
        logits.append(ranker(*inputs(), discrete() + shift)["logits"])
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])
    logits[0].sum().backward()
    assert ranker.position_debias is not None
    assert all(parameter.grad is not None for parameter in ranker.parameters())
    with pytest.raises(AssertionError, match="discrete is required in training"):
        ranker(*inputs())


def test_zeros_stand_for_a_dropped_position_in_both_modes() -> None:
    """Without batch norm and dropout, training on a dropped position and evaluation give the same logits."""
    plain = "model.tasks={a: {mlp_config: {layer_sizes: [4, 1]}}}"
    rest = ["model.score_weights=null", "train_data.tasks={a: {}}", "validation_data={}"]
    rest += ["optimizer={adam: {}, single_task_learning_rate: {constant: 0.1}}"]
    norm = "model.featurization_config={log1p_abs_config: {}}"
    ranker = build(overrides=[DEBIASED, plain, norm, *rest])
    dropped = torch.full((5, 2), -1)
    torch.testing.assert_close(ranker.train()(*inputs(), dropped)["logits"], ranker.eval()(*inputs())["logits"])


def test_bfloat16_autocast_trains_and_evaluates() -> None:
    ranker = build(overrides=[DEBIASED])
    with torch.autocast("cpu", torch.bfloat16):
        evaluated = ranker(*inputs(), discrete())["logits"]
        trained = ranker.train()(*inputs(), discrete())["logits"]
    assert evaluated.isfinite().all()
    assert trained.isfinite().all()


@pytest.mark.parametrize(("width", "found"), [(1, "1 discrete features"), (0, "no discrete features")])
def test_a_position_beyond_the_discrete_features_is_an_error(width: int, found: str) -> None:
    config = PositionDebiasConfig(position_feature_index=1)
    with pytest.raises(ConfigError, match=rf"position_feature_index is 1 .*train_data has {found}"):
        check_position_index(config, FeatureWidths(6, 4, {}, width), "train_data")
    check_position_index(config, FeatureWidths(6, 4, {}, 2), "train_data")


# --- A position among the configured features ---

NAMED = PositionDebiasConfig(position_feature="last position", max_position=3, num_dims=2, drop_probability=0.0)


def with_position() -> FeatureLayout:
    """Return a layout with the position between other features."""
    others = layout(replacement=0.5)
    lookups = (
        others.lookups[0],
        Lookup("last position", "position", 1),
        *(dataclasses.replace(lookup, begin=lookup.begin + 1) for lookup in others.lookups[1:]),
    )
    return dataclasses.replace(others, lookups=lookups, tables=(*others.tables, table("position", 20, 4)))


def ids_with(rows: list[int]) -> torch.Tensor:
    return torch.cat([IDS[:, :1], torch.tensor(rows, dtype=torch.int32)[:, None], IDS[:, 1:]], dim=1)


def test_a_position_of_the_features_is_its_row_without_those_of_missing_and_unknown_values() -> None:
    module = PositionDebias(NAMED, with_position())
    outputs = module(None, ids_with([0, 1, 2, 19]), 4)
    weight = module.positions.weight
    assert torch.equal(outputs, torch.stack([torch.zeros(2), torch.zeros(2), weight[0], weight[3]]))


def test_a_position_of_the_features_is_no_other_input() -> None:
    torch.manual_seed(0)
    tables = FeatureTables(*without_position(with_position(), NAMED))
    torch.manual_seed(0)
    expected = FeatureTables(layout(replacement=0.5))
    assert tables.state_dict().keys() == expected.state_dict().keys()
    for mode in (True, False):
        torch.manual_seed(1)
        outputs = tables.train(mode)(ids_with([5, 6, 7, 8]))
        torch.manual_seed(1)
        assert torch.equal(outputs, expected.train(mode)(IDS))


def test_a_table_that_the_position_shares_stays() -> None:
    shared = dataclasses.replace(with_position(), tables=layout().tables)
    lookups = [dataclasses.replace(each, table="items") if each.begin == 1 else each for each in shared.lookups]
    remaining, columns = without_position(dataclasses.replace(shared, lookups=tuple(lookups)), NAMED)
    assert [each.name for each in remaining.tables] == ["items", "a.b", "tags"]
    assert columns == [0, *range(2, 15)]


def test_the_ranker_uses_a_position_of_the_features_in_training_only() -> None:
    torch.manual_seed(0)
    own = dataclasses.replace(with_position(), continuous=("c",) * 6, edges=(None,) * 6, binary=("b",) * 3)
    config = model_config("model.score_weights=null").model_copy(update={"position_debias_config": NAMED})
    ranker = HeavyRanker(config, FeatureWidths(6, 3, {}), dict.fromkeys(config.tasks, (1.0, 1.0)), own)
    rows = [values[:4] for values in inputs()[:2]]
    logits = {}
    for mode in (True, False):
        for position in (3, 4):
            torch.manual_seed(1)
            logits[mode, position] = ranker.train(mode)(*rows, ids=ids_with([position] * 4))["logits"]
    assert not torch.equal(logits[True, 3], logits[True, 4])
    assert torch.equal(logits[False, 3], logits[False, 4])
    forget_precision()
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(
        ranker, tuple(rows), {"ids": ids_with([3] * 4)}, dynamic_shapes=[{0: batch}, {0: batch}, {0: batch}]
    )
    torch.testing.assert_close(exported.module()(*rows, ids=ids_with([9] * 4))["logits"], logits[False, 3])
    logits[True, 3].sum().backward()
    assert all(parameter.grad is not None for parameter in ranker.parameters())
