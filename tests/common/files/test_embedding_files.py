from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.files.embedding_files import EmbeddingFile, comparable, embedding_tables, write_embeddings
from common.reader.files import DataError
from tests.support.damage import overwrite_page


def values(rows: int, dim: int = 4) -> np.ndarray[Any, Any]:
    return np.random.default_rng(rows).standard_normal((rows, dim), np.float32)


def read(file: EmbeddingFile) -> tuple[list[int], np.ndarray[Any, Any]]:
    blocks = list(file.blocks())
    assert [block.start for block in blocks] == np.cumsum([0, *(len(block.indices) for block in blocks)])[:-1].tolist()
    return np.concatenate([b.indices for b in blocks]).tolist(), np.concatenate([b.values for b in blocks])


@pytest.mark.parametrize(
    "entities", [["a", "ü", "c"], [7, -1, 2**62], np.array([7, 2**63, 2**64 - 1], np.uint64), None]
)
def test_written_embeddings_are_read_back(tmp_path, entities):
    path = tmp_path / "user.parquet"
    write_embeddings(path, None if entities is None else pa.array(entities), stored := values(3))
    file = EmbeddingFile(path)
    assert (file.num_rows, file.dim, file.is_named) == (3, 4, entities is not None)
    assert file.entities().to_pylist() == (list(entities) if entities is not None else [0, 1, 2])
    indices, found = read(file)
    assert indices == [0, 1, 2]
    assert found.dtype == np.float32
    assert np.array_equal(found, stored)


def test_other_tools_read_ordinary_columns(tmp_path):
    write_embeddings(path := tmp_path / "user.parquet", pa.array(["a", "b"]), stored := values(2))
    table = pq.read_table(path)
    assert table.column_names == ["entity", "index", "embedding"]
    assert [str(field.type) for field in table.schema][:2] == ["string", "int64"]
    assert table.column("embedding").to_pylist() == stored.tolist()


def test_row_groups_have_bounded_size_and_float16_becomes_float32(tmp_path):
    stored = values(5000, 1024).astype(np.float16)
    write_embeddings(path := tmp_path / "user.parquet", None, stored)
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(group).num_rows for group in range(3)] == [2048, 2048, 904]
    indices, found = read(EmbeddingFile(path))
    assert indices == list(range(5000))
    assert np.array_equal(found, stored.astype(np.float32))
    # Only the row groups that contain one of the rows are read.
    assert [block.start for block in EmbeddingFile(path).blocks(np.array([4999, 5, 4096]))] == [0, 4096]


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float16(), 2)])
def test_files_from_other_tools_are_read(tmp_path, kind):
    embeddings = pa.array([[1.0, 2.5], [3.0, -4.0]]).cast(kind)
    indices = pa.array([1, 0], pa.int32())
    pq.write_table(pa.table({"embedding": embeddings, "index": indices, "entity": ["x", "y"]}), tmp_path / "a.parquet")
    file = EmbeddingFile(tmp_path / "a.parquet")
    assert file.is_named
    found, rows = read(file)
    assert found == [1, 0]
    assert rows.tolist() == [[1.0, 2.5], [3.0, -4.0]]


def test_embedding_tables_of_a_directory_and_of_a_file(tmp_path):
    for name in ("user", "tweet", ".hidden"):
        write_embeddings(tmp_path / f"{name}.parquet", None, values(2))
    assert embedding_tables(tmp_path) == {name: tmp_path / f"{name}.parquet" for name in ("tweet", "user")}
    assert embedding_tables(tmp_path / "user.parquet") == {"user": tmp_path / "user.parquet"}
    assert embedding_tables(tmp_path / "nothing") == {}


GOOD = {"entity": ["x", "y"], "index": [0, 1], "embedding": [[1.0, 2.0], [3.0, 4.0]]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding": None}, "no column 'embedding'"),
        ({"index": [0.5, 1.0]}, "column 'index': found double, expected integers"),
        ({"entity": [0.5, 1.0]}, "column 'entity': found double, expected strings or integers"),
        ({"embedding": [1.0, 2.0]}, "column 'embedding': found double, expected lists of floats"),
        ({"embedding": [[], []]}, "column 'embedding': found empty lists"),
        ({"embedding": [["a"], ["b"]]}, "column 'embedding': found list<element: string>, expected numbers"),
        ({"entity": [], "index": pa.array([], pa.int64()), "embedding": []}, "the file has no rows"),
    ],
)
def test_invalid_footer_is_refused(tmp_path, changes, message):
    columns: dict[str, Any] = {name: column for name, column in (GOOD | changes).items() if column is not None}
    if columns["entity"] == []:
        columns |= {"entity": pa.array([], pa.string()), "embedding": pa.array([], pa.list_(pa.float32()))}
    pq.write_table(pa.table(columns), path := tmp_path / "a.parquet")
    with pytest.raises(DataError) as caught:
        EmbeddingFile(path)
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"embedding": [[1.0, 2.0], [3.0]]},
            "row group 0, row 1 (both counted from 0): column 'embedding': found a list of 1 values",
        ),
        ({"index": [0, None]}, "row group 0, row 1 (both counted from 0): column 'index': found null"),
        ({"entity": ["x", "x"]}, "column 'entity': 'x' appears more than once"),
        ({"entity": ["x", None]}, "row 1 (counted from 0): column 'entity': found null"),
    ],
)
def test_invalid_rows_are_refused(tmp_path, changes, message):
    pq.write_table(pa.table(GOOD | changes), path := tmp_path / "a.parquet")

    def read_all() -> None:
        read(file := EmbeddingFile(path))
        file.entities()

    with pytest.raises(DataError) as caught:
        read_all()
    assert message in str(caught.value)


def test_path_without_an_embedding_file_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_text("x")
    for path, found in (
        (tmp_path / "a.parquet", "cannot read this file as an embedding file: "),
        (tmp_path / "missing.parquet", r"no such file \(current directory: /"),
        (tmp_path, r"this is a directory; .*\*.parquet files in it: a.parquet$"),
    ):
        with pytest.raises(DataError, match=f"^{path}: {found}"):
            EmbeddingFile(path)


@pytest.mark.parametrize("column", ["entity", "index", "embedding"])
def test_an_overwritten_page_is_an_error(tmp_path, column):
    write_embeddings(path := tmp_path / "a.parquet", pa.array(["x", "y", "z"]), values(3))
    overwrite_page(path, column)

    def read_all() -> None:
        read(file := EmbeddingFile(path))
        file.entities()

    with pytest.raises(DataError, match=f"^{path}: cannot read "):
        read_all()


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        (pa.array([1], pa.int8()), pa.array([1], pa.uint32()), pa.int64()),
        (pa.array([2**64 - 1], pa.uint64()), pa.array([2**64 - 1], pa.uint64()), pa.uint64()),
        (pa.array([2**63 - 1]), pa.array([2**63 - 1], pa.uint64()), pa.large_string()),
        (pa.array([-(2**63)]), pa.array(["-9223372036854775808"]), pa.large_string()),
        (pa.array(["ü"]), pa.array(["ü"], pa.large_string()), pa.large_string()),
    ],
)
def test_comparable_entities_have_one_type_and_keep_their_values(first, second, kind):
    one, other = comparable(first, second)
    assert one.type == other.type == kind
    assert one.equals(other)
    assert str(one[0].as_py()) == str(first[0].as_py())
