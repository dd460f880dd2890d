"""Text files of separated columns, plain, gzip'd or zipped, a block of lines at a time."""

import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from common.reader.files import DataError

BLOCK_BYTES = 8 * 2**20
# Characters of a line that a message shows.
_SHOWN = 80

_UNREADABLE = (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError)
"""What Python's readers of compressed files raise where one is damaged, encrypted, or of an unknown method."""


class Block(NamedTuple):
    """Whole lines; the first has this number, counted from 1."""

    first_line: int
    lines: bytes


def read_blocks(path: Path, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """The lines of a file, in order. What is compressed is known by its first bytes.

    Raises:
      DataError: the file can't be read, or has a line of more than `block_bytes`.
    """
    try:
        with path.open("rb") as file:
            yield from _blocks(_decompressed(file, path), path, block_bytes)
    except _UNREADABLE as error:
        told = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{path}: can't be read: {told}; give a file of text, plain, .gz or .zip") from error


def _decompressed(file: BinaryIO, path: Path) -> BinaryIO:
    magic = file.read(4)
    file.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return cast(BinaryIO, gzip.open(file))
    if magic.startswith(b"PK\x03\x04"):
        archive = zipfile.ZipFile(file)
        # Beside folders, macOS puts a file about each file into its archives.
        names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
        if len(names) != 1:
            raise DataError(f"{path}: an archive of {len(names)} files, one expected: {', '.join(names)[:_SHOWN]}")
        return cast(BinaryIO, archive.open(names[0]))
    return file


def _blocks(file: BinaryIO, path: Path, block_bytes: int) -> Iterator[Block]:
    rest, line = b"", 1
    while read := file.read(block_bytes):
        lines, newline, rest_of_read = read.rpartition(b"\n")
        if newline:
            lines, rest = rest + lines + newline, rest_of_read
            yield Block(line, lines)
            line += lines.count(b"\n")
        else:
            rest += read
        if len(rest) > block_bytes:
            raise DataError(f"{path}:{line}: a line of more than {block_bytes} bytes; is this a text file?")
    if rest:
        yield Block(line, rest)


def parse(
    block: Block, path: Path, columns: Sequence[str], types: Mapping[str, pa.DataType], separator: str
) -> pa.Table:
    """The columns that have a type, string or int64; empty lines are left out.

    Args:
      block: of the file.
      path: of the file, for messages.
      columns: names of all columns, in their order.
      types: of those to return.
      separator: between columns; no quotes are known.

    Raises:
      DataError: a line is not UTF-8, has not as many columns, or a value that is empty or no int64; the message has the
        line's number, and what was found.
    """
    try:
        table = pyarrow.csv.read_csv(
            io.BytesIO(block.lines),
            read_options=pyarrow.csv.ReadOptions(
                use_threads=False, column_names=columns, block_size=len(block.lines) + 1
            ),
            parse_options=pyarrow.csv.ParseOptions(delimiter=separator, quote_char=False),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=types, include_columns=list(types), null_values=[], check_utf8=True
            ),
        )
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise _explained(block, path, columns, types, separator) or DataError(
            f"{path}: lines from {block.first_line}: {error}"
        ) from None
    for name, kind in types.items():
        if pa.types.is_string(kind) and pc.any(pc.equal(table.column(name), "")).as_py():
            mistake = _explained(block, path, columns, types, separator)
            assert mistake is not None
            raise mistake
    return table


def line_of(block: Block, row: int) -> int:
    """The line of a row of the parsed block."""
    for number, line in enumerate(block.lines.split(b"\n"), block.first_line):
        if line.rstrip(b"\r"):
            if row == 0:
                return number
            row -= 1
    raise IndexError(row)


def _explained(
    block: Block, path: Path, columns: Sequence[str], types: Mapping[str, pa.DataType], separator: str
) -> DataError | None:
    """What is wrong with the first bad line."""
    for number, line in enumerate(block.lines.split(b"\n"), block.first_line):
        if not line.rstrip(b"\r"):
            continue
        try:
            text = line.decode().removesuffix("\r")
        except UnicodeDecodeError as error:
            found = f"byte {error.start} of the line is {line[error.start]:#04x}"
            return DataError(f"{path}:{number}: not UTF-8: {found}; convert the file to UTF-8")
        if problem := _problem(text, columns, types, separator):
            return DataError(f"{path}:{number}: {problem}")
    return None


def _problem(text: str, columns: Sequence[str], types: Mapping[str, pa.DataType], separator: str) -> str | None:
    values = text.split(separator)
    shown = repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
    if len(values) != len(columns):
        kind = {"\t": "tabs", ",": "commas"}[separator]
        return f"{len(values)} column(s) found, {len(columns)} separated by {kind} expected: {shown}"
    for name, value in zip(columns, values, strict=True):
        if name not in types:
            continue
        if not value:
            return f"the {name} is empty: {shown}"
        if "\r" in value:
            return f"a carriage return within the {name}: {shown}"
        if pa.types.is_integer(types[name]) and not _is_int64(value):
            return f"{value[:_SHOWN]!r} found, the {name} is a whole number below 2^63: {shown}"
    return None


def _is_int64(text: str) -> bool:
    return re.fullmatch(r"-?[0-9]{1,19}", text.strip(" ")) is not None and -(2**63) <= int(text) < 2**63
