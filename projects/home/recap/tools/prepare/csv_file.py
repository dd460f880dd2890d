"""Reads CSV files as text: every field of every row, with nothing inferred.

Rows and fields are those of Python's csv module. An empty field is null, a quoted empty field is empty text. pyarrow
reads, because DuckDB's reader drops all rows after a quotation mark that is never closed, without an error.
"""

import csv
import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import pyarrow as pa
import pyarrow.csv

from common.process.memory import format_bytes
from common.reader.files import DataError
from projects.home.recap.tools.prepare.csv_format import READ_ERRORS, CsvFormat, open_content

MAX_ROW_BYTES = 2**24
"""Maximum size of a row, and the number of bytes that are read at a time."""

# A row after the last one. If it is not the last row read, then a quotation mark is not closed.
_END = "\0end of file"


def read_batches(path: Path, csv_format: CsvFormat, progress: Callable[[int], object]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file as text columns c0, c1, ...

    Args:
      path: the file.
      csv_format: its format.
      progress: receives the number of bytes of the file that were read since the last call.

    Raises:
      DataError: a row has another number of fields than the first line, a field is not UTF-8, a quotation mark is not
        closed, or a row is too large. The message has the number of the line.
    """
    try:
        with open_content(path) as (content, raw):
            yield from _read(content, csv_format, lambda: raw.tell(), progress)
    except (pa.ArrowInvalid, _UnclosedQuoteError) as error:
        raise DataError(_diagnose(path, csv_format, error)) from error
    except READ_ERRORS as error:
        raise DataError(f"{path}: cannot read this file: {getattr(error, 'strerror', None) or error}") from error


def line_of(path: Path, csv_format: CsvFormat, row: int) -> int:
    """Return the number of the line on which a row begins. Rows count from 0, and lines from 1."""
    with open_content(path) as (content, _):
        records = _numbered(_text(content), csv_format.delimiter)
        return next(itertools.islice(records, row + csv_format.header, None))[0]


def _read(
    content: BinaryIO, csv_format: CsvFormat, position: Callable[[], int], progress: Callable[[int], object]
) -> Iterator[pa.RecordBatch]:
    names = [f"c{index}" for index in range(len(csv_format.fields))]
    end = "\n" + csv_format.delimiter.join([_END, *itertools.repeat("", len(names) - 1)]) + "\n"
    reader = pa.csv.open_csv(
        _Concatenated(content, end.encode()),
        # With threads, memory would grow with the number of cores, and it is not faster.
        read_options=pa.csv.ReadOptions(column_names=names, block_size=MAX_ROW_BYTES, use_threads=False),
        parse_options=pa.csv.ParseOptions(delimiter=csv_format.delimiter, newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )
    skipped, done = csv_format.header, 0
    last: pa.RecordBatch | None = None
    for batch in itertools.chain(reader, [None]):
        progress(position() - done)
        done = position()
        if last is not None:
            if batch is None:
                last = _without_end(last)
            if skipped and last.num_rows:
                last, skipped = last.slice(1), False
            yield last
        last = batch


def _without_end(batch: pa.RecordBatch) -> pa.RecordBatch:
    if batch.num_rows == 0 or batch.column(0)[-1].as_py() != _END:
        raise _UnclosedQuoteError
    return batch.slice(0, batch.num_rows - 1)


class _UnclosedQuoteError(Exception):
    pass


class _Concatenated(io.RawIOBase):
    """A stream followed by further bytes."""

    def __init__(self, first: BinaryIO, then: bytes) -> None:
        self._streams = [first, io.BytesIO(then)]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._streams:
            data = self._streams[0].read(len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)
            self._streams.pop(0)
        return 0


def _text(content: BinaryIO) -> TextIO:
    """Decode a stream. Bytes that are not UTF-8 become surrogates."""
    return io.TextIOWrapper(content, "utf-8-sig", "surrogateescape", newline="")


def _numbered(text: TextIO, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not blank, each with the line on which it begins.

    Raises:
      DataError: a field is larger than MAX_ROW_BYTES; the message is the line on which its row begins.
    """
    before = csv.field_size_limit(MAX_ROW_BYTES)
    try:
        reader = csv.reader(text, delimiter=delimiter)
        line = 1
        for row in reader:
            if row:
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(str(line)) from error
    finally:
        csv.field_size_limit(before)


def _diagnose(path: Path, csv_format: CsvFormat, error: Exception) -> str:
    """Return a message about the first row that cannot be read."""
    expected, line = len(csv_format.fields), 1
    try:
        with open_content(path) as (content, _):
            for line, row in _numbered(_text(content), csv_format.delimiter):
                if problem := _problem(row, expected):
                    return f"{path}, line {line}: {problem}"
    except DataError as too_large:
        line = int(str(too_large))
        return f"{path}, line {line}: the row that begins here is larger than {format_bytes(MAX_ROW_BYTES)}. {_QUOTE}"
    if isinstance(error, _UnclosedQuoteError):
        return f"{path}, line {line}: a quotation mark in the row that begins here is not closed"
    return f"{path}: cannot read this file as CSV: {error}"


_QUOTE = "Is a quotation mark not closed?"


def _problem(row: list[str], expected: int) -> str | None:
    if len(row) != expected:
        shown = ", ".join(repr(field[:40]) for field in row[:3])
        hint = f" {_QUOTE}" if any("\n" in field for field in row) else ""
        more = ", ..." if len(row) > 3 else ""
        return f"the row has {len(row)} fields ({shown}{more}), but the first line has {expected}.{hint}"
    for field in row:
        try:
            field.encode()
        except UnicodeEncodeError:
            found = field.encode("utf-8", "surrogateescape")
            return (
                f"the text {found[:60]!r} is not UTF-8. Convert the file, for example if it was written on Windows: "
                "iconv -f WINDOWS-1252 -t UTF-8"
            )
    if sum(len(field.encode()) for field in row) > MAX_ROW_BYTES:
        return f"the row is larger than {format_bytes(MAX_ROW_BYTES)}"
    return None
