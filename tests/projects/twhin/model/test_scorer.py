import itertools
from typing import Literal

import numpy as np
import pytest
import torch

from projects.twhin.data.relations import SIDES
from projects.twhin.model.relations import build_relations
from projects.twhin.model.scorer import EdgeScorer
from tests.support.toy_twhin import MIXED, edge_batch, model_config, relation, score, scorer_of, table_rows

OperatorSides = Literal["both", "lhs", "rhs"]
Comparator = Literal["dot", "cos", "l2"]


@pytest.mark.parametrize("operator_sides", ["both", "lhs", "rhs"])
@pytest.mark.parametrize("comparator", ["dot", "cos", "l2"])
def test_scores_equal_the_closed_form(operator_sides: OperatorSides, comparator: Comparator):
    """Edges of every relation are scored against every entity, on both sides."""
    config = model_config(operator_sides=operator_sides, comparator=comparator)
    scorer, tables, relations = scorer_of(config), table_rows(config), build_relations(config)
    batch = edge_batch(relations, [(lhs, rel, lhs + 3) for rel, lhs in itertools.product(range(len(MIXED)), (0, 2))])
    ids = {"lhs": batch.lhs, "rhs": batch.rhs}
    start = 0
    for segment, size in zip(relations.segments, batch.segment_sizes, strict=True):
        edges = slice(start, start + size)
        start += size
        for side, other in zip(SIDES, SIDES[::-1], strict=True):
            query = scorer.query(side, segment, tables[segment.table(other)][ids[other][edges]], batch.rel[edges])
            candidates = scorer.candidates(side, segment, tables[segment.table(side)])
            scores = scorer.comparator.all_pairs(query, candidates)
            assert scores.shape == (size, config.tables[segment.table(side)].num_embeddings)
            for (row, lhs), rel, rhs in zip(
                enumerate(batch.lhs[edges].tolist()), batch.rel[edges].tolist(), batch.rhs[edges].tolist(), strict=True
            ):
                for entity in range(scores.shape[1]):
                    edge = (entity, rel, rhs) if side == "lhs" else (lhs, rel, entity)
                    expected = score(config, scorer, tables, edge, side)
                    np.testing.assert_allclose(scores[row, entity].item(), expected, rtol=1e-8, atol=1e-6)


def test_there_is_one_parameter_per_side_operator_and_dimension():
    names = dict(EdgeScorer(model_config(), build_relations(model_config())).named_parameters())
    operators = ("translation_6", "diagonal_6", "complex_diagonal_6", "linear_6")
    assert sorted(names) == sorted(f"operators.{side}.{name}.weight" for side in SIDES for name in operators)
    assert names["operators.lhs.translation_6.weight"].shape == (2, 6)
    for side in SIDES:
        config = model_config(operator_sides=side)
        assert {name.split(".")[1] for name, _ in EdgeScorer(config, build_relations(config)).named_parameters()} == {
            side
        }


def test_identities_have_no_parameters():
    config = model_config([relation("block", "user", "user", "identity")])
    assert not list(EdgeScorer(config, build_relations(config)).parameters())


def test_without_edges_every_parameter_gets_a_zero_gradient():
    config = model_config()
    scorer, relations = scorer_of(config), build_relations(config)
    count = len(relations.segments)
    empty = [torch.empty(0, 6, dtype=torch.float64)] * count
    none = [torch.empty(0, dtype=torch.int64)] * count
    for side in SIDES:
        torch.autograd.backward(torch.cat(scorer.queries(side, relations.segments, empty, none)).sum())
    for parameter in scorer.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()
