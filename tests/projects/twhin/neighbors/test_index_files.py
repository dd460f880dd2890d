import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from common.files.atomic_directory import atomic_directory
from common.files.embedding_files import EmbeddingFile, write_embeddings
from projects.twhin.model.config import ComparatorName
from projects.twhin.neighbors import index_files
from projects.twhin.neighbors.index import NeighborIndex, build_index
from projects.twhin.neighbors.index_files import open_index, save_index
from projects.twhin.neighbors.loaded import load_embeddings
from tests.support.faults import full_disk
from tests.support.neighbors import write_groups


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> EmbeddingFile:
    return write_groups(tmp_path_factory.mktemp("export") / "user.parquet", 1500)


@pytest.fixture(scope="module")
def index(file: EmbeddingFile) -> NeighborIndex:
    return build_index(load_embeddings(file), "cos")


@pytest.fixture(scope="module")
def saved(index: NeighborIndex, tmp_path_factory) -> Path:
    directory: Path = tmp_path_factory.mktemp("index")
    save_index(index, directory)
    return directory


def test_a_full_disk_is_one_message(index, tmp_path):
    with (
        pytest.raises(UserError, match=f"^--out {tmp_path}/out: .*index.faiss: .*File too large"),
        full_disk(5000),
        atomic_directory(tmp_path / "out") as partial,
    ):
        save_index(index, partial)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("recall", ["0.95", "0.99"])
def test_an_index_that_was_saved_finds_the_same(file, index, saved, recall):
    opened = open_index(saved, file, "cos")
    assert opened.facts == index.facts
    queries, own = load_embeddings(file).values[:100], np.arange(100)
    for found, expected in zip(
        opened.search(queries, own, 10, recall), index.search(queries, own, 10, recall), strict=True
    ):
        assert np.array_equal(found, expected)


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
    shutil.copytree(saved, tmp_path / "index")
    damage(tmp_path / "index", change)
    with pytest.raises(UserError, match=f"(?s)^--index {tmp_path}/index: .*{fact}"):
        open_index(tmp_path / "index", file, "cos")


def refusal(index: Path, file: EmbeddingFile, comparator: ComparatorName) -> str:
    with pytest.raises(UserError) as caught:
        open_index(index, file, comparator)
    return str(caught.value)


def test_an_index_of_other_embeddings_is_refused(file, saved, tmp_path):
    values = load_embeddings(file).values.copy()
    values[-1, -1] += 1
    write_embeddings(tmp_path / "a.parquet", None, values)
    assert "other embeddings" in refusal(saved, EmbeddingFile(tmp_path / "a.parquet"), "cos")
    write_embeddings(tmp_path / "b.parquet", None, load_embeddings(file).values[::-1].copy())
    assert "other embeddings" in refusal(saved, EmbeddingFile(tmp_path / "b.parquet"), "cos")


def test_another_comparator_or_size_is_refused_before_the_embeddings_are_read(file, saved, tmp_path, monkeypatch):
    monkeypatch.setattr(index_files, "load_embeddings", None)
    assert "was built for --comparator cos" in refusal(saved, file, "dot")
    write_embeddings(tmp_path / "a.parquet", None, np.ones((1499, file.dim), np.float32))
    assert "other embeddings (1,500 of dimension 12)" in refusal(saved, EmbeddingFile(tmp_path / "a.parquet"), "cos")


def test_missing_faiss_is_one_message(file, saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert "needs faiss" in refusal(saved, file, "cos")
