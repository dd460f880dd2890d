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
    """A record in a TFRecord file."""
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
    """The records, and the message where not all could be read."""
    records = []
    try:
        for record in read_records(io.BytesIO(data)):
            records.append(record)  # noqa: PERF402 - those before the error count
    except RecordError as error:
        return records, str(error)
    return records, ""


@pytest.mark.parametrize("name", NUM_RECORDS)
def test_what_tensorflow_wrote(name):
    assert len(read(content(name))) == NUM_RECORDS[name]


def test_gzip_or_not_is_seen_in_the_file():
    data = content("part-00002.tfrecords")
    assert read(gzip.compress(data)) == read(data)


def test_several_gzip_members():
    data = content("part-00002.tfrecords")
    pieces = [gzip.compress(data[:500]), gzip.compress(b""), gzip.compress(data[500:])]
    assert read(b"".join(pieces)) == read(data)


def test_a_length_that_looks_like_gzip_s_magic_number():
    record = bytes(int.from_bytes(b"\x1f\x8b\x08", "little"))
    data = framed(record)
    assert data.startswith(b"\x1f\x8b\x08")
    assert read(data) == [record]


def boundaries(data: bytes) -> Iterator[int]:
    """Where the records of an uncompressed file end."""
    end = 0
    for record in read(data):
        end += len(framed(record))
        yield end


def test_an_uncompressed_file_truncated_at_any_byte():
    data = content("part-00002.tfrecords")
    whole = read(data)
    ends = list(boundaries(data))
    assert ends[-1] == len(data)
    for size in range(1, len(data)):
        records, problem = read_until_error(data[:size])
        num_whole = sum(end <= size for end in ends)
        assert records == whole[:num_whole]
        if size not in ends:  # a file that ends there is one of fewer records
            assert problem.startswith(f"record {num_whole} (counted from 0): truncated or corrupt: ")


def test_a_gzip_d_file_truncated_at_any_byte():
    data = gzip.compress(content("part-00002.tfrecords"))
    whole = read(data)
    for size in range(len(data)):
        records, problem = read_until_error(data[:size])
        assert records == whole[: len(records)]
        assert "truncated or corrupt" in problem


def test_an_uncompressed_file_with_a_flipped_bit_at_any_byte():
    data = content("part-00002.tfrecords")
    whole = read(data)
    for index in range(len(data)):
        records, problem = read_until_error(with_flipped_bit(data, index))
        assert records == whole[: len(records)]
        assert "truncated or corrupt" in problem


def test_a_gzip_d_file_with_a_flipped_bit_at_any_byte():
    data = gzip.compress(content("part-00002.tfrecords"))
    whole = read(data)
    not_told = []
    for index in range(len(data)):
        records, problem = read_until_error(with_flipped_bit(data, index))
        assert records == whole[: len(records)]
        if not problem:
            assert records == whole
            not_told.append(index)
    assert len(not_told) < 12, "time and system in gzip's header and the last bits of the stream change no record"


def test_a_larger_file_truncated_or_with_random_bytes():
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


def test_an_empty_file_is_a_truncated_one():
    with pytest.raises(RecordError, match="the file is empty"):
        read(b"")


def test_what_follows_a_gzip_d_file():
    data = gzip.compress(content("part-00002.tfrecords"))
    records, problem = read_until_error(data + b"garbage")
    assert len(records) == 3
    assert problem.startswith("record 3 (counted from 0): truncated or corrupt: ")


@pytest.mark.parametrize("length", [2**31, 2**64 - 1])
def test_a_length_that_no_example_has(length):
    header = struct.pack("<Q", length)
    with pytest.raises(RecordError, match=f"{length} bytes long"):
        read(header + masked(header) + b"...")


def test_a_file_that_can_t_be_read():
    class Unreadable(io.BytesIO):
        def read(self, *_: int | None) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(RecordError, match=r"^can't be read: Input/output error$"):
        list(read_records(Unreadable()))
