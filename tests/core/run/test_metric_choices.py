"""A metric that is never measured is an error that lists the metrics that are."""

from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError
from core.config.training import CheckpointKeepBestConfig, EarlyStoppingConfig
from core.run.metric_choices import check_metric_choices
from tests.support.toy import toy_components

CHOICE = {"partition": "rows", "metric": "mean/auroc", "mode": "max"}


def choices(keep_best: dict[str, str], early_stopping: dict[str, str]) -> dict[str, Any]:
    return {
        "checkpoint_max_to_keep": 2,
        "checkpoint_keep_best": CheckpointKeepBestConfig.model_validate(CHOICE | keep_best),
        "early_stopping": EarlyStoppingConfig.model_validate(CHOICE | early_stopping | {"patience": 1}),
    }


def test_metrics_that_are_measured_are_accepted(tmp_path: Path) -> None:
    check_metric_choices(toy_components(tmp_path, **choices({}, {"metric": "a/loss", "mode": "min"})))
    check_metric_choices(toy_components(tmp_path))


@pytest.mark.parametrize("key", ["checkpoint_keep_best", "early_stopping"])
@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"partition": "columns"}, ("partition is 'columns'", "partitions are: rows")),
        ({"metric": "mean/aoruc"}, ("metric is 'mean/aoruc'", "metrics of rows are: ", "mean/auroc")),
    ],
)
def test_an_unknown_partition_or_metric_is_an_error_that_lists_the_known_ones(
    tmp_path: Path, key: str, changes: dict[str, str], facts: tuple[str, ...]
) -> None:
    changed = (changes, {}) if key == "checkpoint_keep_best" else ({}, changes)
    with pytest.raises(ConfigError, match=rf"^training\.{key}\.") as raised:
        check_metric_choices(toy_components(tmp_path, **choices(*changed)))
    for fact in facts:
        assert fact in str(raised.value)
