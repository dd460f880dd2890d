"""Stages tables as ingestion does, for tests of what comes after it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from common.reader.parquet_file import create_parquet
from projects.home.recap.tools.prepare.columns import ROW, Ingested, IngestedColumn, Kind, Role

_TYPES = {
    pa.int64(): "BIGINT",
    pa.int8(): "TINYINT",
    pa.float64(): "DOUBLE",
    pa.float32(): "FLOAT",
    pa.bool_(): "BOOLEAN",
    pa.string(): "VARCHAR",
    pa.timestamp("us"): "TIMESTAMP",
    pa.timestamp("us", "UTC"): "TIMESTAMP WITH TIME ZONE",
    pa.date32(): "DATE",
    pa.list_(pa.string()): "VARCHAR[]",
    pa.list_(pa.int64()): "BIGINT[]",
    pa.list_(pa.float64()): "DOUBLE[]",
}


def staged(
    folder: Path,
    table: Mapping[str, Any],
    *,
    roles: Mapping[str, Role] | None = None,
    kinds: Mapping[str, Kind] | None = None,
    files: int = 1,
) -> Ingested:
    """Stage a table.

    Args:
      folder: directory of the staged files.
      table: columns by name, as arrays of Arrow or what pa.array() accepts.
      roles: roles of columns, by name; others are features.
      kinds: kinds of columns, by name; others have the kind of their type.
      files: number of staged files.
    """
    arrays = {name: values if isinstance(values, pa.Array) else pa.array(values) for name, values in table.items()}
    num_rows = len(next(iter(arrays.values())))
    names = [f"c{index}" for index in range(len(arrays))]
    rows = pa.table([pa.array(range(num_rows), pa.int64()), *arrays.values()], [ROW, *names])
    paths = [folder / f"staged-{number}.parquet" for number in range(files)]
    for number, path in enumerate(paths):
        begin, end = (num_rows * (number + each) // files for each in (0, 1))
        with create_parquet(path, rows.schema, write_statistics=False) as writer:
            writer.write_table(rows.slice(begin, end - begin), row_group_size=1000)
    columns = [
        _column(name, staged_name, values, (roles or {}).get(name, "feature"), (kinds or {}).get(name))
        for staged_name, (name, values) in zip(names, arrays.items(), strict=True)
    ]
    return Ingested(tuple(paths), num_rows, tuple(columns))


def _column(name: str, staged_name: str, values: pa.Array, role: Role, kind: Kind | None) -> IngestedColumn:
    elements = values.flatten() if pa.types.is_list(values.type) else values
    low = None if pa.types.is_boolean(values.type) else pc.min(elements).as_py()
    return IngestedColumn(
        name=name,
        staged=staged_name,
        role=role,
        found=str(values.type),
        type=_TYPES[values.type],
        kind=kind or _kind(values.type),
        reason="by its type",
        num_nulls=values.null_count,
        num_distinct=len(pc.unique(elements.drop_null())),
        low=str(low),
        max_length=pc.max(pc.list_value_length(values)).as_py() if pa.types.is_list(values.type) else None,
    )


def _kind(kind: pa.DataType) -> Kind:
    if pa.types.is_list(kind):
        return "numbers" if pa.types.is_floating(kind.value_type) else "categories"
    if pa.types.is_temporal(kind):
        return "timestamp"
    if pa.types.is_boolean(kind):
        return "boolean"
    return "category" if pa.types.is_string(kind) else "number"
