"""Encodes tables as a run does, by way of a Parquet file, and compares them with rows encoded in plain Python."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.features.encoder import BINARY, CONTINUOUS, IDS, FeatureEncoder, embedding_key
from common.reader.files import DataError, matching_files
from common.reader.parquet import ParquetTable
from tests.support.encoded_rows import encode_row, parse_features


def encode(folder: Path, table: pa.Table, features: Mapping[str, Any], row_group_size: int = 4) -> list[dict[str, Any]]:
    """Write a table, read it, and return its encoded rows as encode_row() does."""
    pq.write_table(table, folder / "data.parquet", row_group_size=row_group_size)
    encoder = FeatureEncoder.open(parse_features(features))
    decoded = ParquetTable(matching_files(str(folder / "data.parquet")), {}, encoder=encoder)
    groups = [decoded.decode(group) for group in range(len(decoded.rows_per_group))]
    names = {"continuous": CONTINUOUS, "binary": BINARY, "ids": IDS}
    names |= {name: embedding_key(name) for name in encoder.layout.embeddings}
    stored = {name: np.concatenate([group[key] for group in groups]) for name, key in names.items()}
    assert [values.dtype for values in stored.values()] == [
        np.dtype(kind) for kind in ["float32", "uint8", "int32", *["float32"] * (len(stored) - 3)]
    ]
    assert sum(values.nbytes for values in stored.values()) == encoder.bytes_per_row * decoded.num_rows
    return [{name: values[row].tolist() for name, values in stored.items()} for row in range(decoded.num_rows)]


def check(folder: Path, table: pa.Table, features: Mapping[str, Any], **vocabularies: Mapping[Any, int]) -> None:
    """Assert that encoded rows equal those of encode_row(), however the rows are grouped."""
    expected = [encode_row(row, parse_features(features), vocabularies) for row in table.to_pylist()]
    for row_group_size in (len(table), 3):
        encoded = encode(folder, table, features, row_group_size)
        for row, (own, other) in enumerate(zip(encoded, expected, strict=True)):
            assert own.keys() == other.keys()
            for name in own:
                np.testing.assert_allclose(own[name], other[name], rtol=1e-6, err_msg=f"row {row}, {name}")


def error_of(folder: Path, table: pa.Table, features: Mapping[str, Any]) -> str:
    """Return the error of a table, without the path of its file."""
    with pytest.raises(DataError) as caught:
        encode(folder, table, features)
    prefix = f"{folder / 'data.parquet'}: "
    assert str(caught.value).startswith(prefix)
    return str(caught.value).removeprefix(prefix)


def array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Return values as an array of a type to which pyarrow does not convert lists."""
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode().cast(kind)
    if pa.types.is_string_view(kind):
        return pa.array(values, pa.string()).cast(kind)
    return pa.array(values, kind)


def vocabulary(folder: Path, values: list[Any]) -> tuple[str, dict[Any, int]]:
    """Write a vocabulary, and return its path and the index of each value."""
    path = folder / f"{type(values[0]).__name__}.parquet"
    pq.write_table(pa.table({"value": values, "index": range(len(values))}), path)
    return str(path), {value: index for index, value in enumerate(values)}
