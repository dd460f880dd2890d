from pathlib import Path

import pytest

from common.errors import ConfigError
from common.tracking.measurement import Measurement
from core.config import load_config_from_yaml
from projects.home.recap.config import RecapConfig
from projects.home.recap.data.dataset import RecapDataset
from projects.home.recap.data.schema import FeatureWidths
from projects.home.recap.metrics import check_kept_predictions, check_strata, metrics_table
from projects.home.recap.model.config import StratifierConfig
from tests.support.runs import small_run


def test_the_table_has_a_row_per_task_and_a_dash_for_a_missing_metric() -> None:
    metrics = {
        "recap.engagement.is_favorited/loss": 0.25,
        "recap.engagement.is_favorited/rce": 0.0,
        "recap.engagement.is_favorited/share_of_reachable_rce": 0.915,
        "recap.engagement.is_replied/loss": 0.125,
        "recap.engagement.is_replied/rce": None,
        "recap.engagement.is_replied/share_of_reachable_rce": -66.9,
        "mean/loss": 0.1875,
        "examples": 7,
    }
    header, _, *rows = metrics_table(Measurement(3, "evaluate", "validation", metrics, {})).splitlines()
    assert header.split() == ["task", "loss", "RCE", "reached"]
    assert [row.split() for row in rows] == [
        ["is_favorited", "0.2500", "0.00", "91.5%"],
        ["is_replied", "0.1250", "-", "<0%"],
        ["mean", "0.1875", "-", "-"],
    ]


@pytest.mark.parametrize(
    ("tasks", "labels"),
    [
        (["recap.engagement.liked", "recap.engagement.hidden"], ["liked", "hidden"]),
        (["recap.engagement.liked", "liked"], ["recap.engagement.liked", "liked"]),
    ],
)
def test_short_names_of_tasks_are_used_only_if_they_differ(tasks: list[str], labels: list[str]) -> None:
    metrics = {f"{task}/loss": 0.25 for task in tasks}
    rows = metrics_table(Measurement(3, "evaluate", "validation", metrics, {})).splitlines()[2:]
    assert [row.split()[0] for row in rows] == labels


def test_the_second_table_has_a_row_per_stratum_with_its_means() -> None:
    of_task = {"recap.engagement.is_replied/rce": 5.0, "recap.engagement.is_replied/calibration": 0.98}
    whole = {**of_task, "mean/rce": 5.0, "mean/auroc": 0.75, "examples": 1234567}
    metrics = {
        **whole,
        **{f"stratum/in network/{key}": value for key, value in whole.items()},
        **{f"stratum/none/{key}": None for key in whole},
        "stratum/none/examples": 0,
    }
    tasks, strata = metrics_table(Measurement(3, "evaluate", "validation", metrics, {})).split("\n\n")
    assert [line.split() for line in tasks.splitlines()[2:]] == [
        ["is_replied", "5.00", "-", "0.980"],
        ["mean", "5.00", "0.7500", "-"],
    ]
    header, _, *rows = strata.splitlines()
    assert header.split() == ["mean", "of", "tasks", "in", "stratum", "examples", "RCE", "AUROC"]
    assert [row.split() for row in rows] == [
        ["in", "network", "1,234,567", "5.00", "0.7500"],
        ["none", "0", "-", "-"],
    ]


@pytest.mark.parametrize(
    ("index", "width", "found"),
    [(4, 4, "the data has 4 discrete features"), (0, 0, "the data has no discrete features")],
)
def test_a_stratum_of_a_feature_that_the_data_lacks_is_an_error(index: int, width: int, found: str) -> None:
    strata = [StratifierConfig(name="a", index=0, value=1), StratifierConfig(name="b", index=index, value=1)]
    with pytest.raises(ConfigError, match=rf"model.stratifiers\[\d\].index is {index}\b.*{found}"):
        check_strata(strata, FeatureWidths(48, 16, {}, width))
    check_strata(strata, FeatureWidths(48, 16, {}, index + 1))


@pytest.mark.parametrize(
    ("metrics", "keys"),
    [
        ("exact: true", r"metrics\.exact"),
        ("group_by: meta__user_id", r"metrics\.group_by"),
        ("exact: true, group_by: meta__user_id", r"metrics\.exact and metrics\.group_by"),
    ],
)
def test_predictions_that_do_not_fit_into_memory_are_refused(
    recap_data: Path, tmp_path: Path, metrics: str, keys: str
) -> None:
    _, path, *settings = small_run(recap_data, tmp_path, f"metrics={{{metrics}}}", "training.num_eval_steps=-1")
    config = load_config_from_yaml(RecapConfig, path, settings[1::2])
    key_path = "validation_data.validation"
    dataset = RecapDataset.open(config.data_sets()[key_path], list(config.model.tasks), key_path, evaluation=True)
    check_kept_predictions(config, dataset, key_path)
    dataset.table.num_rows = 10**10  # without writing that many
    with pytest.raises(ConfigError, match=rf"^{keys}: keeping the predictions for 10,000,000,000 examples of .* needs"):
        check_kept_predictions(config, dataset, key_path)
    config.training.__dict__["num_eval_steps"] = 2  # only these batches are kept
    check_kept_predictions(config, dataset, key_path)
