"""Opens and creates Parquet files. Checksums of pages make a damaged page an error instead of other values."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.process.memory import memory_shortage
from common.reader.files import DataError


def open_parquet(
    path: Path, metadata: pq.FileMetaData | None = None, dictionaries: Sequence[int] = ()
) -> pq.ParquetFile:
    """Open a file. Reading a page whose checksum does not match raises OSError; pages may lack a checksum.

    Args:
      path: file to open.
      metadata: its footer, if it was already read.
      dictionaries: indices of leaf columns of strings to decode as dictionaries.

    Raises:
      DataError: the name of the file is not valid UTF-8.
    """
    _check_name(path)
    return pq.ParquetFile(path, metadata=metadata, read_dictionary=list(dictionaries), page_checksum_verification=True)


def is_parquet(path: Path) -> bool:
    """Return whether a file is a Parquet file, by its first bytes.

    Raises:
      DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1"
    except OSError as error:
        raise DataError(f"{path}: cannot read this file: {error.strerror}") from error


def read_footer(path: Path) -> pq.FileMetaData:
    """Read the footer of a file.

    Raises:
      DataError: the name of the file is not valid UTF-8.
    """
    _check_name(path)
    return pq.read_metadata(path)


def _check_name(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{path}: the path is not valid UTF-8, so pyarrow cannot read this file. Rename the file or its directory"
        ) from None


def no_column(name: str, found: Collection[str], reason: str = "") -> str:
    """Return the message about a file in which not exactly one column has a name.

    Args:
      name: the name.
      found: names of the columns of the file.
      reason: clause that says why the column must exist.
    """
    return f"no column '{name}', or more than one{reason}; columns found: {', '.join(sorted(found)) or 'none'}"


def first_leaves(schema: pa.Schema) -> dict[str, int]:
    """Return the index of the first leaf column of each top-level column; Parquet stores leaf columns only."""
    leaves, count = {}, 0
    for stored in schema:
        leaves[stored.name] = count
        count += _num_leaves(stored.type)
    return leaves


def _num_leaves(kind: pa.DataType) -> int:
    return sum(_num_leaves(kind.field(index).type) for index in range(kind.num_fields)) or 1


def has_repeats(column: pq.ColumnChunkMetaData) -> bool:
    """Return whether the values of a column of strings repeat so often that decoding them as a dictionary pays off.

    A file stores repeated strings as a dictionary and an index per value. If most strings differ, or the dictionary
    exceeds the writer's limit, it stores strings, and decoding these as a dictionary takes twice as long as decoding.
    """
    return bool(column.total_uncompressed_size <= _BYTES_OF_REPEATED * column.num_values)


_BYTES_OF_REPEATED = 8


def check_columns_fit(path: Path, file: pq.ParquetFile, columns: Sequence[str]) -> None:
    """Raise DataError if memory does not suffice to hold whole columns and a copy of them.

    Args:
      path: path of the file, for the message.
      file: the open file.
      columns: names of columns without nested values.
    """
    metadata = file.metadata
    needed = 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        chunks = map(group.column, range(group.num_columns))
        needed += 2 * sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in columns)
    if shortage := memory_shortage(needed):
        raise DataError(f"{path}: holding the columns {', '.join(columns)} {shortage}")


def create_parquet(path: Path, schema: pa.Schema, **options: Any) -> pq.ParquetWriter:
    """Create a file whose pages have checksums. `options` are those of pyarrow's ParquetWriter."""
    return pq.ParquetWriter(path, schema, write_page_checksum=True, **options)


def has_checksum(path: Path, column: pq.ColumnChunkMetaData) -> bool:
    """Return whether the first page of a column has a checksum. Other programs may write pages without one.

    Args:
      path: file of the column.
      column: metadata of the column in a row group, which was read without an error.
    """
    offset = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
    with path.open("rb") as file:
        file.seek(offset)
        header = file.read(_HEADER_BYTES)
    # In Thrift's compact protocol, three 32-bit integers (field type 0x15, then a variable-length number) precede the
    # optional checksum, which is a fourth one.
    numbers = re.match(rb"(?:\x15[\x80-\xff]{0,4}[\x00-\x7f]){3}", header)
    return numbers is not None and header[numbers.end() : numbers.end() + 1] == b"\x15"


# The three integers take at most 18 bytes.
_HEADER_BYTES = 32
