from collections.abc import Hashable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.files.table_writer import TableColumn, TableError, TableWriter
from common.reader.column import Column
from common.reader.files import DataError, matching_files
from common.reader.parquet import ParquetTable
from common.reader.vectors import with_lists
from tests.support.damage import overwrite_page

COLUMNS = [TableColumn("vector", "float32", 3), TableColumn("flags", "uint8", 2), TableColumn("label", "int8")]


def rows(count: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "vector": rng.standard_normal((count, 3)).astype(np.float32),
        "flags": rng.integers(0, 2, (count, 2)).astype(np.uint8),
        "label": rng.integers(0, 2, count).astype(np.int8),
    }


@pytest.mark.parametrize("vectors", ["binary", "list"])
def test_written_rows_are_read_back(tmp_path, vectors):
    path, expected = tmp_path / "part.parquet", rows(25)
    with TableWriter(path, COLUMNS, row_group_size=10, vectors=vectors, metadata={"written by": "a test"}) as writer:
        writer.write(expected)
    stored = pq.read_table(path)
    assert pa.types.is_fixed_size_binary(stored.schema.field("vector").type) == (vectors == "binary")
    assert stored.schema.metadata[b"written by"] == b"a test"
    table = with_lists(stored)
    assert table.column("vector").to_pylist() == expected["vector"].tolist()
    assert table.column("flags").to_pylist() == expected["flags"].tolist()
    assert table.column("label").to_pylist() == expected["label"].tolist()
    assert [table.schema.field(name).type for name in ("vector", "flags", "label")] == [
        pa.list_(pa.field("element", pa.float32(), nullable=False), 3),
        pa.list_(pa.field("element", pa.uint8(), nullable=False), 2),
        pa.int8(),
    ]
    assert not any(field.nullable for field in table.schema)
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(index).num_rows for index in range(3)] == [10, 10, 5]


def test_incompressible_vectors_are_stored_uncompressed(tmp_path):
    columns = [
        TableColumn("zeros.of", "float32", 64),
        TableColumn("noise", "float32", 64),
        TableColumn("label", "int8"),
    ]
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "zeros.of": np.zeros((500, 64), np.float32),
        "noise": rng.standard_normal((500, 64)).astype(np.float32),
        "label": np.zeros(500, np.int8),
    }
    with TableWriter(tmp_path / "part.parquet", columns) as writer:
        writer.write(arrays)
    group = pq.read_metadata(tmp_path / "part.parquet").row_group(0)
    found = {group.column(index).path_in_schema: group.column(index).compression for index in range(3)}
    assert found == {"zeros.of": "ZSTD", "noise": "UNCOMPRESSED", "label": "ZSTD"}


@pytest.mark.parametrize("vectors", ["binary", "list"])
def test_file_without_rows(tmp_path, vectors):
    with TableWriter(tmp_path / "part.parquet", COLUMNS, vectors=vectors):
        pass
    table = with_lists(pq.read_table(tmp_path / "part.parquet"))
    assert (table.num_rows, table.schema.names) == (0, [column.name for column in COLUMNS])


def test_bytes_do_not_depend_on_how_rows_are_split_into_writes(tmp_path):
    everything = rows(50)
    with TableWriter(tmp_path / "whole", COLUMNS, row_group_size=16) as writer:
        writer.write(everything)
    with TableWriter(tmp_path / "pieces", COLUMNS, row_group_size=16) as writer:
        for start, stop in ((0, 1), (1, 1), (1, 40), (40, 50)):
            writer.write({name: values[start:stop] for name, values in everything.items()})
        assert writer.num_rows == 50
    assert (tmp_path / "pieces").read_bytes() == (tmp_path / "whole").read_bytes()


def test_arrays_may_be_reused_after_a_write(tmp_path):
    arrays = rows(4)
    expected = arrays["vector"].tolist()
    with TableWriter(tmp_path / "part.parquet", COLUMNS) as writer:
        writer.write(arrays)
        arrays["vector"][:] = 0.0
    assert with_lists(pq.read_table(tmp_path / "part.parquet")).column("vector").to_pylist() == expected


def test_error_leaves_no_new_file_and_keeps_the_older_one(tmp_path):
    path = tmp_path / "part.parquet"
    path.write_text("older")

    def write_and_fail() -> None:
        with TableWriter(path, COLUMNS, row_group_size=2) as writer:
            writer.write(rows(5))
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        write_and_fail()
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vector": np.zeros((4, 2), np.float32)}, r"'vector' is float32\[4, 2\], expected float32\[4, 3\]"),
        ({"vector": np.zeros((4, 3))}, r"'vector' is float64\[4, 3\], expected float32\[4, 3\]"),
        ({"label": np.zeros(3, np.int8)}, r"'label' is int8\[3\], expected int8\[4\]"),
        ({"lable": np.zeros(4, np.int8)}, r"missing columns \[\], unknown columns \['lable'\]"),
    ],
)
def test_arrays_that_do_not_fit_the_columns_are_refused(tmp_path, change, message):
    with (
        pytest.raises(TableError, match=message),
        TableWriter(tmp_path / "part.parquet", COLUMNS) as writer,
    ):
        writer.write({**rows(4), **change})


def test_missing_column_is_refused(tmp_path):
    arrays = rows(4)
    del arrays["label"]
    with (
        pytest.raises(TableError, match=r"missing columns \['label'\]"),
        TableWriter(tmp_path / "part.parquet", COLUMNS) as writer,
    ):
        writer.write(arrays)


@pytest.mark.parametrize("changed", COLUMNS)
def test_other_values_of_the_same_size_and_statistics_change_the_fingerprint(tmp_path, changed):
    columns: dict[Hashable, Column] = {"vector": Column("vector", width=3)}
    arrays = rows(4)
    fingerprints = set()
    for shift in (0, 0, 1):
        arrays[changed.name] = np.roll(arrays[changed.name], shift, axis=0)
        with TableWriter(tmp_path / "part.parquet", COLUMNS) as writer:
            writer.write(arrays)
        fingerprints.add(ParquetTable(matching_files(str(tmp_path)), columns).fingerprint)
    assert len(fingerprints) == 2


@pytest.mark.parametrize("vectors", ["binary", "list"])
@pytest.mark.parametrize("column", ["vector", "flags", "label"])
def test_an_overwritten_page_is_an_error(tmp_path, vectors, column):
    path = tmp_path / "part.parquet"
    with TableWriter(path, COLUMNS, row_group_size=40, vectors=vectors) as writer:
        writer.write(rows(80))
    overwrite_page(path, column, group=1)
    table = ParquetTable(
        matching_files(str(path)), {each.name: Column(each.name, width=each.width) for each in COLUMNS}
    )
    table.decode(0)
    with pytest.raises(DataError, match=f"^{path}: row group 1: cannot read this row group: "):
        table.decode(1)
