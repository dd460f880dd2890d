"""Hashes values as Spark's xxhash64 does: XXH64 with seed 42, on any machine and in any release.

An integer is hashed as 8 little-endian bytes, like Spark's xxhash64(CAST(c AS BIGINT)), and a string as its UTF-8
bytes, like xxhash64(c). The formulas, for whole arrays, are those of the specification (xxHash, doc/xxhash_spec.md).
"""

from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

SEED = 42
"""Seed of Spark's xxhash64."""

Hashes = NDArray[np.uint64]
"""Unsigned hashes, [values]."""

_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)
# From this length in bytes on, XXH64 reads stripes, and the C library hashes one string at a time.
_STRIPE = 32


def hash_integers(values: NDArray[np.int64], seeds: Hashes | None = None) -> Hashes:
    """Return the hashes of integers.

    Args:
      values: [values].
      seeds: seed of each value; None for SEED. Spark's xxhash64(c, c) uses the hashes of c as seeds.
    """
    values = np.ascontiguousarray(values, np.int64)
    return _finish(_add_word(_start(values.shape, 8, seeds), values.view(np.uint64)))


def hash_strings(values: pa.Array, seeds: Hashes | None = None) -> Hashes:
    """Return the hashes of strings. The hash of a null is arbitrary.

    Args:
      values: a string or large_string array, [values].
      seeds: seed of each value; None for SEED. Spark's xxhash64(c, c) uses the hashes of c as seeds.
    """
    data, begins, lengths = _text(values)
    hashes = _start(lengths.shape, lengths.astype(np.uint64), seeds)
    words = _view(data, "<u8")
    for word in range(_STRIPE // 8 - 1):
        has = np.flatnonzero(lengths >= 8 * (word + 1))
        if has.size == 0:
            break
        hashes[has] = _add_word(hashes[has], words[begins[has] + 8 * word])
    rest = begins + (lengths & ~7)
    has = np.flatnonzero(lengths & 4)
    if has.size:
        half = _view(data, "<u4")[rest[has]].astype(np.uint64)
        hashes[has] = _rotate(hashes[has] ^ (half * _P1), 23) * _P2 + _P3
        rest[has] += 4
    for byte in range(3):
        has = np.flatnonzero((lengths & 3) > byte)
        if has.size:
            hashes[has] = _rotate(hashes[has] ^ (data[rest[has] + byte].astype(np.uint64) * _P5), 11) * _P1
    hashes = _finish(hashes)
    for index in np.flatnonzero(lengths >= _STRIPE).tolist():
        begin = int(begins[index])
        seed = SEED if seeds is None else int(seeds[index])
        hashes[index] = xxhash.xxh64_intdigest(data[begin : begin + int(lengths[index])].data, seed)
    return hashes


def buckets(hashes: Hashes, number: int) -> NDArray[np.int64]:
    """Return Spark's pmod(hash, number) of the signed hashes, which are at least 0 and less than `number`."""
    # The remainder of numpy has the sign of the divisor.
    return hashes.view(np.int64) % number


def _text(values: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Return the bytes of all strings, and the first byte and the length of each."""
    _, offsets, data = values.buffers()
    if len(values) == 0:
        return np.empty(0, np.uint8), np.empty(0, np.int64), np.empty(0, np.int64)
    dtype = np.dtype(np.int64 if pa.types.is_large_string(values.type) else np.int32)
    ends = np.frombuffer(offsets, dtype, len(values) + 1, values.offset * dtype.itemsize).astype(np.int64)
    return np.frombuffer(data or b"", np.uint8), ends[:-1], np.diff(ends)


def _view(data: NDArray[np.uint8], dtype: str) -> NDArray[Any]:
    """Return the numbers that begin at each byte, without a copy."""
    size = np.dtype(dtype).itemsize
    return np.ndarray((max(0, len(data) - size + 1),), dtype, data.data, strides=(1,))


def _start(shape: tuple[int, ...], lengths: Hashes | int, seeds: Hashes | None) -> Hashes:
    first = np.full(shape, SEED, np.uint64) if seeds is None else seeds
    return first + _P5 + np.asarray(lengths, np.uint64)


def _add_word(hashes: Hashes, words: Hashes) -> Hashes:
    return _rotate(hashes ^ (_rotate(words * _P2, 31) * _P1), 27) * _P1 + _P4


def _rotate(hashes: Hashes, bits: int) -> Hashes:
    return (hashes << np.uint64(bits)) | (hashes >> np.uint64(64 - bits))


def _finish(hashes: Hashes) -> Hashes:
    hashes = (hashes ^ (hashes >> np.uint64(33))) * _P2
    hashes = (hashes ^ (hashes >> np.uint64(29))) * _P3
    return hashes ^ (hashes >> np.uint64(32))
