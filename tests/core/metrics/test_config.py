import pydantic
import pytest

from core.metrics.config import MetricsConfig


@pytest.mark.parametrize("thresholds", [[0.0], [1.0], [-0.5], [0.5, 0.5]])
def test_thresholds_are_different_probabilities(thresholds):
    with pytest.raises(pydantic.ValidationError):
        MetricsConfig(thresholds=thresholds)


def test_there_may_be_none():
    assert MetricsConfig(thresholds=[]).thresholds == []
