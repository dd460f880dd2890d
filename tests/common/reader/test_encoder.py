"""CombinedEncoder: several encoders read the columns of one table."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from common.reader.encoder import CombinedEncoder
from common.reader.files import DataError, Files
from common.reader.parquet import ParquetTable


class Lengths:
    """Encodes columns of strings as the lengths of their values."""

    def __init__(self, *columns: str) -> None:
        self.columns = columns
        self.bytes_per_row = 8 * len(columns)

    def check(self, schema: pa.Schema) -> list[str]:
        if missing := [name for name in self.columns if name not in schema.names]:
            raise ValueError(f"no column {missing}")
        return list(self.columns)

    def encode(self, table: pa.Table, _location: str) -> dict[str, NDArray[np.int64]]:
        return {
            f"{self.columns} {name}": np.array([len(value) for value in table[name].to_pylist()])
            for name in self.columns
        }


def test_encoders_may_read_the_same_column(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"a": ["x", "yyy"], "b": ["", "z"], "c": ["", ""]}), path)
    encoder = CombinedEncoder([Lengths("a"), Lengths("b", "a")])
    assert encoder.columns == ["a", "b"]
    assert encoder.bytes_per_row == 24
    table = ParquetTable(Files((path,), "rows"), {}, encoder=encoder)
    assert {key: values.tolist() for key, values in table.decode(0).items()} == {
        "('a',) a": [1, 3],
        "('b', 'a') b": [0, 1],
        "('b', 'a') a": [1, 3],
    }
    with pytest.raises(DataError, match=r"no column \['d'\]"):
        ParquetTable(Files((path,), "rows"), {}, encoder=CombinedEncoder([Lengths("a"), Lengths("d")]))
