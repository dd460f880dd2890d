"""MetricsConfig: which thresholds are valid."""

import pydantic
import pytest

from core.metrics.config import MetricsConfig


@pytest.mark.parametrize("thresholds", [[0.0], [1.0], [-0.5], [0.5, 0.5]])
def test_thresholds_must_be_distinct_probabilities(thresholds):
    with pytest.raises(pydantic.ValidationError):
        MetricsConfig(thresholds=thresholds)


def test_the_list_of_thresholds_can_be_empty():
    assert MetricsConfig(thresholds=[]).thresholds == []
