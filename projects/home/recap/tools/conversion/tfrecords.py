"""Reads the records of a TFRecord file and verifies every checksum. Does not decode the records.

A file is a sequence of records: the length as uint64, its checksum as uint32, the bytes, their checksum as uint32, all
little-endian (https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details). A gzip'd file holds
the same bytes and adds gzip's own checksum. An uncompressed file that is truncated exactly between two records is
indistinguishable from a complete one.
"""

import gzip
import struct
import zlib
from collections.abc import Iterator
from typing import IO

import google_crc32c

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_Stream = IO[bytes] | gzip.GzipFile
_GZIP_MAGIC = b"\x1f\x8b"

_MAX_LENGTH = 2**31
"""Protobuf messages are shorter than this."""


class RecordError(Exception):
    """Raised if a file is incomplete or a record is invalid. The message names the record, but not the file."""


def read_records(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the records of a file, uncompressed or gzip'd in one or more members.

    Args:
      file: buffered file, positioned at its start. Its position advances with the records.

    Raises:
      RecordError: the file is empty, truncated, corrupt or unreadable. All records yielded before are intact.
    """
    number = 0
    try:
        stream = _uncompressed(file)
        while header := stream.read(_HEADER.size):
            yield _read_record(header, stream)
            number += 1
    except (EOFError, zlib.error, gzip.BadGzipFile, _FramingError) as error:
        raise RecordError(f"record {number} (counted from 0): truncated or corrupt: {error}") from error
    except OSError as error:
        raise RecordError(f"cannot read this file: {error.strerror or error}") from error


class _FramingError(Exception):
    pass


def _uncompressed(file: IO[bytes]) -> _Stream:
    start = file.read(_HEADER.size)
    file.seek(0)
    if not start:
        raise _FramingError("the file is empty")
    # The length of an uncompressed record can look like gzip's magic number, but then its checksum does not match.
    if _is_header(start):
        return file
    if start.startswith(_GZIP_MAGIC):
        return gzip.GzipFile(fileobj=file)
    raise _FramingError("the file starts neither with a TFRecord nor with a gzip header. Check that it holds records")


def _is_header(header: bytes) -> bool:
    return len(header) == _HEADER.size and _HEADER.unpack(header)[1] == masked_crc32c(header[:8])


def _read_record(header: bytes, stream: _Stream) -> bytes:
    if len(header) < _HEADER.size:
        raise _FramingError("the file ends within the length of the record")
    if not _is_header(header):
        raise _FramingError("the checksum of the length does not match")
    length = _HEADER.unpack(header)[0]
    if length >= _MAX_LENGTH:
        raise _FramingError(f"the record is {length} bytes long, but a tf.Example is shorter than {_MAX_LENGTH}")
    record = stream.read(length)
    checksum = stream.read(_CHECKSUM.size)
    if len(record) < length or len(checksum) < _CHECKSUM.size:
        raise _FramingError(f"the file ends within the record of {length} bytes")
    if _CHECKSUM.unpack(checksum)[0] != masked_crc32c(record):
        raise _FramingError(f"the checksum of the record's {length} bytes does not match")
    return record


def masked_crc32c(data: bytes) -> int:
    """Return the masked CRC-32C that TFRecord files store: the checksum rotated right by 15 bits plus a constant."""
    crc: int = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
