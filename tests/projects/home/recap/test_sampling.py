"""A model trained on down-sampled data predicts the probabilities before sampling, with either correction.

With one binary feature and a linear tower, the model is saturated: at its optimum it predicts, for each value of the
feature, the weighted share of positives in the stored rows, which is known in closed form.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.files.table_writer import TableWriter
from projects.home.recap.data.config import RecapDataConfig
from projects.home.recap.data.dataset import RecapDataset
from projects.home.recap.data.parquet import Widths, recap_columns, write_schema_json
from projects.home.recap.model.config import ModelConfig
from projects.home.recap.model.heavy_ranker import HeavyRanker
from projects.home.recap.model.model_and_loss import ModelAndLoss

ROWS = {0: 12_000, 1: 4_000}
"""Rows of the population by the feature's value."""
POSITIVES = {0: 480, 1: 800}
BASE_RATE = 1280 / 16_000
RATES = {"pos_downsampling_rate": 0.5, "neg_downsampling_rate": 0.05}


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, Any]:
    """Write the data left after sampling exact shares of positives and negatives; return its configuration."""
    feature, label = [], []
    for value in (0, 1):
        kept = {1: int(POSITIVES[value] * 0.5), 0: int((ROWS[value] - POSITIVES[value]) * 0.05)}
        feature += [value] * sum(kept.values())
        label += [1] * kept[1] + [0] * kept[0]
    columns = recap_columns(Widths(continuous=1, binary=1), ["bought"])
    with TableWriter(tmp_path / "part.parquet", columns) as writer:
        writer.write(
            {
                "continuous": np.zeros((len(label), 1), np.float32),
                "binary": np.array(feature, np.uint8)[:, None],
                "bought": np.array(label, np.int8),
            }
        )
    write_schema_json(tmp_path / "schema.json", columns)
    assert len(label) == 1376, "a multiple of the lanes, so that one global batch holds all rows"
    return {
        "inputs": str(tmp_path / "part.parquet"),
        "global_batch_size": len(label),
        "seg_dense_schema": {"schema_path": str(tmp_path / "schema.json")},
        "tasks": {"bought": RATES},
    }


MODEL = {
    "featurization_config": {"log1p_abs_config": {}},
    "tasks": {"bought": {"mlp_config": {"layer_sizes": [1]}}},
}

TOWERS = list(ModelConfig.model_validate(MODEL).tasks.values())


def trained(data: dict[str, Any], weighted: bool) -> tuple[HeavyRanker, RecapDataset]:
    """Return the ranker at the minimum of its (convex) loss over all stored rows, and the data set."""
    config = RecapDataConfig.model_validate({**data, "weigh_loss_by_sampling_rates": weighted})
    dataset = RecapDataset.open(config, ["bought"], "train_data", evaluation=False)
    [positioned] = dataset.reader(0, 1).train(seed=0)
    torch.manual_seed(0)
    ranker = HeavyRanker(ModelConfig.model_validate(MODEL), dataset.widths, dataset.calibration_rates)
    model = ModelAndLoss(ranker, TOWERS)
    optimizer = torch.optim.LBFGS(ranker.parameters(), max_iter=100, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        value, _ = model(positioned.batch)
        value.backward()
        return float(value.detach())

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return ranker, dataset


def predictions(ranker: HeavyRanker, name: str) -> tuple[float, float]:
    """Return the predictions for feature values 0 and 1."""
    with torch.no_grad():
        zero, one = ranker(torch.zeros(2, 1), torch.tensor([[0.0], [1.0]]))[name][:, 0].tolist()
    return zero, one


def mean_over_the_population(zero: float, one: float) -> float:
    return (ROWS[0] * zero + ROWS[1] * one) / sum(ROWS.values())


@pytest.mark.parametrize("weighted", [True, False])
def test_calibrated_probabilities_are_those_before_sampling(stored: dict[str, Any], weighted: bool) -> None:
    ranker, _ = trained(stored, weighted)
    calibrated = predictions(ranker, "calibrated_probabilities")
    assert calibrated == pytest.approx([POSITIVES[value] / ROWS[value] for value in (0, 1)], rel=1e-3)
    assert mean_over_the_population(*calibrated) == pytest.approx(BASE_RATE, rel=1e-3)


def test_uncalibrated_probabilities_are_those_of_the_weighted_loss(stored: dict[str, Any]) -> None:
    as_stored = [POSITIVES[v] * 0.5 / (POSITIVES[v] * 0.5 + (ROWS[v] - POSITIVES[v]) * 0.05) for v in (0, 1)]
    assert predictions(trained(stored, weighted=False)[0], "probabilities") == pytest.approx(as_stored, rel=1e-3)
    before = [POSITIVES[value] / ROWS[value] for value in (0, 1)]
    assert predictions(trained(stored, weighted=True)[0], "probabilities") == pytest.approx(before, rel=1e-3)


def test_correcting_twice_would_miss_the_base_rate(stored: dict[str, Any]) -> None:
    """Shows that the tests above can fail."""
    ranker, dataset = trained(stored, weighted=True)
    twice = HeavyRanker(ModelConfig.model_validate(MODEL), dataset.widths, {"bought": (0.5, 0.05)})
    twice.load_state_dict(ranker.state_dict())
    assert mean_over_the_population(*predictions(twice, "calibrated_probabilities")) < 0.2 * BASE_RATE


@pytest.mark.parametrize("weighted", [True, False])
def test_evaluation_metrics_show_a_calibrated_model(stored: dict[str, Any], weighted: bool) -> None:
    """Weighted predictions and labels agree, because evaluation weights examples by the inverse sampling rates."""
    ranker, _ = trained(stored, weighted)
    config = RecapDataConfig.model_validate({**stored, "weigh_loss_by_sampling_rates": weighted})
    evaluated = RecapDataset.open(config, ["bought"], "validation_data.v", evaluation=True)
    [positioned] = evaluated.reader(0, 1).evaluate()
    with torch.no_grad():
        _, outputs = ModelAndLoss(ranker, TOWERS)(positioned.batch)
    weights = outputs["weights"].double()
    assert weights.sum().item() == pytest.approx(sum(ROWS.values()))
    for name in ("labels", "calibrated_probabilities"):
        mean = (weights * outputs[name]).sum() / weights.sum()
        assert mean.item() == pytest.approx(BASE_RATE, rel=1e-3), name
