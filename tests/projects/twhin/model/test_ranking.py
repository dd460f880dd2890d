import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import ConfigError
from projects.twhin.data.batch import EdgeBatch
from projects.twhin.data.config import TwhinDataConfig
from projects.twhin.data.evaluation_negatives import EvaluationNegatives
from projects.twhin.data.relations import SIDES, Relations, Side
from projects.twhin.model.config import RankingConfig, TwhinModelConfig
from projects.twhin.model.ranking import Candidates, rank_edges
from projects.twhin.model.relations import build_relations
from projects.twhin.model.scorer import EdgeScorer
from tests.support.toy_twhin import (
    MIXED,
    edge_batch,
    model_config,
    random_edges,
    relation,
    score,
    scorer_of,
    table_rows,
)

Edge = tuple[int, int, int]
Tables = Mapping[str, torch.Tensor]


def float32_tables(config: TwhinModelConfig) -> dict[str, torch.Tensor]:
    """Return tables in which half of the rows are copies of the other half."""
    tables = {name: rows.detach().float() for name, rows in table_rows(config).items()}
    for rows in tables.values():
        rows[len(rows) // 2 :] = rows[: len(rows) - len(rows) // 2].clone()
    return tables


def float32_scorer(config: TwhinModelConfig) -> EdgeScorer:
    return scorer_of(config).float()


def lookup_in(tables: Tables, calls: list[dict[str, int]] | None = None) -> Callable[..., dict[str, torch.Tensor]]:
    def lookup(ids: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if calls is not None:
            calls.append({table: len(rows) for table, rows in ids.items()})
        return {table: tables[table][rows] for table, rows in ids.items()}

    return lookup


def evaluation_batch(relations: Relations, edges: Sequence[Edge], known: Sequence[Edge] = (), draws: int = 5) -> Any:
    """Return a batch with negatives and known edges, as a reader builds it."""
    batch = edge_batch(relations, edges)
    config = TwhinDataConfig(data_root="x", global_batch_size=1, global_negatives=draws)
    negatives = EvaluationNegatives(config, relations, seed=3)(batch.lhs, batch.rel, batch.rhs)
    pairs: dict[Side, set[tuple[int, int]]] = {"lhs": set(), "rhs": set()}
    for position, (lhs, rel, rhs) in enumerate(edges_of(batch)):
        pairs["lhs"] |= {(position, edge[0]) for edge in known if edge[1:] == (rel, rhs)}
        pairs["rhs"] |= {(position, edge[2]) for edge in known if edge[:2] == (lhs, rel)}
    found: dict[str, torch.Tensor] = {
        side: torch.tensor(sorted(pairs[side]), dtype=torch.int64).reshape(-1, 2).T for side in SIDES
    }
    return dataclasses.replace(batch, negatives=negatives, known=found if known else {})


def edges_of(batch: EdgeBatch) -> list[Edge]:
    return [(int(a), int(b), int(c)) for a, b, c in zip(batch.lhs, batch.rel, batch.rhs, strict=True)]


def replaced(edge: Edge, side: Side, entity: int) -> Edge:
    return (entity, *edge[1:]) if side == "lhs" else (*edge[:2], entity)


def ahead_of(scores: Sequence[float], own: float) -> float:
    """Return the number of scores that are higher, ties counting half. Rounding errors are about 1e-16."""
    return sum(0.5 if abs(each - own) < 1e-9 else float(each > own) for each in scores)


def brute_force(
    config: TwhinModelConfig,
    scorer: EdgeScorer,
    tables: Tables,
    batch: EdgeBatch,
    known: Sequence[Edge] = (),
    candidates: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, torch.Tensor]:
    """Rank by a loop over edges, sides and candidates."""
    expected: dict[str, list[list[float]]] = {"raw_ranks": [], "filtered_ranks": [], "negatives_beaten": []}
    wide = {name: rows.double() for name, rows in tables.items()}
    for position, edge in enumerate(edges_of(batch)):
        ranks: dict[str, list[float]] = {key: [] for key in expected}
        for side, own in zip(SIDES, (edge[0], edge[2]), strict=True):
            table = getattr(config.relation_list[edge[1]], side)
            scores = {
                each: score(config, scorer, wide, replaced(edge, side, each), side)
                for each in range(config.tables[table].num_embeddings)
            }
            others = [each for each in (candidates[table] if candidates else scores) if each != own]
            unknown = [each for each in others if replaced(edge, side, each) not in known]
            negatives = batch.negatives[side][position].tolist()
            ranks["raw_ranks"].append(1 + ahead_of([scores[each] for each in others], scores[own]))
            ranks["filtered_ranks"].append(1 + ahead_of([scores[each] for each in unknown], scores[own]))
            ahead = ahead_of([scores[each] for each in negatives], scores[own])
            ranks["negatives_beaten"].append(1 - ahead / len(negatives))
        for key, values in ranks.items():
            expected[key].append(values)
    return {key: torch.tensor(values, dtype=torch.float64) for key, values in expected.items()}


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    for key, values in expected.items():
        assert found[key].dtype == torch.float64
        assert torch.allclose(found[key], values, rtol=0, atol=1e-12), key


@pytest.mark.parametrize("comparator", ["dot", "cos", "l2"])
@pytest.mark.parametrize("operator_sides", ["both", "lhs", "rhs"])
@pytest.mark.parametrize("count", [None, 5])
def test_equals_a_loop_over_edges_and_candidates(monkeypatch, operator_sides, comparator, count):
    # These sizes leave partial tiles and blocks of both queries and candidates.
    for name, size in {"_TILE_QUERIES": 3, "_TILE_CANDIDATES": 2, "_LOOKUP_VALUES": 24}.items():
        monkeypatch.setattr(f"projects.twhin.model.ranking.{name}", size)
    config = model_config(operator_sides=operator_sides, comparator=comparator)
    scorer, tables = float32_scorer(config), float32_tables(config)
    edges, known = random_edges(config, 30), random_edges(config, 400, seed=1)
    batch = evaluation_batch(scorer.relations, edges, known)
    candidates = Candidates(RankingConfig(candidates=count), config, seed=0)
    chosen = {table: torch.cat(list(candidates.blocks(table))).tolist() for table in config.tables}
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = rank_edges(scorer, batch, lookup_in(tables), candidates)
    expected = brute_force(config, scorer, tables, batch, known, chosen)
    assert_same(found, expected)
    assert torch.equal(found["relations"], batch.rel)
    assert torch.equal(found["weights"], batch.weights)
    # The example has ties and known edges that are ahead.
    assert (expected["raw_ranks"] % 1 == 0.5).any()
    assert (expected["raw_ranks"] > expected["filtered_ranks"]).any()


@pytest.mark.parametrize("operator_sides", ["both", "lhs"])
def test_padding_is_not_ranked(operator_sides):
    config = model_config(operator_sides=operator_sides)
    scorer, tables = float32_scorer(config), float32_tables(config)
    batch = evaluation_batch(scorer.relations, random_edges(config, 30), random_edges(config, 400, seed=1))
    padding = torch.arange(30) % 3 == 1
    candidates = Candidates(RankingConfig(), config, seed=0)
    with torch.inference_mode():
        expected = rank_edges(scorer, batch, lookup_in(tables), candidates)
        padded = dataclasses.replace(batch, weights=batch.weights.masked_fill(padding, 0.0))
        found = rank_edges(scorer, padded, lookup_in(tables), candidates)
    for key in ("raw_ranks", "filtered_ranks"):
        assert torch.equal(found[key][~padding], expected[key][~padding])
        assert (found[key][padding] == 1).all()
        assert (expected[key][padding] > 1).any()


def by_hand(comparator: str = "dot") -> tuple[TwhinModelConfig, EdgeScorer, dict[str, torch.Tensor]]:
    """Return a model without operators.

    Users 0 to 10 are at x = 0 to 10, and tweets 0 to 6 at x = 0, 2, 4, 4, 4, 8, 10. y is always 1.
    """
    config = model_config([relation("fav", "user", "tweet", "identity")], dim=2, comparator=comparator)
    x = {"user": [*range(11)], "tweet": [0, 2, 4, 4, 4, 8, 10]}
    tables = {name: torch.tensor([[float(value), 1.0] for value in values]) for name, values in x.items()}
    return config, scorer_of(config).float(), tables


def ranked(
    setup: tuple[TwhinModelConfig, EdgeScorer, Tables],
    edges: Sequence[Edge],
    known: Sequence[Edge] = (),
    **options: Any,
) -> dict[str, list[list[float]]]:
    config, scorer, tables = setup
    candidates = Candidates(RankingConfig(**options), config, seed=0)
    found = rank_edges(scorer, evaluation_batch(scorer.relations, edges, known), lookup_in(tables), candidates)
    return {key: values.tolist() for key, values in found.items()}


def test_ranks_equal_those_computed_by_hand():
    # The distances of tweets from user 4 are 4, 2, 0, 0, 0, 4, 6. Those of users from tweet 5 are 8, 7, ..., 0, 1, 2.
    known = [(4, 0, 2), (4, 0, 3), (4, 0, 5), (8, 0, 5), (9, 0, 5)]
    found = ranked(by_hand("l2"), [(4, 0, 5), (4, 0, 3)], known)
    # (4, 0, 5): tweets 1 to 4 are nearer and tweet 0 is as near; users 5 to 10 are nearer.
    # (4, 0, 3): tweets 2 and 4 are as near; no other user is as near.
    assert found["raw_ranks"] == [[7, 5.5], [1, 2]]
    # (4, 0, 5) ignores tweets 2 and 3 and users 8 and 9. (4, 0, 3) ignores tweets 2 and 5.
    assert found["filtered_ranks"] == [[5, 3.5], [1, 1.5]]


def test_the_edges_own_entity_is_not_another_known_one():
    edges = [(4, 0, 5), (10, 0, 6)]
    found = ranked(by_hand(), edges, edges)
    assert found["filtered_ranks"] == found["raw_ranks"] == [[7, 2], [1, 1]]


@pytest.mark.parametrize("comparator", ["dot", "cos", "l2"])
@pytest.mark.parametrize("value", [0.0, 0.1, float("nan")])
def test_equal_embeddings_get_the_mean_rank(comparator, value):
    config, scorer, tables = by_hand(comparator)
    alike = {name: torch.full_like(rows, value) for name, rows in tables.items()}
    found = ranked((config, scorer, alike), [(0, 0, 0), (10, 0, 3)], [(9, 0, 3), (0, 0, 6)])
    assert found["raw_ranks"] == [[6, 4], [6, 4]]
    assert found["filtered_ranks"] == [[6, 3.5], [5.5, 4]]
    assert found["negatives_beaten"] == [[0.5, 0.5], [0.5, 0.5]]


@pytest.mark.parametrize("comparator", ["dot", "cos", "l2"])
def test_equal_rows_of_a_large_table_tie(comparator):
    rows, dim = 5003, 33
    config = model_config([relation("fav", "user", "user", "translation")], dim=dim, comparator=comparator)
    config.embeddings.tables[0].__dict__["num_embeddings"] = rows
    scorer = EdgeScorer(config, build_relations(config))
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(1, dim, generator=generator).repeat(rows, 1)
    table[1::2] *= -1
    edges = [(lhs, 0, rhs) for lhs, rhs in itertools.product((0, 1, 4095, 5002), repeat=2)]
    found = ranked((config, scorer, {"user": table}), edges)
    even, odd = 2502, 2501
    for (lhs, _, rhs), ranks in zip(edges, found["raw_ranks"], strict=True):
        # Rows equal to the query come first, then the others. The own entity ties with the rows equal to it.
        expected = [
            (1 + (among - 1) / 2) if lhs % 2 == rhs % 2 else 1 + other + (among - 1) / 2
            for own in (lhs, rhs)
            for among, other in ((even, odd),) * (own % 2 == 0) + ((odd, even),) * (own % 2)
        ]
        assert ranks == expected


def test_a_nan_counts_as_a_tie():
    config, scorer, tables = by_hand("l2")
    tables["tweet"][6] = torch.nan
    assert ranked((config, scorer, tables), [(4, 0, 1)])["raw_ranks"][0][1] == 1 + 3 + 0.5


def test_a_sample_depends_on_the_seed_only():
    config = model_config()

    def drawn(seed: int) -> list[list[int]]:
        candidates = Candidates(RankingConfig(candidates=5), config, seed)
        assert [candidates.count(name) for name in config.tables] == [5, 5]
        return [torch.cat(list(candidates.blocks(name))).tolist() for name in config.tables]

    for name, ids in zip(config.tables, drawn(seed=0), strict=True):
        assert ids == sorted(set(ids))
        assert set(ids) <= set(range(config.tables[name].num_embeddings))
    assert drawn(seed=0) == drawn(seed=0) != drawn(seed=1)


def test_a_sample_that_does_not_fit_into_memory_is_refused():
    config = model_config()
    huge = [table.model_copy(update={"num_embeddings": 2**40}) for table in config.embeddings.tables]
    config = config.model_copy(update={"embeddings": config.embeddings.model_copy(update={"tables": huge})})
    with pytest.raises(ConfigError, match=r"^metrics\.candidates: drawing 1,000,000,000,000 of .* needs 8,192\.0 GiB"):
        Candidates(RankingConfig(candidates=10**12), config, seed=0)


def test_with_as_many_candidates_as_rows_all_rows_are_candidates():
    candidates = Candidates(RankingConfig(candidates=11), model_config(), seed=0)
    assert [torch.cat(list(candidates.blocks(name))).tolist() for name in ("user", "tweet")] == [
        [*range(11)],
        [*range(7)],
    ]


def test_lookups_do_not_depend_on_the_edges(monkeypatch):
    monkeypatch.setattr("projects.twhin.model.ranking._LOOKUP_VALUES", 2048 * 6)
    config = model_config(MIXED)
    config.embeddings.tables[0].__dict__["num_embeddings"] = 5000
    relations = build_relations(config)
    scorer, tables = EdgeScorer(config, relations), {"user": torch.zeros(5000, 6), "tweet": torch.zeros(7, 6)}
    kinds = []
    for edges in (random_edges(config, 12), [(1, 0, 2)] * 12, [(0, 4, 6)] * 12):
        calls: list[dict[str, int]] = []
        batch = evaluation_batch(relations, edges, draws=700)
        rank_edges(scorer, batch, lookup_in(tables, calls), Candidates(RankingConfig(), config, seed=0))
        kinds.append([list(call) for call in calls])
        assert max(max(call.values()) for call in calls) <= 2048
    assert kinds[0] == kinds[1] == kinds[2]
    assert kinds[0].count(["user"]) == 3
    assert kinds[0].count(["tweet"]) == 1


def test_without_known_edges_there_are_no_filtered_ranks():
    assert "filtered_ranks" not in ranked(by_hand(), [(4, 0, 5)])


def test_negatives_beaten_is_a_share_of_the_edges_own_negatives():
    setup = by_hand("l2")
    batch = evaluation_batch(setup[1].relations, [(4, 0, 5), (4, 0, 3)])
    negatives = {"lhs": torch.tensor([[0, 3, 8], [5, 3, 10]]), "rhs": torch.tensor([[6, 0, 3], [2, 4, 6]])}
    batch = dataclasses.replace(batch, negatives=negatives)
    found = rank_edges(setup[1], batch, lookup_in(setup[2]), Candidates(RankingConfig(), setup[0], seed=0))
    assert found["negatives_beaten"].numpy() == pytest.approx(np.array([[2 / 3, 1.5 / 3], [1, 2 / 3]]))


def test_without_negatives_there_is_no_share_of_them():
    setup = by_hand("l2")
    edges = [(4, 0, 5), (4, 0, 3)]
    batch = edge_batch(setup[1].relations, edges)
    found = rank_edges(setup[1], batch, lookup_in(setup[2]), Candidates(RankingConfig(), setup[0], seed=0))
    assert "negatives_beaten" not in found
    assert found["raw_ranks"].tolist() == ranked(setup, edges)["raw_ranks"]
