import gzip
import io
import struct
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from projects.home.recap.tools.conversion.tfrecords import RecordError, read_records

WRITTEN_BY_TENSORFLOW = Path(__file__).parent / "tfrecords"
NUM_RECORDS = {
    "part-00000.gz": 120,
    "part-00001.tfrecord.gz": 44,
    "part-00002.tfrecords": 3,
    "part-00003": 4,
    "part-00004.gz": 0,
}


def framed(record: bytes) -> bytes:
    """Return a record with its length and checksums, as in a TFRecord file."""
    length = struct.pack("<Q", len(record))
    return length + masked(length) + record + masked(record)


def masked(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) % 2**32 + 0xA282EAD8) % 2**32)


def content(name: str) -> bytes:
    return (WRITTEN_BY_TENSORFLOW / name).read_bytes()


def read(data: bytes) -> list[bytes]:
    return list(read_records(io.BytesIO(data)))


def read_until_error(data: bytes) -> tuple[list[bytes], str]:
    """Return the records, and the error message, empty if all could be read."""
    records = []
    try:
        for record in read_records(io.BytesIO(data)):
            records.append(record)  # noqa: PERF402 - keeps the records before an error
    except RecordError as error:
        return records, str(error)
    return records, ""


@pytest.mark.parametrize("name", NUM_RECORDS)
def test_files_that_tensorflow_wrote_are_read(name):
    assert len(read(content(name))) == NUM_RECORDS[name]


def test_gzip_is_detected_from_the_contents():
    data = content("part-00002.tfrecords")
    assert read(gzip.compress(data)) == read(data)


def test_several_gzip_members_are_read():
    data = content("part-00002.tfrecords")
    pieces = [gzip.compress(data[:500]), gzip.compress(b""), gzip.compress(data[500:])]
    assert read(b"".join(pieces)) == read(data)


def test_a_length_that_looks_like_the_magic_number_of_gzip_is_read():
    record = bytes(int.from_bytes(b"\x1f\x8b\x08", "little"))
    data = framed(record)
    assert data.startswith(b"\x1f\x8b\x08")
    assert read(data) == [record]


def boundaries(data: bytes) -> Iterator[int]:
    """Yield the ends of the records of an uncompressed file."""
    end = 0
    for record in read(data):
        end += len(framed(record))
        yield end


def test_truncation_of_an_uncompressed_file_at_any_byte_is_detected():
    data = content("part-00002.tfrecords")
    whole = read(data)
    ends = list(boundaries(data))
    assert ends[-1] == len(data)
    for size in range(1, len(data)):
        records, problem = read_until_error(data[:size])
        num_whole = sum(end <= size for end in ends)
        assert records == whole[:num_whole]
        if size not in ends:  # truncated between records, it is a valid shorter file
            assert problem.startswith(f"record {num_whole} (counted from 0): truncated or corrupt: ")


def test_truncation_of_a_gzip_file_at_any_byte_is_detected():
    data = gzip.compress(content("part-00002.tfrecords"))
    whole = read(data)
    for size in range(len(data)):
        records, problem = read_until_error(data[:size])
        assert records == whole[: len(records)]
        assert "truncated or corrupt" in problem


def test_a_flipped_bit_in_any_byte_of_an_uncompressed_file_is_detected():
    data = content("part-00002.tfrecords")
    whole = read(data)
    for index in range(len(data)):
        records, problem = read_until_error(with_flipped_bit(data, index))
        assert records == whole[: len(records)]
        assert "truncated or corrupt" in problem


def test_a_flipped_bit_in_any_byte_of_a_gzip_file_is_detected_or_harmless():
    data = gzip.compress(content("part-00002.tfrecords"))
    whole = read(data)
    undetected = []
    for index in range(len(data)):
        records, problem = read_until_error(with_flipped_bit(data, index))
        assert records == whole[: len(records)]
        if not problem:
            assert records == whole
            undetected.append(index)
    assert len(undetected) < 12, (
        "only the time and system in gzip's header and the last bits of the stream are harmless"
    )


def test_truncation_and_random_bytes_in_a_larger_file_are_detected():
    data = content("part-00000.gz")
    whole = read(data)
    rng = np.random.default_rng(0)
    for _ in range(100):
        index = int(rng.integers(10, len(data)))
        for damaged in (data[:index], data[:index] + rng.bytes(8) + data[index + 8 :]):
            records, problem = read_until_error(damaged)
            assert records == whole[: len(records)]
            assert "truncated or corrupt" in problem


def with_flipped_bit(data: bytes, index: int) -> bytes:
    return data[:index] + bytes([data[index] ^ (1 << index % 8)]) + data[index + 1 :]


def test_an_empty_file_is_an_error():
    with pytest.raises(RecordError, match=r"truncated.*empty"):
        read(b"")


def test_garbage_after_a_gzip_stream_is_detected():
    data = gzip.compress(content("part-00002.tfrecords"))
    records, problem = read_until_error(data + b"garbage")
    assert len(records) == 3
    assert problem.startswith("record 3 (counted from 0): truncated or corrupt: ")


@pytest.mark.parametrize("length", [2**31, 2**64 - 1])
def test_an_impossible_length_is_an_error(length):
    header = struct.pack("<Q", length)
    with pytest.raises(RecordError, match=f"{length} bytes long"):
        read(header + masked(header) + b"...")


def test_an_unreadable_file_is_an_error():
    class Unreadable(io.BytesIO):
        def read(self, *_: int | None) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(RecordError, match="Input/output error"):
        list(read_records(Unreadable()))
