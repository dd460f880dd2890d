"""Answers of the program equal those of a loop over queries and candidates."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from projects.twhin.data.relations import Side
from projects.twhin.data.vocabulary import write_vocabulary
from projects.twhin.model.config import TwhinModelConfig
from projects.twhin.predict.__main__ import main
from tests.support.saved_twhin import with_vocabulary, write_run
from tests.support.toy_twhin import MIXED, model_config, random_edges, relation, score, scorer_of, table_rows

USERS = [f"u{row}" for row in range(9)]  # the table has 11 rows
COUNTS = {"user": 9, "tweet": 7}
Query = tuple[Side, int, int]
"""Side of the answers, relation, and row of the given entity."""


def name_of(table: str, row: int) -> str:
    return USERS[row] if table == "user" else str(row)


def expected_answers(
    config: TwhinModelConfig,
    tables: Mapping[str, torch.Tensor],
    query: Query,
    known: Sequence[tuple[int, int, int]],
    k: int,
) -> list[tuple[int, float]]:
    """Return the answers to a query and their scores. Scores that differ by less than 1e-9 are equal."""
    side, rel, given = query
    relations = config.relation_list[rel]
    table, other = (relations.lhs, relations.rhs) if side == "lhs" else (relations.rhs, relations.lhs)
    scorer = scorer_of(config).float()
    wide = {name: rows.detach().double() for name, rows in tables.items()}
    found = []
    for candidate in range(COUNTS[table]):
        edge = (candidate, rel, given) if side == "lhs" else (given, rel, candidate)
        if edge not in known and not (table == other and candidate == given):
            found.append((candidate, score(config, scorer, wide, edge, side)))
    return sorted(found, key=lambda each: (-round(each[1], 9), each[0]))[:k]


def write_queries(path: Path, config: TwhinModelConfig, queries: Sequence[Query]) -> Path:
    columns: dict[str, list[str | None]] = {"head": [], "relation": [], "tail": []}
    for side, rel, given in queries:
        relations = config.relation_list[rel]
        columns["relation"].append(relations.name)
        columns["head"].append(None if side == "lhs" else name_of(relations.lhs, given))
        columns["tail"].append(None if side == "rhs" else name_of(relations.rhs, given))
    pq.write_table(pa.table(columns), path, row_group_size=5)
    return path


def every_query(config: TwhinModelConfig) -> list[Query]:
    """Return all queries of all relations, in a random order."""
    queries: list[Query] = []
    for rel, each in enumerate(config.relation_list):
        queries += [("rhs", rel, row) for row in range(COUNTS[each.lhs])]
        queries += [("lhs", rel, row) for row in range(COUNTS[each.rhs])]
    return [queries[index] for index in np.random.default_rng(0).permutation(len(queries))]


def run_program(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments)])
    assert main() == 0


def predicted(path: Path, num_queries: int) -> list[list[dict[str, Any]]]:
    """Return the rows of predictions.parquet by query."""
    rows: list[list[dict[str, Any]]] = [[] for _ in range(num_queries)]
    for row in pq.read_table(path).to_pylist():
        rows[row["query"]].append(row)
    return rows


def assert_answers(
    rows: list[dict[str, Any]], config: TwhinModelConfig, query: Query, expected: list[tuple[int, float]]
) -> None:
    side, rel, given = query
    each = config.relation_list[rel]
    assert [row["rank"] for row in rows] == list(range(1, len(expected) + 1))
    assert [row[side] for row in rows] == [entity for entity, _ in expected]
    assert [row["score"] for row in rows] == pytest.approx([value for _, value in expected], rel=1e-9, abs=1e-9)
    for row in rows:
        assert row["predicted"] == {"lhs": "head", "rhs": "tail"}[side]
        assert (row["rel"], row["relation"], row["rhs" if side == "lhs" else "lhs"]) == (rel, each.name, given)
        assert row["head"] == name_of(each.lhs, row["lhs"])
        assert row["tail"] == name_of(each.rhs, row["rhs"])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Leave partial blocks of queries, candidates and answers."""
    for name, size in {"TILE_QUERIES": 3, "TILE_CANDIDATES": 2, "BLOCK_QUERIES": 40, "ANSWER_EMBEDDINGS": 30}.items():
        monkeypatch.setattr(f"projects.twhin.predict.top_k._{name}", size)


@pytest.mark.parametrize("comparator", ["dot", "cos", "l2"])
@pytest.mark.parametrize("sides", ["both", "lhs", "rhs"])
def test_answers_equal_a_loop_over_candidates_for_all_operators(tmp_path, monkeypatch, sides, comparator):
    write_vocabulary(vocabulary := tmp_path / "vocabulary" / "user.parquet", pa.array(USERS))
    config = with_vocabulary(model_config(operator_sides=sides, comparator=comparator), vocabulary)
    checkpoint = write_run(tmp_path / "run", config)
    known = random_edges(config, 300)
    for name, part in {"a": known[:100], "b": known[100:]}.items():
        columns = {key: [edge[index] for edge in part] for index, key in enumerate(("lhs", "rel", "rhs"))}
        pq.write_table(pa.table(columns), tmp_path / f"known-{name}.parquet")
    queries = every_query(config)
    path = write_queries(tmp_path / "queries.parquet", config, queries)
    known_files = tmp_path / "known-a.parquet", tmp_path / "known-b.parquet"
    options = ["--checkpoint", checkpoint, "--queries", path, "--k", 4, "--known", *known_files]
    run_program(monkeypatch, *options, "--out", tmp_path / "out")
    tables = {name: rows.float() for name, rows in table_rows(config).items()}
    found = predicted(tmp_path / "out" / "predictions.parquet", len(queries))
    lengths = set()
    for query, rows in zip(queries, found, strict=True):
        expected = expected_answers(config, tables, query, known, 4)
        assert_answers(rows, config, query, expected)
        lengths.add(len(expected))
    assert max(lengths) == 4
    assert min(lengths) < 4, "some queries have fewer candidates"


@pytest.mark.parametrize("comparator", ["dot", "cos", "l2"])
@pytest.mark.parametrize("k", [1, 3, 5, 100])
def test_equal_scores_are_ordered_by_row(tmp_path, monkeypatch, comparator, k):
    relations = [each for each in MIXED if each.operator != "linear"]
    write_vocabulary(vocabulary := tmp_path / "vocabulary" / "user.parquet", pa.array(USERS))
    config = with_vocabulary(model_config(relations, comparator=comparator), vocabulary)
    tables = {name: rows.detach().float() for name, rows in table_rows(config).items()}
    for rows in tables.values():
        rows[1::2] = rows[1].clone()
    checkpoint = write_run(tmp_path / "run", config, tables=tables)
    queries = every_query(config)
    path = write_queries(tmp_path / "queries.parquet", config, queries)
    run_program(monkeypatch, "--checkpoint", checkpoint, "--queries", path, "--k", k, "--out", tmp_path / "out")
    found = predicted(tmp_path / "out" / "predictions.parquet", len(queries))
    for query, answers in zip(queries, found, strict=True):
        assert_answers(answers, config, query, expected_answers(config, tables, query, [], k))


@pytest.mark.parametrize("comparator", ["dot", "cos", "l2"])
def test_equal_rows_tie_wherever_they_are_in_a_block(tmp_path, monkeypatch, comparator):
    """A matrix product may round equal rows differently."""
    monkeypatch.setattr("projects.twhin.predict.top_k._TILE_CANDIDATES", 1003)
    config = model_config([relation("fav", "user", "user", "identity")], dim=33, comparator=comparator)
    config.embeddings.tables[0].__dict__["num_embeddings"] = 3005
    rows = torch.randn(1, 33, generator=torch.Generator().manual_seed(0)).repeat(3005, 1)
    checkpoint = write_run(tmp_path / "run", config, tables={"user": rows, "tweet": torch.ones(7, 33)})
    heads = [option for head in (0, 1, 1500) for option in ("--head", head)]
    options = ["--checkpoint", checkpoint, *heads, "--relation", "fav", "--k", 20, "--out", tmp_path / "out"]
    run_program(monkeypatch, *options)
    found = predicted(tmp_path / "out/predictions.parquet", 3)
    for head, answers in zip((0, 1, 1500), found, strict=True):
        assert [row["rhs"] for row in answers] == [row for row in range(21) if row != head][:20]


def test_nonfinite_embeddings_are_skipped(tmp_path, monkeypatch):
    config = model_config([relation("fav", "user", "tweet", "identity")])
    tables = {name: torch.ones(rows, 6) for name, rows in {"user": 11, "tweet": 7}.items()}
    tables["tweet"][2] = torch.nan
    tables["tweet"][3, 0] = torch.inf
    tables["user"][1] = -torch.inf
    checkpoint = write_run(tmp_path / "run", config, tables=tables)
    options = ["--checkpoint", checkpoint, "--head", 0, "--head", 1, "--relation", "fav", "--out", tmp_path / "out"]
    run_program(monkeypatch, *options)
    good, bad = predicted(tmp_path / "out/predictions.parquet", 2)
    assert [row["rhs"] for row in good] == [0, 1, 4, 5, 6]
    assert bad == []
