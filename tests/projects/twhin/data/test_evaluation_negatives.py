import numpy as np
import torch

from projects.twhin.data.config import TwhinDataConfig
from projects.twhin.data.evaluation_negatives import EvaluationNegatives
from tests.projects.twhin.data.test_edges import TWEETS, USERS, make_edges, opened, relations, write


def negatives(count: int, seed: int = 0) -> EvaluationNegatives:
    config = TwhinDataConfig(data_root="x", global_batch_size=1, global_negatives=count)
    return EvaluationNegatives(config, relations(), seed)


def tensors(edges: dict[str, np.ndarray]) -> list[torch.Tensor]:
    return [torch.from_numpy(column) for column in edges.values()]


def test_an_edge_has_the_same_negatives_in_any_batch():
    lhs, rel, rhs = tensors(make_edges(50))
    found = negatives(7)(lhs, rel, rhs)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    for rows in order.tensor_split(6):
        for side, drawn in negatives(7)(lhs[rows], rel[rows], rhs[rows]).items():
            assert torch.equal(drawn, found[side][rows])
    assert negatives(7)(lhs[:0], rel[:0], rhs[:0])["lhs"].shape == (0, 7)


def test_negatives_differ_with_edge_side_draw_and_seed():
    edges = tensors({name: np.repeat(column, 2) for name, column in make_edges(40).items()})
    edges[1] = torch.zeros(80, dtype=torch.int64)
    edges[2][1::2] = (edges[2][1::2] + 1) % TWEETS
    found, others = negatives(50)(*edges), negatives(50, seed=1)(*edges)
    for a, b in (
        (found["lhs"][::2], found["lhs"][1::2]),  # Edges that differ in rhs only.
        (found["lhs"][:, :25], found["lhs"][:, 25:]),
        (found["lhs"] % TWEETS, found["rhs"]),
        (found["rhs"], others["rhs"]),
    ):
        # One in 500 draws is equal by chance.
        assert (a == b).double().mean() < 0.01


def test_negatives_are_uniform_over_the_table_and_never_the_edges_own_entity():
    rel = torch.zeros(20, dtype=torch.int64)
    lhs, rhs = torch.arange(20) * 45, torch.arange(20) * 25
    found = negatives(20_000)(lhs, rel, rhs)
    for side, own, rows in (("lhs", lhs, USERS), ("rhs", rhs, TWEETS)):
        assert found[side].dtype == torch.int64
        assert not (found[side] == own[:, None]).any()
        counts = torch.bincount(found[side].flatten(), minlength=rows)
        assert len(counts) == rows
        others = torch.ones(rows, dtype=torch.bool).index_fill(0, own, False)
        # Each edge draws from rows - 1 values. Chi-squared divided by its degrees of freedom is 1 +- 0.06.
        expected = torch.where(others, 20.0, 19.0) * 20_000 / (rows - 1)
        assert 0.75 < ((counts - expected).square() / expected).sum() / (rows - 1) < 1.25


def test_the_number_of_negatives_is_the_sum_of_both_kinds_and_at_least_one(tmp_path):
    path = write(tmp_path / "a.parquet", make_edges(16))
    for counts, expected in (({"global_negatives": 3, "in_batch_negatives": 2}, 5), ({}, 1)):
        dataset = opened(path, **counts)
        config = TwhinDataConfig(data_root=str(path), global_batch_size=16, **counts)
        (positioned,) = dataset.reader(0, 1, negatives=EvaluationNegatives(config, relations(), 0)).evaluate()
        assert {side: drawn.shape for side, drawn in positioned.batch.negatives.items()} == {
            "lhs": (16, expected),
            "rhs": (16, expected),
        }


def test_in_a_table_of_one_row_the_negative_is_the_edges_own_entity():
    only = relations()
    only.num_entities = {"lhs": np.ones(3, np.int64), "rhs": np.ones(3, np.int64)}
    config = TwhinDataConfig(data_root="x", global_batch_size=1, global_negatives=4)
    zero = torch.zeros(3, dtype=torch.int64)
    found = EvaluationNegatives(config, only, 0)(zero, zero, zero)
    assert not any(drawn.any() for drawn in found.values())
