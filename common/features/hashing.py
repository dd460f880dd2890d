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
# Number of values whose arrays stay in a core's cache during all steps, which makes them four times as fast.
_BLOCK = 16_384


def hash_integers(values: NDArray[np.int64], seeds: Hashes | None = None) -> Hashes:
    """Return the hashes of integers.

    Args:
      values: [values].
      seeds: seed of each value; None for SEED. Spark's xxhash64(c, c) uses the hashes of c as seeds.
    """
    hashes = np.empty(len(values), np.uint64)
    for begin in range(0, len(values), _BLOCK):
        block = slice(begin, begin + _BLOCK)
        words = values[block].astype(np.int64).view(np.uint64)
        part = _start(np.full(len(words), 8, np.uint64), None if seeds is None else seeds[block])
        _add_word(part, words)
        _finish(part)
        hashes[block] = part
    return hashes


def hash_strings(values: pa.Array, seeds: Hashes | None = None) -> Hashes:
    """Return the hashes of strings. The hash of a null is arbitrary.

    Args:
      values: a string or large_string array, [values].
      seeds: seed of each value; None for SEED. Spark's xxhash64(c, c) uses the hashes of c as seeds.
    """
    hashes = np.empty(len(values), np.uint64)
    data, ends = _text(values)
    for begin in range(0, len(values), _BLOCK):
        block = slice(begin, begin + _BLOCK)
        bounds = ends[begin : begin + _BLOCK + 1].astype(np.int64)
        hashes[block] = _hash_strings(data, bounds[:-1], np.diff(bounds), None if seeds is None else seeds[block])
    return hashes


def _hash_strings(
    data: NDArray[np.uint8], begins: NDArray[np.int64], lengths: NDArray[np.int64], seeds: Hashes | None
) -> Hashes:
    hashes = _start(lengths.astype(np.uint64), seeds)
    words, halves = _view(data, "<u8"), _view(data, "<u4")
    for word in range(min(int(lengths.max()), _STRIPE - 1) // 8):
        where = _where(lengths >= 8 * (word + 1))
        part = hashes[where]
        _add_word(part, words[begins[where] + 8 * word])
        hashes[where] = part
    rest = begins + (lengths & ~7)
    if (has_half := lengths & 4).any():
        where = _where(has_half > 0)
        part, numbers = hashes[where], halves[rest[where]].astype(np.uint64)
        numbers *= _P1
        part ^= numbers
        _rotate(part, 23)
        part *= _P2
        part += _P3
        hashes[where] = part
        rest += has_half
    lengths_of_rest = lengths & 3
    for byte in range(int(lengths_of_rest.max())):
        where = _where(lengths_of_rest > byte)
        part, numbers = hashes[where], data[rest[where] + byte].astype(np.uint64)
        numbers *= _P5
        part ^= numbers
        _rotate(part, 11)
        part *= _P1
        hashes[where] = part
    _finish(hashes)
    for index in np.flatnonzero(lengths >= _STRIPE).tolist():
        begin = int(begins[index])
        seed = SEED if seeds is None else int(seeds[index])
        hashes[index] = xxhash.xxh64_intdigest(data[begin : begin + int(lengths[index])].data, seed)
    return hashes


def buckets(hashes: Hashes, number: int) -> NDArray[np.int64]:
    """Return Spark's pmod(hash, number) of the signed hashes, which are at least 0 and less than `number`."""
    # numpy rounds quotients down, so that remainders are at least 0. It divides by a constant without a division, but
    # has no such remainder.
    signed = hashes.view(np.int64)
    quotients = signed // number
    quotients *= number
    remainders: NDArray[np.int64] = np.subtract(signed, quotients, out=quotients)
    return remainders


def _text(values: pa.Array) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Return the bytes of all strings, and where they begin, followed by the end of the last one."""
    _, offsets, data = values.buffers()
    if len(values) == 0:
        return np.empty(0, np.uint8), np.zeros(1, np.int32)
    dtype = np.dtype(np.int64 if pa.types.is_large_string(values.type) else np.int32)
    bounds = np.frombuffer(offsets, dtype, len(values) + 1, values.offset * dtype.itemsize)
    return np.frombuffer(data or b"", np.uint8), bounds


def _view(data: NDArray[np.uint8], dtype: str) -> NDArray[Any]:
    """Return the numbers that begin at each byte, without a copy."""
    size = np.dtype(dtype).itemsize
    return np.ndarray((max(0, len(data) - size + 1),), dtype, data.data, strides=(1,))


def _where(mask: NDArray[np.bool_]) -> slice | NDArray[np.intp]:
    """Return an index of the places that are true: a slice, which copies nothing, if that is all of them."""
    return slice(None) if mask.all() else np.flatnonzero(mask)


# The functions below are steps of XXH64 that change hashes in place.


def _start(lengths: Hashes, seeds: Hashes | None) -> Hashes:
    lengths += _P5
    lengths += np.uint64(SEED) if seeds is None else seeds
    return lengths


def _add_word(hashes: Hashes, words: Hashes) -> None:
    words *= _P2
    _rotate(words, 31)
    words *= _P1
    hashes ^= words
    _rotate(hashes, 27)
    hashes *= _P1
    hashes += _P4


def _rotate(numbers: Hashes, bits: int) -> None:
    left = numbers << np.uint64(bits)
    numbers >>= np.uint64(64 - bits)
    numbers |= left


def _finish(hashes: Hashes) -> None:
    hashes ^= hashes >> np.uint64(33)
    hashes *= _P2
    hashes ^= hashes >> np.uint64(29)
    hashes *= _P3
    hashes ^= hashes >> np.uint64(32)
