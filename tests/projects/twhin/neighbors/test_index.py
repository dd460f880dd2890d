import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import UserError
from common.files.embedding_files import EmbeddingFile, write_embeddings
from projects.twhin.model.config import ComparatorName
from projects.twhin.neighbors.exact import nearest
from projects.twhin.neighbors.index import build_index, open_index
from projects.twhin.neighbors.loaded import load_embeddings

ROWS, DIM = 4000, 12
COMPARATORS: tuple[ComparatorName, ...] = ("cos", "dot", "l2")


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> EmbeddingFile:
    """Embeddings of different lengths, around 30 centers."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((30, DIM))[rng.integers(30, size=ROWS)] + 0.4 * rng.standard_normal((ROWS, DIM))
    values *= rng.lognormal(0, 0.5, (ROWS, 1))
    write_embeddings(path := tmp_path_factory.mktemp("export") / "user.parquet", None, values.astype(np.float32))
    return EmbeddingFile(path)


@pytest.fixture(scope="module")
def saved(file: EmbeddingFile, tmp_path_factory) -> dict[ComparatorName, Path]:
    """Return directories of indexes, by comparator."""
    directories = {}
    for comparator in COMPARATORS:
        directories[comparator] = tmp_path_factory.mktemp(comparator)
        build_index(load_embeddings(file), comparator).save(directories[comparator])
    return directories


@pytest.mark.parametrize("comparator", COMPARATORS)
@pytest.mark.parametrize("recall", ["0.95", "0.99"])
@pytest.mark.parametrize("from_table", [True, False])
def test_a_search_finds_the_promised_share_with_exact_scores(file, saved, comparator, recall, from_table):
    table = load_embeddings(file)
    rows = np.arange(0, ROWS, 20)
    queries, own = table.values[rows], rows if from_table else None
    if not from_table:
        queries = queries + np.random.default_rng(1).normal(0, 0.3, queries.shape).astype(np.float32)
    found = open_index(saved[comparator], table, comparator).search(queries, own, 10, recall)
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
def test_a_search_for_many_neighbors_finds_as_many(file, saved, k):
    table = load_embeddings(file)
    found = open_index(saved["l2"], table, "l2").search(table.values[:30], np.arange(30), k, "0.95")
    assert found.positions.min() >= 0
    assert np.isfinite(found.scores).all()


def test_more_neighbors_than_embeddings_are_marked_as_missing(file, saved):
    table = load_embeddings(file)
    found = open_index(saved["cos"], table, "cos").search(table.values[:2], np.arange(2), ROWS + 5)
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


def test_the_efforts_are_those_that_reach_the_recall(saved):
    efforts = {name: json.loads((path / "index.json").read_text())["efforts"] for name, path in saved.items()}
    for by_recall in efforts.values():
        assert by_recall["0.95"]["recall"] >= 0.95
        assert by_recall["0.99"]["recall"] >= 0.99
        assert by_recall["0.95"]["num_lists"] <= by_recall["0.99"]["num_lists"] <= int(ROWS**0.5)


def damage(path: Path, change: str) -> None:
    index, facts = path / "index.faiss", path / "index.json"
    content = bytearray(index.read_bytes())
    match change:
        case "flipped":
            content[len(content) // 2] ^= 1
            index.write_bytes(content)
        case "cut":
            index.write_bytes(content[:-100])
        case "no index":
            index.unlink()
        case "no facts":
            facts.unlink()
        case "facts cut":
            facts.write_text(facts.read_text()[:40])
        case "facts of another kind":
            facts.write_text("[]")
        case "effort":
            facts.write_text(facts.read_text().replace('"num_lists": ', '"num_lists": -'))
        case "format":
            facts.write_text(json.dumps(json.loads(facts.read_text()) | {"format": 2}))


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ("flipped", "index.faiss is damaged"),
        ("cut", "index.faiss is damaged"),
        ("no index", "cannot read index.faiss"),
        ("no facts", "not an index"),
        ("facts cut", "index.json is damaged"),
        ("facts of another kind", "index.json is damaged"),
        ("effort", "index.json is damaged"),
        ("format", "has the format 2"),
    ],
)
def test_damaged_and_foreign_indexes_are_errors(file, saved, tmp_path, change, fact):
    shutil.copytree(saved["cos"], tmp_path / "index")
    damage(tmp_path / "index", change)
    with pytest.raises(UserError, match=f"(?s)^--index {tmp_path}/index: .*{fact}"):
        open_index(tmp_path / "index", load_embeddings(file), "cos")


def refusal(index: Path, table: Any, comparator: Any) -> str:
    with pytest.raises(UserError) as caught:
        open_index(index, table, comparator)
    return str(caught.value)


def test_an_index_of_other_embeddings_or_another_comparator_is_refused(file, saved, tmp_path):
    table = load_embeddings(file)
    assert "was built for --comparator dot" in refusal(saved["dot"], table, "cos")
    values = table.values.copy()
    values[-1, -1] += 1
    write_embeddings(tmp_path / "a.parquet", None, values)
    assert "other embeddings" in refusal(saved["cos"], load_embeddings(EmbeddingFile(tmp_path / "a.parquet")), "cos")
    swapped = table.values[::-1].copy()
    write_embeddings(tmp_path / "b.parquet", None, swapped)
    assert "other embeddings" in refusal(saved["cos"], load_embeddings(EmbeddingFile(tmp_path / "b.parquet")), "cos")


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


def test_missing_faiss_is_one_message(file, saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    table = load_embeddings(file)
    assert "needs faiss" in refusal(saved["cos"], table, "cos")
    with pytest.raises(UserError, match=r"needs faiss.*pip install -r requirements-serving.txt"):
        build_index(table, "cos")
