"""TFRecord files: the records in them, with every checksum checked. What the bytes of a record mean is not known here.

A file is a sequence of records: the length as uint64, its checksum as uint32, the bytes, their checksum as uint32, all
little-endian (https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details). A gzip'd file holds
the same, and gzip's own checksum of all of it. Where it is not compressed, a file that was cut exactly between two
records can't be told from a whole one.
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
"""No protobuf message is as long."""


class RecordError(Exception):
    """A file that is not whole, or a record that is not as it should be: the message names the record, not the file."""


def read_records(file: IO[bytes]) -> Iterator[bytes]:
    """The records of a file, gzip'd or not, in one gzip member or several.

    Args:
      file: at its beginning, buffered: how far it was read is how far the records were.

    Raises:
      RecordError: the file is empty, truncated or corrupt, or can't be read. All records before were as written.
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
        raise RecordError(f"can't be read: {error.strerror or error}") from error


class _FramingError(Exception):
    pass


def _uncompressed(file: IO[bytes]) -> _Stream:
    start = file.read(_HEADER.size)
    file.seek(0)
    if not start:
        raise _FramingError("the file is empty")
    # The length of an uncompressed file's first record may look like gzip's magic number, but not with its checksum.
    if _is_header(start):
        return file
    if start.startswith(_GZIP_MAGIC):
        return gzip.GzipFile(fileobj=file)
    raise _FramingError("it begins neither as TFRecords nor as gzip; is it a file of records?")


def _is_header(header: bytes) -> bool:
    return len(header) == _HEADER.size and _HEADER.unpack(header)[1] == masked_crc32c(header[:8])


def _read_record(header: bytes, stream: _Stream) -> bytes:
    if len(header) < _HEADER.size:
        raise _FramingError("the file ends within the length of the record")
    if not _is_header(header):
        raise _FramingError("the checksum of the length is wrong")
    length = _HEADER.unpack(header)[0]
    if length >= _MAX_LENGTH:
        raise _FramingError(f"{length} bytes long, more than a tf.Example can be")
    record = stream.read(length)
    checksum = stream.read(_CHECKSUM.size)
    if len(record) < length or len(checksum) < _CHECKSUM.size:
        raise _FramingError(f"the file ends within the record of {length} bytes")
    if _CHECKSUM.unpack(checksum)[0] != masked_crc32c(record):
        raise _FramingError(f"the checksum of the record's {length} bytes is wrong")
    return record


def masked_crc32c(data: bytes) -> int:
    """CRC-32C, rotated right by 15 bits and plus a constant, as TFRecord files store it."""
    crc: int = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
