"""Encoded categories equal rows that plain Python encodes one by one."""

import numpy as np
import pyarrow as pa
import pytest

from common.features.encoder import IDS, FeatureEncoder
from common.reader.files import DataError
from common.reader.vectors import vector_array, vector_field
from tests.support.encoded_rows import encode_row, parse_features
from tests.support.encoded_tables import array, check, encode, error_of, vocabulary

INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
TEXT_TYPES = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int16(), pa.string())]

TEXTS = ["a", "b", None, "", "unknown", "a", "é", "a much longer value than thirty-two bytes", "b", None]


@pytest.mark.parametrize("kind", TEXT_TYPES, ids=str)
def test_strings_of_every_type(tmp_path, kind):
    path, indices = vocabulary(tmp_path, ["b", "a", "é"])
    table = pa.table({"c": array(TEXTS, kind)})
    features = {
        "c": {"kind": "category", "vocabulary": path},
        "one": {"kind": "category", "column": "c", "hash_buckets": 1000},
        "two": {"kind": "category", "column": "c", "hash_buckets": 7, "num_hashes": 2},
    }
    check(tmp_path, table, features, **{path: indices})
    check(tmp_path, pa.table({"c": array([None, None, None], kind)}), features, **{path: indices})


CATEGORY_INTEGERS = [0, 1, None, 5, 7, 127, 1, None, 100]


@pytest.mark.parametrize("kind", [*INTEGERS, pa.float32(), pa.float64(), pa.dictionary(pa.int8(), pa.int64())], ids=str)
@pytest.mark.parametrize("with_nulls", [True, False])
def test_integers_of_every_type(tmp_path, kind, with_nulls):
    path, indices = vocabulary(tmp_path, [7, -3, 1])
    values = [value for value in CATEGORY_INTEGERS if with_nulls or value is not None]
    features = {
        "c": {"kind": "category", "vocabulary": path},
        "numbered": {"kind": "category", "column": "c", "num_values": 6},
        "one": {"kind": "category", "column": "c", "hash_buckets": 1000},
        "two": {"kind": "category", "column": "c", "hash_buckets": 7, "num_hashes": 2},
    }
    check(tmp_path, pa.table({"c": array(values, kind)}), features, **{path: indices})


def test_extreme_integers_and_booleans(tmp_path):
    path, indices = vocabulary(tmp_path, [0, 2**63 - 1, -(2**63)])
    features = {
        "c": {"kind": "category", "vocabulary": path},
        "numbered": {"kind": "category", "column": "c", "num_values": 2},
        "hashed": {"kind": "category", "column": "c", "hash_buckets": 1000},
    }
    check(tmp_path, pa.table({"c": [2**63 - 1, -(2**63), -1, 2**62]}), features, **{path: indices})
    check(tmp_path, pa.table({"c": [True, None, False]}), features, **{path: indices})


def test_values_that_are_no_integers_are_unknown(tmp_path):
    path, indices = vocabulary(tmp_path, [0, 1])
    features = {
        "c": {"kind": "category", "vocabulary": path},
        "numbered": {"kind": "category", "column": "c", "num_values": 2},
    }
    table = pa.table({"c": [1.0, 0.5, float("inf"), -float("inf"), 1e300, None, float("nan"), -0.0]})
    check(tmp_path, table, features, **{path: indices})
    check(tmp_path, pa.table({"c": pa.array([1, 2**63, None, 2**64 - 1], pa.uint64())}), features, **{path: indices})


@pytest.mark.parametrize(
    ("kind", "bad"), [(pa.uint64(), 2**63), (pa.float64(), 0.5), (pa.dictionary(pa.int8(), pa.float64()), 0.5)]
)
def test_values_that_have_no_hash_are_an_error_of_their_row(tmp_path, kind, bad):
    table = pa.table({"c": array([1, 2, None, 3, None, bad, 1], kind)})
    message = (
        f"row group 1, row 1 (both counted from 0): column 'c': found {bad}, but hash_buckets takes strings and "
        "integers from -2^63 to 2^63 - 1; use kind: number for others"
    )
    assert error_of(tmp_path, table, {"c": {"kind": "category", "hash_buckets": 10}}) == message
    element = kind.value_type if pa.types.is_dictionary(kind) else kind
    lists = pa.table({"c": pa.array([[1], [2, 2], None, [], [], [3, bad], [1]], pa.list_(element))})
    assert error_of(tmp_path, lists, {"c": {"kind": "categories", "hash_buckets": 10}}) == message


LISTS = [["a", "b"], None, [], ["b", None, "unknown", "a"], [None], ["a"] * 9, [], ["c"], None, ["a", "b"]]


@pytest.mark.parametrize("lists", [pa.list_, pa.large_list])
@pytest.mark.parametrize("kind", [*TEXT_TYPES[:3], pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_lists_of_strings(tmp_path, lists, kind):
    path, indices = vocabulary(tmp_path, ["b", "a"])
    values = pa.array(LISTS, lists(pa.string())).cast(lists(kind))
    features = {
        "c": {"kind": "categories", "vocabulary": path, "max_length": 3},
        "long": {"kind": "categories", "column": "c", "vocabulary": path, "max_length": 20},
        "two": {"kind": "categories", "column": "c", "hash_buckets": 7, "num_hashes": 2, "max_length": 4},
    }
    check(tmp_path, pa.table({"c": values}), features, **{path: indices})


@pytest.mark.parametrize("kind", [*INTEGERS, pa.float64()], ids=str)
def test_lists_of_integers(tmp_path, kind):
    path, indices = vocabulary(tmp_path, [7, 1])
    values = [[1, 7], None, [], [7, None, 9, 1], [None], [1] * 9, [], [100], None]
    features = {
        "c": {"kind": "categories", "vocabulary": path, "max_length": 3},
        "numbered": {"kind": "categories", "column": "c", "num_values": 8, "max_length": 1},
        "two": {"kind": "categories", "column": "c", "hash_buckets": 7, "num_hashes": 2, "max_length": 4},
    }
    check(tmp_path, pa.table({"c": pa.array(values, pa.list_(kind))}), features, **{path: indices})


@pytest.mark.parametrize("kind", [pa.string(), pa.int64()])
@pytest.mark.parametrize("max_length", [1, 2, 5])
def test_fixed_lists_and_binary_vectors_of_categories(tmp_path, kind, max_length):
    values = [["1", "2"], None, ["3", None], ["1", "9"], ["2", "2"]]
    converted = pa.array(values, pa.list_(pa.string(), 2))
    if kind == pa.int64():
        numbers = [None if row is None else [None if each is None else int(each) for each in row] for row in values]
        converted = pa.array(numbers, pa.list_(kind, 2))
    features = {"c": {"kind": "categories", "hash_buckets": 50, "max_length": max_length}}
    check(tmp_path, pa.table({"c": converted}), features)
    if kind == pa.int64():
        field = vector_field("c", "int64", 2, "binary")
        stored = vector_array(np.array([[1, 2], [3, 4], [5, 5]]), field)
        rows = encode(tmp_path, pa.Table.from_arrays([stored], schema=pa.schema([field])), features)
        lists = pa.table({"c": [[1, 2], [3, 4], [5, 5]]})
        assert rows == encode(tmp_path, lists, features)


def test_lists_of_nulls_alone(tmp_path):
    values = pa.array([[], None, [None], [None, None]], pa.list_(pa.null()))
    check(tmp_path, pa.table({"c": values}), {"c": {"kind": "categories", "num_values": 3, "max_length": 4}})


def test_more_values_than_are_encoded_at_once(tmp_path):
    path, indices = vocabulary(tmp_path, [*map(str, range(0, 40_000, 2))])
    values = [None if value % 100 == 7 else str(value) for value in range(40_000)]
    features = parse_features(
        {"c": {"kind": "category", "vocabulary": path}, "l": {"kind": "categories", "vocabulary": path}}
    )
    table = pa.table({"c": values, "l": pa.ListArray.from_arrays(np.arange(40_001, dtype=np.int32), pa.array(values))})
    ids = FeatureEncoder.open(features).encode(table, "location")[IDS]
    expected = [0 if value is None else indices.get(value, -1) + 2 for value in values]
    assert ids[:, 0].tolist() == ids[:, 1].tolist() == expected
    bad = pa.table({"c": [*range(39_999), 0.5]})
    encoder = FeatureEncoder.open(parse_features({"c": {"kind": "category", "hash_buckets": 10}}))
    with pytest.raises(DataError, match=r"location, row 39999 .*found 0\.5"):
        encoder.encode(bad, "location")


@pytest.mark.parametrize("seed", range(5))
def test_sliced_and_chunked_arrays_and_dictionaries_with_nulls(seed):
    """Arrow data that files do not yield, but that the format allows."""
    generator = np.random.default_rng(seed)
    texts = ["a", "b", None, "d", "e", "f"]

    def chunk() -> tuple[pa.Array, pa.Array]:
        dictionary = pa.array(generator.permutation(np.array(texts, object)).tolist(), pa.string())
        indices = pa.array([None if code == 9 else int(code) for code in generator.choice([0, 1, 2, 3, 9], 20)])
        values = pa.DictionaryArray.from_arrays(indices, dictionary)
        lengths = generator.integers(0, 5, 6)
        lengths = np.minimum(np.cumsum(lengths), 20)
        offsets = pa.array([None if generator.random() < 0.2 else int(end) for end in [0, *lengths[:-1]]] + [20])
        return values[3:17], pa.ListArray.from_arrays(offsets, values)[1:5]

    chunks = [chunk() for _ in range(3)]
    features = parse_features(
        {
            "c": {"kind": "category", "hash_buckets": 100},
            "l": {"kind": "categories", "hash_buckets": 100, "max_length": 2},
        }
    )
    for name, index in (("c", 0), ("l", 1)):
        column = pa.chunked_array([each[index] for each in chunks])
        own = {name: features[name]}
        encoded = FeatureEncoder.open(own).encode(pa.table({name: column}), "location")[IDS]
        rows = [value for chunk in column.chunks for value in chunk.to_pylist()]
        assert encoded.tolist() == [encode_row({name: value}, own, {})["ids"] for value in rows]


def test_vocabularies_and_columns_have_one_type(tmp_path):
    texts, _ = vocabulary(tmp_path, ["a"])
    integers, _ = vocabulary(tmp_path, [1])
    assert error_of(tmp_path, pa.table({"c": [1]}), {"c": {"kind": "category", "vocabulary": texts}}) == (
        f"column 'c': found int64, expected strings, because those are the values of the vocabulary {texts}"
    )
    assert error_of(tmp_path, pa.table({"c": ["a"]}), {"c": {"kind": "category", "vocabulary": integers}}) == (
        f"column 'c': found string, expected integers, because those are the values of the vocabulary {integers}"
    )


def test_hashed_columns_of_one_table_have_one_type(tmp_path):
    features = {
        "item": {"kind": "category", "hash_buckets": 9, "table": "t"},
        "last": {"kind": "categories", "hash_buckets": 9, "table": "t"},
    }
    assert error_of(tmp_path, pa.table({"item": [1], "last": [["1"]]}), features) == (
        "column 'last': found list<element: string>, expected lists of integers, because other values of the same "
        "table are integers, first in column 'item'"
    )
    first = {"first": {"kind": "category", "hash_buckets": 9, "table": "t"}}
    assert error_of(tmp_path, pa.table({"first": [1], "item": [1], "last": [["1"]]}), first | features).endswith(
        "first in column 'first'"
    )
    encode(tmp_path, pa.table({"item": [1.0], "last": [[1, None]]}), features)
    encode(tmp_path, pa.table({"item": pa.nulls(1), "last": [["1"]]}), features)
