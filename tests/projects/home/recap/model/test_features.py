import math

import torch

from common.modules.config import BatchNormConfig, LayerNormConfig
from projects.home.recap.model.config import (
    ClipLog1pAbsConfig,
    DoubleNormLogConfig,
    FeaturizationConfig,
    Log1pAbsConfig,
)
from projects.home.recap.model.features import Featurization


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
