"""MetricsConfig: which thresholds are valid."""

import pydantic
import pytest

from core.metrics.config import MetricsConfig, check_task_names


@pytest.mark.parametrize("thresholds", [[0.0], [1.0], [-0.5], [0.5, 0.5]])
def test_thresholds_must_be_distinct_probabilities(thresholds):
    with pytest.raises(pydantic.ValidationError):
        MetricsConfig(thresholds=thresholds)


def test_the_list_of_thresholds_can_be_empty():
    assert MetricsConfig(thresholds=[]).thresholds == []


@pytest.mark.parametrize("ndcg_at", [[0], [5, 10, 5]])
def test_an_invalid_ndcg_at_is_refused(ndcg_at: list[int]) -> None:
    with pytest.raises(pydantic.ValidationError, match="ndcg_at"):
        MetricsConfig(group_by="user_id", ndcg_at=ndcg_at)


def test_ndcg_at_needs_groups() -> None:
    with pytest.raises(pydantic.ValidationError, match="ndcg_at applies only to group_by"):
        MetricsConfig(ndcg_at=[5])
    assert MetricsConfig(ndcg_at=[10]).group_by is None
    assert MetricsConfig(group_by="user_id", ndcg_at=[]).ndcg_at == []


@pytest.mark.parametrize("name", ["", "mean", "stratum", "stratum/new", "stratum/"])
def test_reserved_task_names_are_refused(name):
    with pytest.raises(ValueError, match="reserved" if name else "empty"):
        check_task_names(["liked", name])


@pytest.mark.parametrize("name", [" ", "a\n", "\x01", "a\u2028b"])
def test_task_names_that_tables_cannot_show_are_refused(name):
    with pytest.raises(ValueError, match="printable"):
        check_task_names([name])


def test_other_task_names_are_allowed():
    check_task_names(["liked", "mean time", "meaning", "strata", "examples", "type", "a/mean"])
