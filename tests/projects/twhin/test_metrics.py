from typing import Any

import pytest
import torch

from common.tracking.measurement import Measurement
from projects.twhin.config import TwhinConfig
from projects.twhin.data.config import TwhinDataConfig
from projects.twhin.metrics import metrics_table, partition_metrics
from projects.twhin.model.config import RankingConfig
from tests.support.toy_twhin import model_config


def measured(count: int, **options: Any) -> Measurement:
    """Return a measurement of the first `count` of three edges: one of relation 1 and two of relation 0."""
    train_data = TwhinDataConfig(data_root="x", global_batch_size=1)
    config = TwhinConfig.model_construct(model=model_config(), train_data=train_data, metrics=RankingConfig(**options))
    metrics = partition_metrics(config)(torch.device("cpu"))
    ranks = torch.tensor([[1.0, 4.0], [2.0, 2.0], [5000.0, 10.5]])[:count]
    metrics.update(
        {
            "raw_ranks": 2 * ranks,
            "filtered_ranks": ranks,
            "negatives_beaten": torch.tensor([[0.5, 1.0], [1.0, 1.0], [0.0, 0.25]])[:count],
            "relations": torch.tensor([1, 0, 0])[:count],
            "weights": torch.ones(count),
        }
    )
    return Measurement(3, "evaluate", "validation", metrics.compute(), {})


def cells(table: str) -> list[list[str]]:
    header, _, *rows = table.splitlines()
    return [line.split() for line in (header, *rows)]


def test_the_table_has_a_row_for_all_edges_and_one_per_relation_with_edges():
    assert cells(metrics_table(measured(3))) == [
        ["relation", "examples", "MRR", "Hits@1", "Hits@10", "Hits@50", "mean", "rank", "raw", "MRR", "AUC"],
        ["all", "3", "0.3909", "0.1667", "0.6667", "0.8333", "836.6", "0.1955", "0.6250"],
        ["follow", "2", "0.2739", "0.0000", "0.5000", "0.7500", "1,253.6", "0.1369", "0.5625"],
        ["fav", "1", "0.6250", "0.5000", "1.0000", "1.0000", "2.5", "0.3125", "0.7500"],
    ]


def test_without_filtered_ranks_the_table_shows_raw_ones():
    assert cells(metrics_table(measured(3, filtered=False, per_relation=False, hits_at=[2]))) == [
        ["relation", "examples", "MRR", "Hits@2", "mean", "rank", "AUC"],
        ["all", "3", "0.1955", "0.1667", "1,673.2", "0.6250"],
    ]


def test_a_dash_marks_an_unavailable_metric():
    assert cells(metrics_table(measured(0)))[1:] == [["all", "0", *"-------"]]


@pytest.mark.parametrize(("count", "is_cut"), [(30, False), (31, True), (237, True)])
def test_the_table_shows_the_30_relations_with_the_most_edges(count, is_cut):
    one = {key: value for key, value in measured(1).metrics.items() if not key.startswith("relation/")}
    metrics = dict(one)
    for index in range(count):
        metrics |= {f"relation/r{index}/{key}": value for key, value in one.items()}
        metrics[f"relation/r{index}/examples"] = index + 1
    lines = metrics_table(Measurement(3, "evaluate", "validation", metrics, {})).splitlines()
    names = [line.split()[0] for line in lines[2 : 2 + 31]]
    assert names == ["all", *(f"r{index}" for index in reversed(range(count - 30, count)))]
    assert lines[33:] == ([f"and {count - 30} more relation(s) in metrics.jsonl"] if is_cut else [])
