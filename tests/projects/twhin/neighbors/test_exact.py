from typing import Any

import numpy as np
import pytest

from common.files.embedding_files import EmbeddingFile, write_embeddings
from projects.twhin.neighbors.exact import nearest, pair_scores
from tests.support.neighbors import expected_neighbors

# A row group of 8 MiB holds 4,096 rows of this dimension, so the file has three, and the last is not full.
DIM, ROWS = 512, 9_000


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> tuple[EmbeddingFile, np.ndarray[Any, Any]]:
    values = np.random.default_rng(0).standard_normal((ROWS, DIM), np.float32)
    path = tmp_path_factory.mktemp("export") / "user.parquet"
    write_embeddings(path, None, values)
    return EmbeddingFile(path), values


@pytest.mark.parametrize("comparator", ["cos", "dot", "l2"])
def test_nearest_equals_a_full_sort(table, comparator):
    file, values = table
    own = np.array([17, 8999, 17, 4096])
    found = nearest(file, values[own], own, 7, comparator)
    for number, position in enumerate(own.tolist()):
        order, scores = expected_neighbors(values, values[position], position, 7, comparator)
        assert found.positions[number].tolist() == order
        assert found.scores[number] == pytest.approx(scores, rel=1e-12)


@pytest.mark.parametrize(
    ("comparator", "scale"), [("dot", 1e-30), ("l2", 1e-30), ("cos", 1e30), ("dot", 1e30), ("l2", 1e30)]
)
def test_tiny_and_huge_values_are_compared_exactly(tmp_path, comparator, scale):
    """Their products under- or overflow float32."""
    values = (scale * np.random.default_rng(2).standard_normal((300, 4))).astype(np.float32)
    values[::3] *= np.float32(1e-3)
    write_embeddings(tmp_path / "a.parquet", None, values)
    found = nearest(EmbeddingFile(tmp_path / "a.parquet"), values[:5], np.arange(5), 20, comparator)
    for number in range(5):
        order, _ = expected_neighbors(values, values[number], number, 20, comparator)
        assert found.positions[number].tolist() == order


def test_a_batch_equals_its_queries_one_by_one(table):
    file, values = table
    queries = np.random.default_rng(3).standard_normal((600, DIM), np.float32) + values[:600]
    together = nearest(file, queries, None, 3, "cos")
    for number in (0, 1, 300, 599):
        alone = nearest(file, queries[number : number + 1], None, 3, "cos")
        assert alone.positions[0].tolist() == together.positions[number].tolist()
        assert alone.scores[0].tolist() == together.scores[number].tolist()


@pytest.mark.parametrize("comparator", ["cos", "dot", "l2"])
def test_equal_embeddings_tie_at_any_position_and_are_ordered_by_index(tmp_path, comparator):
    rng = np.random.default_rng(1)
    values = rng.standard_normal((ROWS, DIM), np.float32)
    twins = np.sort(rng.choice(ROWS, 40, replace=False))
    values[twins] = values[twins[0]]
    write_embeddings(tmp_path / "a.parquet", None, values)
    found = nearest(EmbeddingFile(tmp_path / "a.parquet"), values[twins[:1]], None, 30, comparator)
    assert found.positions[0].tolist() == twins[:30].tolist()
    assert len(set(found.scores[0].tolist())) == 1


@pytest.mark.parametrize("comparator", ["cos", "dot", "l2"])
def test_scores_that_differ_by_rounding_only_are_compared_exactly(tmp_path, comparator):
    """Rows with the same numbers in another order have other roundings in a matrix product than in their scores."""
    rng = np.random.default_rng(4)
    row = rng.standard_normal(DIM) * 10 ** rng.uniform(-6, 6, DIM)
    values = rng.permuted(np.tile(row.astype(np.float32), (2000, 1)), axis=1)
    query = np.ones((1, DIM), np.float32)
    write_embeddings(tmp_path / "a.parquet", None, values)
    found = nearest(EmbeddingFile(tmp_path / "a.parquet"), query, None, 40, comparator)
    scores = pair_scores(values.astype(np.float64), query[0].astype(np.float64), comparator)
    assert len(np.unique(scores)) > 1
    assert found.positions[0].tolist() == np.lexsort((np.arange(2000), -scores))[:40].tolist()


def test_nonfinite_embeddings_are_skipped_and_missing_neighbors_are_marked(tmp_path):
    values = np.array([[1, 0], [np.nan, 0], [0, 0], [2, 0], [np.inf, 1]], np.float32)
    write_embeddings(tmp_path / "a.parquet", None, values)
    found = nearest(EmbeddingFile(tmp_path / "a.parquet"), values[:1], np.array([0]), 10, "cos")
    assert found.positions.tolist() == [[3, 2, -1, -1, -1]]
    assert found.scores.tolist() == [[1.0, 0.0, -np.inf, -np.inf, -np.inf]]
