"""The reader encodes columns while it decodes row groups."""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from common.batch import Batch
from common.reader.column import Column
from common.reader.files import DataError, matching_files
from common.reader.parquet import ParquetTable
from common.reader.reader import BatchReader, Columns, PrefetchOptions


class Lengths:
    """Encodes strings as their lengths, and checks that dictionaries are decoded as such."""

    columns = ("text", "label")
    bytes_per_row = 2 * 8

    def check(self, schema: pa.Schema) -> Collection[str]:
        if schema.field("text").type != pa.string():
            raise ValueError(f"column 'text': found {schema.field('text').type}, expected string")
        return ["text"]

    def encode(self, table: pa.Table, location: str) -> dict[str, NDArray[Any]]:
        assert table.column_names == ["label", "text"] or table.column_names == ["text", "label"]
        texts = table.column("text").to_pylist()
        if "bad" in texts:
            raise DataError(f"{location}: bad")
        lengths = np.array([len(text) for text in texts])
        return {"pair": np.stack([lengths, table.column("label").to_numpy()], axis=1)}


def write(folder: Path, rows: int, row_group_size: int = 10) -> Path:
    table = pa.table({"label": [row % 2 for row in range(rows)], "text": ["x" * row for row in range(rows)]})
    pq.write_table(table, folder / "data.parquet", row_group_size=row_group_size)
    return folder / "data.parquet"


def open_table(path: Path, **options: Any) -> ParquetTable:
    columns = {"label": Column("label", torch.int64)}
    return ParquetTable(matching_files(str(path)), columns, encoder=Lengths(), **options)


@dataclasses.dataclass(frozen=True)
class Rows(Batch):
    columns: Columns
    weights: torch.Tensor


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("shuffle_window", [1, 25])
def test_encoded_rows_stay_together_in_shuffled_batches(tmp_path, cache, shuffle_window):
    table = open_table(write(tmp_path, 60), cache=cache)
    reader = BatchReader(
        table, Rows, global_batch_size=6, lanes=2, prefetch=PrefetchOptions(shuffle_window=shuffle_window)
    )
    for seed in (0, 0, 1):
        seen = []
        for item in reader.train(seed=seed, num_epochs=2):
            pair = item.batch.columns["pair"]
            assert pair.dtype == torch.int64
            assert (pair[:, 1] == item.batch.columns["label"]).all()
            assert (pair[:, 0] % 2 == item.batch.columns["label"]).all()
            seen += pair[:, 0].tolist()
        assert sorted(seen[:60]) == sorted(seen[60:]) == list(range(60))
        assert seen[:60] != list(range(60))


def test_ranges_of_rows_and_prepare_get_the_encoded_rows(tmp_path):
    def prepare(stored: dict[Any, Any]) -> dict[Any, Any]:
        return {"sum": stored["pair"].sum(axis=1)}

    table = open_table(write(tmp_path, 30), rows=lambda _: range(7, 23), prepare=prepare)
    sums = np.concatenate([table.decode(group)["sum"] for group in range(3)])
    assert sums.tolist() == [row + row % 2 for row in range(7, 23)]


def test_errors_name_the_file(tmp_path):
    path = write(tmp_path, 5)
    pq.write_table(pa.table({"label": [1], "text": [1]}), tmp_path / "other.parquet")
    with pytest.raises(DataError) as caught:
        open_table(tmp_path)
    assert str(caught.value) == f"{tmp_path / 'other.parquet'}: column 'text': found int64, expected string"
    pq.write_table(pa.table({"label": [1, 1], "text": ["a", "bad"]}), path, row_group_size=1)
    table = open_table(path)
    assert table.decode(0)["pair"].tolist() == [[1, 1]]
    with pytest.raises(DataError, match=r"data\.parquet: row group 1: bad"):
        table.decode(1)


def test_encoded_columns_count_as_memory(tmp_path):
    path = write(tmp_path, 60)
    with_encoder = open_table(path)
    without = ParquetTable(matching_files(str(path)), {"label": Column("label", torch.int64)})
    assert with_encoder.bytes_per_row == without.bytes_per_row + 16
    own, other = (BatchReader(table, Rows, global_batch_size=6, lanes=2) for table in (with_encoder, without))
    assert own.batch_bytes == other.batch_bytes + (8 + 2) * 6 * 16
    assert own.decoded_bytes > other.decoded_bytes


@pytest.mark.parametrize(("distinct", "is_dictionary"), [(3, True), (1000, False)])
def test_strings_are_decoded_as_dictionaries_if_they_repeat(tmp_path, distinct, is_dictionary):
    values = pa.array([f"value {row % distinct:06d}" for row in range(1000)])
    table = pa.table({"label": [0] * 1000, "a.b": [[0]] * 1000, "text": values})
    pq.write_table(table, tmp_path / "data.parquet")
    found = []

    class Spy(Lengths):
        def encode(self, table: pa.Table, location: str) -> dict[str, NDArray[Any]]:
            found.append(pa.types.is_dictionary(table.column("text").type))
            return super().encode(table, location)

    columns = {"label": Column("label", torch.int64)}
    decoded = ParquetTable(matching_files(str(tmp_path)), columns, encoder=Spy()).decode(0)
    assert found == [is_dictionary]
    assert decoded["pair"][:, 0].tolist() == [12] * 1000
