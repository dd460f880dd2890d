"""RankingMetrics against a loop over edges and sides, and by hand."""

from typing import Any

import numpy as np
import pytest
import torch

from core.metrics.ranking import RankingMetrics

CPU = torch.device("cpu")
RELATIONS = ["fav", "reply", "never"]


def metrics_of(outputs: dict[str, torch.Tensor], parts: int = 1, **options: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {"hits_at": [1, 10], "filtered": True, "per_relation": True}
    metrics = RankingMetrics(RELATIONS, CPU, **{**defaults, **options})
    for rows in torch.arange(len(outputs["weights"])).tensor_split(parts):
        metrics.update({name: tensor[rows] for name, tensor in outputs.items()})
    return metrics.compute()


def outputs_of(count: int = 200) -> dict[str, torch.Tensor]:
    """Return random outputs. Relation 2 has only edges with weight 0."""
    generator = torch.Generator().manual_seed(0)
    filtered = torch.randint(2, 60, (count, 2), generator=generator) / 2
    relations = torch.randint(3, (count,), generator=generator)
    return {
        "filtered_ranks": filtered,
        "raw_ranks": filtered + torch.randint(5, (count, 2), generator=generator),
        "negatives_beaten": torch.rand(count, 2, generator=generator, dtype=torch.float64),
        "relations": relations,
        "weights": torch.rand(count, generator=generator) * (relations < 2),
    }


def expected_of(outputs: dict[str, torch.Tensor], rows: list[int]) -> dict[str, Any]:
    """Compute the means with a loop over edges and sides."""
    values: dict[str, list[float]] = {}
    weights = []
    rows = [row for row in rows if outputs["weights"][row] > 0]
    for row in rows:
        for side in range(2):
            weights.append(float(outputs["weights"][row]))
            values.setdefault("auc", []).append(float(outputs["negatives_beaten"][row, side]))
            for kind in ("raw", "filtered"):
                rank = float(outputs[f"{kind}_ranks"][row, side])
                values.setdefault(f"{kind}/mrr", []).append(1 / rank)
                values.setdefault(f"{kind}/mean_rank", []).append(rank)
                for k in (1, 10):
                    values.setdefault(f"{kind}/hits@{k}", []).append(rank <= k)
    return {"examples": len(rows)} | {key: np.average(value, weights=weights) for key, value in values.items()}


@pytest.mark.parametrize("parts", [1, 3, 300])
def test_metrics_are_means_over_edges_and_sides_overall_and_per_relation(parts):
    outputs = outputs_of()
    found = metrics_of(outputs, parts)
    of_relation = {name: (outputs["relations"] == rel).nonzero().flatten() for rel, name in enumerate(RELATIONS)}
    expected = expected_of(outputs, list(range(200)))
    for name in ("fav", "reply"):
        per_relation = expected_of(outputs, of_relation[name].tolist())
        expected |= {f"relation/{name}/{key}": value for key, value in per_relation.items()}
    never = {key: value for key, value in found.items() if key.startswith("relation/never/")}
    whole = [key for key in found if not key.startswith("relation/")]
    assert never == {f"relation/never/{key}": None for key in whole} | {"relation/never/examples": 0}
    assert found.keys() == expected.keys() | never.keys()
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-12)
    assert isinstance(found["examples"], int)


def test_two_edges_computed_by_hand():
    outputs = {
        "raw_ranks": torch.tensor([[2.0, 4.0], [1.0, 1.5]]),
        "filtered_ranks": torch.tensor([[1.0, 2.0], [1.0, 1.0]]),
        "negatives_beaten": torch.tensor([[0.5, 0.75], [1.0, 0.75]]),
        "relations": torch.tensor([0, 1]),
        "weights": torch.ones(2),
    }
    found = metrics_of(outputs, per_relation=False, hits_at=[1, 2])
    assert found == pytest.approx(
        {
            "examples": 2,
            "auc": 0.75,
            "filtered/mrr": 3.5 / 4,
            "filtered/mean_rank": 1.25,
            "filtered/hits@1": 0.75,
            "filtered/hits@2": 1.0,
            "raw/mrr": (1 / 2 + 1 / 4 + 1 + 1 / 1.5) / 4,
            "raw/mean_rank": 8.5 / 4,
            "raw/hits@1": 0.25,
            "raw/hits@2": 0.75,
        }
    )


def test_an_edge_with_weight_0_is_absent_whatever_its_ranks_are():
    outputs = outputs_of()
    absent = outputs["weights"] == 0
    expected = metrics_of(outputs)
    for name in ("raw_ranks", "filtered_ranks", "negatives_beaten"):
        outputs[name][absent] = torch.nan
    assert metrics_of(outputs) == expected


def test_all_metrics_are_undefined_without_edges():
    found = metrics_of({name: tensor[:0] for name, tensor in outputs_of().items()})
    assert {value for key, value in found.items() if not key.endswith("examples")} == {None}
    assert found["examples"] == found["relation/fav/examples"] == 0


def test_only_raw_metrics_are_computed_without_filtered_ranks():
    outputs = outputs_of()
    del outputs["filtered_ranks"]
    found = metrics_of(outputs, filtered=False, per_relation=False)
    assert set(found) == {"examples", "auc", "raw/mrr", "raw/mean_rank", "raw/hits@1", "raw/hits@10"}


@pytest.mark.parametrize(("filtered", "kind"), [(True, "filtered"), (False, "raw")])
def test_the_headline_uses_filtered_ranks_if_there_are_any(filtered, kind):
    metrics = RankingMetrics(RELATIONS, CPU, hits_at=[1, 10], filtered=filtered, per_relation=True)
    assert metrics.headline == (f"{kind}/mrr", f"{kind}/hits@1", f"{kind}/hits@10", "auc")
    assert set(metrics.headline) <= metrics.compute().keys()
