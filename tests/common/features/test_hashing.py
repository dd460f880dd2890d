from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from common.features.hashing import Hashes, buckets, hash_integers, hash_strings


def signed(hashes: Hashes) -> Any:
    return hashes.view(np.int64).tolist()


def test_known_hashes_of_spark():
    assert signed(hash_integers(np.array([1]))) == [-7001672635703045582]
    first = hash_strings(pa.array(["ABC"]))
    assert signed(first) == [4105715581806190027]
    assert signed(hash_strings(pa.array(["DEF"]), first)) == [3233247871021311208]


def test_integers_equal_the_library():
    values = [0, 1, -1, 2**63 - 1, -(2**63), 255, 10**12]
    expected = [xxhash.xxh64_intdigest(value.to_bytes(8, "little", signed=True), 42) for value in values]
    hashes = hash_integers(np.array(values))
    assert hashes.tolist() == expected
    expected = [
        xxhash.xxh64_intdigest(value.to_bytes(8, "little", signed=True), seed)
        for value, seed in zip(values, expected, strict=True)
    ]
    assert hash_integers(np.array(values), hashes).tolist() == expected


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_strings_of_every_length_equal_the_library(kind):
    generator = np.random.default_rng(0)
    texts = ["".join(map(chr, generator.integers(1, 0x7FF, length))) for length in range(80)] * 2
    array = pa.array(["cut off", *texts], kind)[1:]
    hashes = hash_strings(array)
    assert hashes.tolist() == [xxhash.xxh64_intdigest(text.encode(), 42) for text in texts]
    expected = [xxhash.xxh64_intdigest(text.encode(), int(seed)) for text, seed in zip(texts, hashes, strict=True)]
    assert hash_strings(array, hashes).tolist() == expected


@pytest.mark.parametrize("values", [[], [""], ["", ""], ["a"], ["abcd", ""]])
def test_few_and_empty_strings(values):
    hashes = hash_strings(pa.array(values, pa.string()))
    assert hashes.tolist() == [xxhash.xxh64_intdigest(value.encode(), 42) for value in values]


def test_buckets_are_remainders_of_signed_hashes():
    hashes = hash_integers(np.arange(1000))
    as_signed = [value - 2**64 if value >= 2**63 else value for value in hashes.tolist()]
    assert buckets(hashes, 1000).tolist() == [value % 1000 for value in as_signed]
    differ = sum(a % 1000 != b % 1000 for a, b in zip(as_signed, hashes.tolist(), strict=True))
    assert 400 < differ < 600
