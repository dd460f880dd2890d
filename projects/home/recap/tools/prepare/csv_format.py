"""Finds out the format of a CSV file from its beginning: compression, delimiter, and whether there is a header."""

import contextlib
import csv
import gzip
import io
import shlex
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from common.reader.files import DataError
from projects.home.recap.tools.prepare.columns import IngestOptions

DELIMITERS = (",", "\t", ";")
"""Delimiters that are detected."""

_OTHER_DELIMITERS = ("|", ":", "^", "~")

_SNIFFED_BYTES = 2**18
_GZIP_MAGIC = b"\x1f\x8b"

READ_ERRORS = (OSError, EOFError, zlib.error)  # gzip raises all of them


@dataclass(frozen=True)
class CsvFormat:
    """The format of a CSV file.

    Attributes:
      delimiter: character between fields.
      fields: the fields of the first line.
      header: whether these are names.
    """

    delimiter: str
    fields: tuple[str, ...]
    header: bool


def sniff(path: Path, options: IngestOptions) -> CsvFormat:
    """Return the format of a file.

    Raises:
      DataError: the file is empty or cannot be read; or the delimiter, or whether there is a header, is unclear.
    """
    start = _decoded_start(path)
    delimiter = options.delimiter or _delimiter(path, start)
    fields = next((tuple(row) for row in _rows(start, delimiter) if row), None)
    if fields is None:
        raise DataError(f"{path}: this file is empty. Remove it, or give other files")
    if options.names is None:
        _check_header(path, fields, options)
    else:
        _check_names(path, fields, options.names)
    return CsvFormat(delimiter, fields, options.names is None)


@contextlib.contextmanager
def open_content(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Yield the content of a file, decompressed if it is compressed by gzip, and the file itself."""
    with path.open("rb") as raw:
        is_gzip = raw.peek(2).startswith(_GZIP_MAGIC)
        yield cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if is_gzip else raw, raw


def _decoded_start(path: Path) -> str:
    try:
        with open_content(path) as (content, _):
            start = content.read(_SNIFFED_BYTES)
            complete = not content.read(1)
    except READ_ERRORS as error:
        raise DataError(f"{path}: cannot read this file: {getattr(error, 'strerror', None) or error}") from error
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path} is UTF-16. Convert it: iconv -f UTF-16 -t UTF-8 {path.name}")
    if not complete and len(lines := start.splitlines(keepends=True)) > 1:
        start = b"".join(lines[:-1])
    return start.decode("utf-8-sig", "surrogateescape")


def _delimiter(path: Path, start: str) -> str:
    """Return the delimiter that divides all rows into the same number of fields, which is more than one.

    If several do, the one with the most fields; if none does, the one that occurs most often in the first line.
    """
    widths = {delimiter: [len(row) for row in _rows(start, delimiter) if row] for delimiter in DELIMITERS}
    if not any(widths.values()):
        raise DataError(f"{path}: this file is empty. Remove it, or give other files")
    # The last row may be incomplete.
    fitting = [each for each, counts in widths.items() if counts[0] > 1 and len(set(counts[:-1] or counts)) == 1]
    return max(fitting or DELIMITERS, key=lambda delimiter: widths[delimiter][0])


def _check_header(path: Path, fields: Sequence[str], options: IngestOptions) -> None:
    _check_delimiter(path, fields)
    if not options.header and (number := next(filter(_is_number, fields), None)) is not None:
        raise DataError(
            f"{path}, line 1: the first line should have the names of the columns, but {number.strip()!r} is a number. "
            "If the files have no header, give the names: --columns NAME,NAME,...; if this is a name, add --header"
        )


def _check_names(path: Path, fields: Sequence[str], names: Sequence[str]) -> None:
    if len(names) > 1:
        _check_delimiter(path, fields)
    if len(names) != len(fields):
        raise DataError(f"{path}, line 1: --columns has {len(names)} names, but the line has {len(fields)} fields")
    repeated = [field for field, name in zip(fields, names, strict=True) if _letters(field) == _letters(name) != ""]
    if 2 * len(repeated) > len(fields):
        raise DataError(
            f"{path}, line 1: the line has names of columns, such as {repeated[0].strip()!r}, and so has --columns. "
            "Remove --columns, or this line"
        )


def _check_delimiter(path: Path, fields: Sequence[str]) -> None:
    """Raise DataError if the line is one field that contains another delimiter."""
    (first, *others) = fields
    other = max((*DELIMITERS, *_OTHER_DELIMITERS), key=first.count)
    if not others and other in first:
        option = shlex.quote(other.replace("\t", "tab"))
        raise DataError(
            f"{path}, line 1: the delimiter does not occur in {first[:60]!r}. State the right one, such as "
            f"--delimiter {option}"
        )


def _letters(text: str) -> str:
    """Return the letters and digits, in lower case, in which names agree that differ in punctuation."""
    return "".join(filter(str.isalnum, text.lower()))


def _rows(text: str, delimiter: str) -> Iterator[list[str]]:
    with contextlib.suppress(csv.Error):  # a field that is too large is reported when it is read
        yield from csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return field.strip().lower().lstrip("+-") not in ("nan", "inf", "infinity")
