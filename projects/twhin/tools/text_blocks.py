"""Reads text files of separated columns one block of lines at a time. text_files.py opens the files."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from common.reader.files import DataError
from projects.twhin.tools.text_files import BYTE_ORDER_MARK, FILE_FORMATS, UNREADABLE, check_text, decompressed

BLOCK_BYTES = 8 * 2**20
# Number of characters of a line that a message quotes.
_QUOTED_LENGTH = 80

# pyarrow takes a carriage return for the end of a line, and skips a byte order mark at the start of a block.
_FORBIDDEN = {
    rb"\0": "a NUL byte. Check that this is a text file in UTF-8, not in UTF-16",
    rb"\r(?!\n|\Z)": "a carriage return within the line. Use line feeds to end lines: tr '\\r' '\\n'",
    BYTE_ORDER_MARK: "a byte order mark (U+FEFF) that is not at the start of the file. Remove it",
}
"""Patterns that no line may contain, with their descriptions."""


class Block(NamedTuple):
    """Whole lines of a file.

    Attributes:
      first_line: number of the first line, counted from 1.
      lines: the lines with their line breaks.
    """

    first_line: int
    lines: bytes


def read_blocks(path: Path, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """Yield the lines of a file in order. Compressed files are recognized by their first bytes.

    Raises:
      DataError: the file cannot be read or is not text, or a line is longer than `block_bytes` or contains a NUL byte,
        a carriage return or another byte order mark.
    """
    try:
        with path.open("rb") as file:
            yield from _blocks(decompressed(file), path, block_bytes)
    except UNREADABLE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{path}: cannot read this file: {reason}. Give a text file: {FILE_FORMATS}") from error


def _blocks(file: BinaryIO, path: Path, block_bytes: int) -> Iterator[Block]:
    rest, line = b"", 1
    read = file.read(block_bytes)
    check_text(path, read)
    read = read.removeprefix(BYTE_ORDER_MARK)
    while read:
        lines, newline, end = read.rpartition(b"\n")
        if newline:
            block = Block(line, rest + lines + newline)
            _check_length(block.lines.index(b"\n"), line, path, block_bytes)
            yield _without_forbidden_bytes(block, path)
            line += block.lines.count(b"\n")
            rest = end
        else:
            rest += read
            _check_length(len(rest), line, path, block_bytes)
        read = file.read(block_bytes)
    if rest:
        yield _without_forbidden_bytes(Block(line, rest), path)


def _check_length(length: int, line: int, path: Path, limit: int) -> None:
    if length > limit:
        raise DataError(f"{path}:{line}: this line is longer than {limit} bytes. Check that this is a text file")


def _without_forbidden_bytes(block: Block, path: Path) -> Block:
    """Return the block, or raise DataError for the first line with bytes that no line may contain."""
    for pattern, problem in _FORBIDDEN.items():
        if match := re.search(pattern, block.lines):
            number = block.first_line + block.lines.count(b"\n", 0, match.end())
            raise DataError(f"{path}:{number}: found {problem}")
    return block


def parse(
    block: Block, path: Path, columns: Sequence[str], types: Mapping[str, pa.DataType], separator: str
) -> pa.Table:
    """Return the columns that have a type. Empty lines are skipped.

    Args:
      block: lines to parse.
      path: path of the file, for messages.
      columns: names of all columns in their order.
      types: types of the columns to return, string or int64.
      separator: separator of the columns, a tab or a comma. Quotes have no meaning.

    Raises:
      DataError: a line is not UTF-8, has the wrong number of columns, or has a value that is empty or not an int64. The
        message has the line number and the value found.
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
        raise _first_error(block, path, columns, types, separator) or DataError(
            f"{path}: cannot parse the block that starts at line {block.first_line}: {error}"
        ) from None
    for name, kind in types.items():
        if pa.types.is_string(kind) and pc.any(pc.equal(pc.ascii_trim(table.column(name), " "), "")).as_py():
            empty_value = _first_error(block, path, columns, types, separator)
            assert empty_value is not None
            raise empty_value
    return table


def line_number(block: Block, row: int) -> int:
    """Return the line number, in the file, of a row of the parsed block."""
    for number, line in enumerate(block.lines.split(b"\n"), block.first_line):
        if line.rstrip(b"\r"):
            if row == 0:
                return number
            row -= 1
    raise IndexError(row)


def _first_error(
    block: Block, path: Path, columns: Sequence[str], types: Mapping[str, pa.DataType], separator: str
) -> DataError | None:
    """Return the error of the first invalid line, or None if all lines are valid."""
    for number, line in enumerate(block.lines.split(b"\n"), block.first_line):
        if not line.rstrip(b"\r"):
            continue
        try:
            text = line.decode().removesuffix("\r")
        except UnicodeDecodeError as error:
            found = f"byte {error.start} of the line is {line[error.start]:#04x}"
            return DataError(f"{path}:{number}: not UTF-8: {found}. Convert the file to UTF-8")
        if problem := _line_error(text, columns, types, separator):
            return DataError(f"{path}:{number}: {problem}")
    return None


def _line_error(text: str, columns: Sequence[str], types: Mapping[str, pa.DataType], separator: str) -> str | None:
    values = text.split(separator)
    quoted = repr(text if len(text) <= _QUOTED_LENGTH else text[:_QUOTED_LENGTH] + "...")
    if len(values) != len(columns):
        kind = {"\t": "tabs", ",": "commas"}[separator]
        return f"found {len(values)} column(s), expected {len(columns)} separated by {kind}: {quoted}"
    for name, value in zip(columns, values, strict=True):
        if name not in types:
            continue
        if not value.strip(" "):
            return f"the {name} is empty: {quoted}"
        if pa.types.is_integer(types[name]) and not _is_int64(value):
            return f"the {name} is {value[:_QUOTED_LENGTH]!r}, expected an integer below 2^63: {quoted}"
    return None


def _is_int64(text: str) -> bool:
    return re.fullmatch(r"-?0*[0-9]{1,19}", text.strip(" ")) is not None and -(2**63) <= int(text) < 2**63
