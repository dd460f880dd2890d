"""Converts the columns that a caller has to an Arrow table, and keeps the index of a DataFrame."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.errors import UserError
from common.reader.parquet_file import no_column
from common.reader.vectors import is_list

_PANDAS = b"pandas"


def to_table(columns: Any) -> pa.Table:
    """Return columns as an Arrow table.

    Args:
      columns: an Arrow table or record batch; a pandas or polars DataFrame; or a mapping from names to columns of equal
        length: numpy arrays of [rows] or [rows, values], lists, pandas Series or Arrow arrays.

    Raises:
      UserError: it is something else, a column cannot be converted, or columns have different lengths.
    """
    if isinstance(columns, pa.Table):
        return columns
    if isinstance(columns, Mapping):
        return _from_mapping(columns)
    try:
        table = pa.table(columns)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise UserError(
            f"cannot use a {type(columns).__name__} as columns: {error}. Pass a dict of arrays or lists, a DataFrame "
            "or an Arrow table"
        ) from error
    if _PANDAS in (table.schema.metadata or {}):
        for index, column in enumerate(table.columns):
            table = table.set_column(index, table.schema.field(index), _with_nan_in_lists(column))
    return table


def select(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Return the columns of these names.

    Raises:
      UserError: a column is missing, or there are several of its name.
    """
    for name in names:
        if table.schema.get_field_index(name) < 0:
            raise UserError(no_column(name, table.column_names, ", but the ranker needs it"))
    return table.select(names)


def with_index(predictions: pa.Table, columns: pa.Table) -> pa.Table:
    """Return predictions with the index of the DataFrame that the columns come from, so that to_pandas() restores it.

    An index that is not a range becomes columns before those of the predictions. Without a DataFrame, nothing changes.
    """
    pandas = json.loads((columns.schema.metadata or {}).get(_PANDAS, b"null"))
    if pandas is None:
        return predictions
    names = [name for name in pandas["index_columns"] if isinstance(name, str) and name in columns.column_names]
    own = [column for column in pandas["columns"] if column["field_name"] in names]
    kept = {**pandas, "columns": own, "column_indexes": []}
    fields = [*map(columns.schema.field, names), *predictions.schema]
    schema = pa.schema(fields, {_PANDAS: json.dumps(kept)})
    return pa.Table.from_arrays([*map(columns.column, names), *predictions.columns], schema=schema)


def _from_mapping(columns: Mapping[Any, Any]) -> pa.Table:
    arrays = {str(name): _array(str(name), values) for name, values in columns.items()}
    if len(lengths := {len(array): name for name, array in arrays.items()}) > 1:
        found = ", ".join(f"'{name}' has {length}" for length, name in sorted(lengths.items()))
        raise UserError(f"the columns have different numbers of rows: {found}")
    return pa.table(arrays)


def _array(name: str, values: Any) -> Any:
    """Return a column as an Arrow array."""
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
        raise UserError(f"column '{name}': found {values!r:.60}, expected an array or a list with a value per row")
    try:
        if isinstance(values, np.ndarray) and values.ndim == 2:
            return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
        if isinstance(values, list | tuple):
            return pa.array(values)
        # Objects may hold NaN between strings, which means null there as in pandas.
        is_object = isinstance(values, np.ndarray) and values.dtype == object
        return _with_nan_in_lists(pa.array(values, from_pandas=True if is_object else None))
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"column '{name}': cannot convert a {type(values).__name__}: {error}") from error


def _with_nan_in_lists(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return a column with NaN in its lists of floats, where a conversion in the manner of pandas has put null."""
    kind = column.type
    if not is_list(kind) or not pa.types.is_floating(kind.value_type):
        return column
    if isinstance(column, pa.ChunkedArray):
        return pa.chunked_array([_with_nan_in_lists(chunk) for chunk in column.chunks], kind)
    if column.flatten().null_count == 0:
        return column
    column = column.take(pa.array(np.arange(len(column))))  # a slice shares values with others, and may not be changed
    values = pc.fill_null(column.values, pa.scalar(np.nan, kind.value_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(values, type=kind, mask=column.is_null())
    return type(column).from_arrays(column.offsets, values, type=kind, mask=column.is_null())
