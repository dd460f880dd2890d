import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from common.modules.config import BatchNormConfig, LayerNormConfig
from projects.home.recap.model.config import (
    ClipLog1pAbsConfig,
    DoubleNormLogConfig,
    FeaturizationConfig,
    Log1pAbsConfig,
    ZScoreLogConfig,
)
from projects.home.recap.model.features import Featurization
from tests.support.export import forget_precision


def test_log1p_abs_takes_the_logarithm_only() -> None:
    config = FeaturizationConfig(log1p_abs_config=Log1pAbsConfig())
    features = Featurization(3, 2, config)
    continuous = torch.tensor([[0.0, math.e - 1, 1 - math.e], [-3e38, math.inf, math.nan]])
    outputs = features(continuous, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    expected = torch.tensor([[0.0, 1.0, -1.0, 1.0, 0.0], [-math.log(3e38), 0.0, 0.0, 0.0, 1.0]])
    torch.testing.assert_close(outputs, expected)
    assert list(features.parameters()) == []


def test_clip_log1p_abs_clips_before_the_logarithm() -> None:
    config = FeaturizationConfig(clip_log1p_abs_config=ClipLog1pAbsConfig(clip_magnitude=7.0))
    continuous = torch.tensor([[7.5, -1e30, 1.0], [6.5, -7.0, math.nan]])
    outputs = Featurization(3, 2, config)(continuous, torch.ones(2, 2))
    expected = torch.tensor([[8.0, 1 / 8.0, 2.0], [7.5, 1 / 8.0, 1.0]]).log()
    torch.testing.assert_close(outputs, torch.cat([expected, torch.ones(2, 2)], dim=1))


def featurization(config: DoubleNormLogConfig, concat: list[str] | None = None) -> Featurization:
    names = ["binary"] if concat is None else concat
    return Featurization(3, 2, FeaturizationConfig(double_norm_log_config=config, feature_names_to_concat=names))  # type: ignore[arg-type]


def test_double_norm_log_keeps_the_sign_and_clamps_the_logarithm() -> None:
    features = featurization(DoubleNormLogConfig(clip_magnitude=2.0))
    continuous = torch.tensor([[0.0, math.e - 1, -(math.e - 1)], [1e30, -1e30, 1.0]])
    outputs = features(continuous, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    expected = torch.tensor([[0.0, 1.0, -1.0, 1.0, 0.0], [2.0, -2.0, math.log(2.0), 0.0, 1.0]])
    torch.testing.assert_close(outputs, expected)


def test_non_finite_values_become_zero() -> None:
    features = featurization(DoubleNormLogConfig(batch_norm_config=BatchNormConfig()))
    bad = torch.tensor([[math.nan, math.inf, -math.inf], [1.0, 2.0, 3.0]])
    good = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    binary = torch.zeros(2, 2)
    torch.testing.assert_close(features(bad, binary), features(good, binary))
    assert all(buffer.isfinite().all() for buffer in features.buffers())


def test_batch_norm_comes_before_the_clamp_and_layer_norm_last() -> None:
    config = DoubleNormLogConfig(
        batch_norm_config=BatchNormConfig(), clip_magnitude=0.5, layer_norm_config=LayerNormConfig(epsilon=0.0)
    )
    features = featurization(config).double()
    continuous = torch.randn(8, 3, dtype=torch.float64).exp()
    binary = torch.ones(8, 2, dtype=torch.float64)
    logs = continuous.log1p()
    normed = (logs - logs.mean(0)) / (logs.var(0, unbiased=False) + 1e-5).sqrt()
    joined = torch.cat([normed.clamp(-0.5, 0.5), binary], dim=1)
    expected = (joined - joined.mean(1, keepdim=True)) / joined.std(1, unbiased=False, keepdim=True)
    torch.testing.assert_close(features(continuous, binary), expected)


def test_a_row_of_zeros_gives_no_nan_with_epsilon_0() -> None:
    features = featurization(DoubleNormLogConfig(layer_norm_config=LayerNormConfig(epsilon=0.0)))
    assert torch.equal(features(torch.zeros(1, 3), torch.zeros(1, 2)), torch.zeros(1, 5))


def test_binary_features_can_be_excluded() -> None:
    assert featurization(DoubleNormLogConfig(), concat=[]).out_features == 3


# --- z_score_log_config ---


def z_score(
    path: Path, names: list[str] | None = None, use_batch_norm: bool = False, clip_magnitude: float = 2.0
) -> Featurization:
    """Return a featurization of three continuous features and two binary ones, whose statistics are in a file."""
    statistics = {"features": ["a", "b", "c"], "mean": [0.5, -1.0, 3.0], "std": [2.0, 0.0, 1e-9]}
    path.write_text(json.dumps(statistics))
    config = ZScoreLogConfig(analysis_path=str(path), use_batch_norm=use_batch_norm, clip_magnitude=clip_magnitude)
    return Featurization(3, 2, FeaturizationConfig(z_score_log_config=config), names)


ROWS = torch.tensor([[0.0, -2.0, 19.0], [1e9, math.nan, -1.0], [-5.0, 1.0, math.inf], [1.0, 2.0, 3.0]])


def z_scores(rows: torch.Tensor) -> NDArray[np.float64]:
    """Compute the z-scores in float64; the deviations of the second and the third feature count as 0."""
    numbers = np.nan_to_num(rows.double().numpy(), nan=0, posinf=0)
    logs = np.sign(numbers) * np.log1p(np.abs(numbers))
    scores: NDArray[np.float64] = (logs - [0.5, -1.0, 3.0]) / [2.0, 1.0, 1.0]
    return scores


def test_z_score_log_normalizes_by_the_statistics_and_then_clamps(tmp_path: Path) -> None:
    binary = torch.eye(4)[:, :2]
    outputs = z_score(tmp_path / "s.json")(ROWS, binary)
    expected = np.concatenate([z_scores(ROWS).clip(-2, 2), binary.numpy()], axis=1)
    np.testing.assert_allclose(outputs.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert np.abs(expected[:, :3]).max() == 2


def test_z_score_log_applies_batch_norm_before_the_clamp(tmp_path: Path) -> None:
    features = z_score(tmp_path / "s.json", use_batch_norm=True, clip_magnitude=1.0)
    scores = z_scores(ROWS)
    normed = (scores - scores.mean(0)) / np.sqrt(scores.var(0) + 1e-5)
    outputs = features(ROWS, torch.zeros(4, 2))
    np.testing.assert_allclose(outputs[:, :3].detach().numpy(), normed.clip(-1, 1), rtol=1e-4, atol=1e-5)
    outputs.square().sum().backward()
    assert all(parameter.grad is not None for parameter in features.parameters())


def test_z_score_log_looks_up_named_features(tmp_path: Path) -> None:
    outputs = z_score(tmp_path / "s.json", ["c", "a", "b"])(ROWS[:, [2, 0, 1]], torch.zeros(4, 2))
    np.testing.assert_allclose(outputs[:, :3].numpy(), z_scores(ROWS).clip(-2, 2)[:, [2, 0, 1]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("use_batch_norm", [False, True])
def test_z_score_log_can_be_exported_and_runs_under_autocast(tmp_path: Path, use_batch_norm: bool) -> None:
    forget_precision()
    features = z_score(tmp_path / "s.json", use_batch_norm=use_batch_norm).eval()
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(features, (ROWS, torch.ones(4, 2)), dynamic_shapes=({0: batch}, {0: batch}))
    rows = (ROWS[:3], torch.ones(3, 2))
    torch.testing.assert_close(exported.module()(*rows), features(*rows))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(features(*rows), features.float()(*rows))
