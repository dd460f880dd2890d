"""Opens text files, plain or compressed, and recognizes files that are not text. Knows nothing about lines."""

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import pyarrow as pa

from common.reader.files import DataError

FILE_FORMATS = "plain, .gz, .bz2, .xz, .zst, .lz4 or .zip"
"""The formats that decompressed() reads, for messages."""

UNREADABLE = (
    OSError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    pa.ArrowException,
)
"""Exceptions for a compressed file that is damaged, encrypted, or uses an unknown method."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# Number of characters of the names in an archive that a message quotes.
_QUOTED_LENGTH = 80


def _unzipped(file: BinaryIO) -> BinaryIO:
    archive = zipfile.ZipFile(file)
    # macOS adds folders and a metadata file for each file.
    names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
    if len(names) != 1:
        quoted = ", ".join(names)[:_QUOTED_LENGTH]
        raise DataError(f"{file.name}: found {len(names)} files in this archive, expected 1: {quoted}")
    return cast(BinaryIO, archive.open(names[0]))


class _Stream(Protocol):
    """A decompressor of one stream, of bz2 or lzma."""

    @property
    def eof(self) -> bool:
        """True at the end of the stream."""

    @property
    def needs_input(self) -> bool:
        """True if decompress() needs more data."""

    @property
    def unused_data(self) -> bytes:
        """Data after the end of the stream."""

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """Return up to `max_length` bytes."""


class _Streams(io.RawIOBase):
    """Reads a file of compressed streams, one after the other. Raises an exception of UNREADABLE for anything else.

    bz2.open and lzma.open ignore what follows a stream and is not a stream, such as a damaged one.
    """

    def __init__(self, file: BinaryIO, new_stream: Callable[[], _Stream], padding: bytes = b"") -> None:
        """Initialize.

        Args:
          file: the compressed file.
          new_stream: returns a decompressor for the next stream.
          padding: bytes that may stand between streams.
        """
        self._file = file
        self._new_stream = new_stream
        self._padding = padding
        self._stream = new_stream()
        self._between = False
        self._unread = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, and return the number of bytes; 0 at the end of the file."""
        content = b""
        while not content:
            if self._stream.eof:
                self._unread, self._stream, self._between = self._stream.unused_data, self._new_stream(), True
            if self._stream.needs_input and not self._unread:
                self._unread = self._file.read(io.DEFAULT_BUFFER_SIZE)
                if not self._unread:
                    if self._between:
                        return 0
                    raise EOFError("the compressed file ends too early")
            if self._between:
                self._unread = self._unread.lstrip(self._padding) if self._padding else self._unread
                if not self._unread:
                    continue
                self._between = False
            compressed, self._unread = self._unread, b""
            content = self._stream.decompress(compressed, len(buffer))
        buffer[: len(content)] = content
        return len(content)


_DECOMPRESS: dict[bytes, Callable[[BinaryIO], object]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": lambda file: io.BufferedReader(_Streams(file, bz2.BZ2Decompressor)),
    b"\xfd7zXZ\0": lambda file: io.BufferedReader(_Streams(file, lzma.LZMADecompressor, padding=b"\0")),
    b"\x28\xb5\x2f\xfd": lambda file: pa.CompressedInputStream(file, "zstd"),
    b"\x04\x22\x4d\x18": lambda file: pa.CompressedInputStream(file, "lz4"),
    b"PK\x03\x04": _unzipped,
    b"PK\x05\x06": _unzipped,  # an archive without files
}
"""Functions that decompress a file, by its first bytes."""

_UTF_16 = "text in UTF-16 or UTF-32. Convert it to UTF-8, for example with iconv -f UTF-16 -t UTF-8"
_NOT_TEXT = {
    b"\xff\xfe": _UTF_16,
    b"\xfe\xff": _UTF_16,
    b"PAR1": "a Parquet file. Give a text file",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive. Unpack it",
    b"Rar!\x1a\x07": "a RAR archive. Unpack it",
    b"\x1f\x9d": "compressed with compress (.Z). Decompress it",
    b"\x89HDF": "an HDF5 file. Give a text file",
    b"\x93NUMPY": "a NumPy file. Give a text file",
    b"\x80\x04": "a pickle. Give a text file",
    b"SQLite format 3\0": "an SQLite database. Give a text file",
    **dict.fromkeys(_DECOMPRESS, "compressed twice. Decompress it once"),
}
"""Descriptions of files that are not text, by their first bytes after decompression."""


def decompressed(file: BinaryIO) -> BinaryIO:
    """Return the content of an open file as a file. The first bytes decide whether it is compressed, not the name.

    Raises:
      DataError: the file is an archive that does not contain exactly one file.
    """
    magic = cast(io.BufferedReader, file).peek(8)
    for start, opened in _DECOMPRESS.items():
        if magic.startswith(start):
            return cast(BinaryIO, opened(file))
    return file


def check_text(path: Path, beginning: bytes) -> None:
    """Raise DataError if the first bytes of a file, at least 512 unless it is shorter, show that it is not text."""
    found = "a tar archive. Unpack it" if beginning[257:262] == b"ustar" else None
    for start, kind in _NOT_TEXT.items():
        if beginning.startswith(start):
            found = kind
    if found is not None:
        raise DataError(f"{path}: this file is {found}")
