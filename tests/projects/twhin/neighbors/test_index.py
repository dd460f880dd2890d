import sys
from typing import Any

import numpy as np
import pytest

from common.errors import UserError
from common.files.embedding_files import EmbeddingFile, write_embeddings
from projects.twhin.model.config import ComparatorName
from projects.twhin.neighbors.exact import nearest
from projects.twhin.neighbors.index import NeighborIndex, build_index
from projects.twhin.neighbors.loaded import load_embeddings
from tests.support.neighbors import write_groups

ROWS = 4000
COMPARATORS: tuple[ComparatorName, ...] = ("cos", "dot", "l2")


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> EmbeddingFile:
    return write_groups(tmp_path_factory.mktemp("export") / "user.parquet", ROWS)


@pytest.fixture(scope="module")
def indexes(file: EmbeddingFile) -> dict[ComparatorName, NeighborIndex]:
    table = load_embeddings(file)
    return {comparator: build_index(table, comparator) for comparator in COMPARATORS}


@pytest.mark.parametrize("comparator", COMPARATORS)
@pytest.mark.parametrize("recall", ["0.95", "0.99"])
@pytest.mark.parametrize("from_table", [True, False])
def test_a_search_finds_the_promised_share_with_exact_scores(file, indexes, comparator, recall, from_table):
    table = load_embeddings(file)
    rows = np.arange(0, ROWS, 20)
    queries, own = table.values[rows], rows if from_table else None
    if not from_table:
        queries = queries + np.random.default_rng(1).normal(0, 0.3, queries.shape).astype(np.float32)
    found = indexes[comparator].search(queries, own, 10, recall)
    exact = nearest(file, queries, own, 10, comparator)
    hits = [set(a) & set(b) for a, b in zip(found.positions.tolist(), exact.positions.tolist(), strict=True)]
    assert sum(map(len, hits)) / (10 * len(queries)) >= float(recall) - 0.02
    score_of = [
        dict(zip(positions, scores, strict=True))
        for positions, scores in zip(exact.positions.tolist(), exact.scores.tolist(), strict=True)
    ]
    for number, (positions, scores) in enumerate(zip(found.positions.tolist(), found.scores.tolist(), strict=True)):
        assert scores == sorted(scores, reverse=True)
        assert len(set(positions)) == 10
        assert own is None or own[number] not in positions
        for position, score in zip(positions, scores, strict=True):
            assert score == pytest.approx(score_of[number].get(position, score), rel=1e-12)


@pytest.mark.parametrize("k", [1000, ROWS - 1])
def test_a_search_for_many_neighbors_finds_as_many(file, indexes, k):
    table = load_embeddings(file)
    found = indexes["l2"].search(table.values[:30], np.arange(30), k, "0.95")
    assert found.positions.min() >= 0
    assert np.isfinite(found.scores).all()


@pytest.mark.parametrize("from_table", [True, False])
def test_queries_that_are_searched_in_small_groups_get_the_same_neighbors(file, indexes, monkeypatch, from_table):
    queries, own = load_embeddings(file).values[:50], np.arange(50) if from_table else None
    together = indexes["cos"].search(queries, own, 100, "0.95")
    sizes = []
    candidates = NeighborIndex._candidates

    def counted(index: NeighborIndex, some: np.ndarray[Any, Any], *options: Any) -> np.ndarray[Any, Any]:
        sizes.append(len(some))
        return candidates(index, some, *options)

    monkeypatch.setattr(NeighborIndex, "_candidates", counted)
    monkeypatch.setattr("projects.twhin.neighbors.index._CANDIDATE_VALUES", 20_000)
    apart = indexes["cos"].search(queries, own, 100, "0.95")
    assert max(sizes) < 20
    assert np.array_equal(apart.positions, together.positions)
    assert np.array_equal(apart.scores, together.scores)


def test_more_neighbors_than_embeddings_are_marked_as_missing(file, indexes):
    table = load_embeddings(file)
    found = indexes["cos"].search(table.values[:2], np.arange(2), ROWS + 5)
    assert found.positions.shape == (2, ROWS)
    assert found.positions[:, -1].tolist() == [-1, -1]
    assert found.scores[:, -1].tolist() == [-np.inf, -np.inf]


def test_equal_embeddings_are_ordered_by_index(tmp_path):
    values = np.random.default_rng(2).standard_normal((1200, 4)).astype(np.float32)
    values[[900, 30, 4]] = values[5]
    write_embeddings(tmp_path / "a.parquet", None, values)
    table = load_embeddings(EmbeddingFile(tmp_path / "a.parquet"))
    found = build_index(table, "cos").search(values[5:6], np.array([5]), 3)
    assert found.positions.tolist() == [[4, 30, 900]]


def test_the_efforts_are_those_that_reach_the_recall(indexes):
    for index in indexes.values():
        efforts = index.facts.efforts
        assert efforts["0.95"].recall >= 0.95
        assert efforts["0.99"].recall >= 0.99
        assert efforts["0.95"].num_lists <= efforts["0.99"].num_lists <= int(ROWS**0.5)


def test_tables_that_cannot_have_an_index_are_errors(tmp_path):
    values = np.ones((1500, 2), np.float32)
    write_embeddings(tmp_path / "small.parquet", None, values[:999])
    with pytest.raises(UserError, match=r"has 999 embeddings.*at least 1,000"):
        build_index(load_embeddings(EmbeddingFile(tmp_path / "small.parquet")), "cos")
    for value in (np.nan, np.inf, 1e30):
        values[700, 1] = value
        write_embeddings(tmp_path / "bad.parquet", None, values)
        with pytest.raises(UserError, match="row 700"):
            load_embeddings(EmbeddingFile(tmp_path / "bad.parquet"))


def test_missing_faiss_is_one_message(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"needs faiss.*pip install -r requirements-serving.txt"):
        build_index(load_embeddings(file), "cos")
