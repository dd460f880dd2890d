import itertools
import json
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common.files.table_writer import TableColumn
from projects.home.recap.tools.conversion.columns import features_of_schema
from projects.home.recap.tools.conversion.example_pb2 import Example
from projects.home.recap.tools.conversion.examples import Absences, ExampleFeature, read_blocks
from projects.home.recap.tools.conversion.tfrecords import RecordError, read_records
from tests.projects.home.recap.tools.conversion.test_tfrecords import WRITTEN_BY_TENSORFLOW

SCHEMA = WRITTEN_BY_TENSORFLOW / "segdense.json"
FEATURES = features_of_schema(str(SCHEMA))
PARTS = ("part-00000.gz", "part-00001.tfrecord.gz", "part-00002.tfrecords", "part-00003")


def records_of(name: str) -> list[bytes]:
    with (WRITTEN_BY_TENSORFLOW / name).open("rb") as file:
        return list(read_records(file))


def read_by_tensorflow(name: str) -> dict[str, NDArray[Any]]:
    """Return the features that TensorFlow's parse_example read from a file, by name, each [rows, length]."""
    with np.load(WRITTEN_BY_TENSORFLOW / f"{name.split('.')[0]}.npz") as arrays:
        return dict(arrays)


def columns(records: Iterable[bytes], features: list[ExampleFeature]) -> dict[str, NDArray[Any]]:
    blocks = list(read_blocks(records, features, Absences()))
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def example(**lists: list[float]) -> bytes:
    """Return a serialized example with float_list features."""
    message = Example()
    for name, values in lists.items():
        message.features.feature[name].float_list.value.extend(values)
    return message.SerializeToString()


def bit_equal(left: NDArray[Any], right: NDArray[Any]) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


@pytest.mark.parametrize("name", PARTS)
def test_rows_equal_those_that_tensorflow_reads_bit_for_bit(name):
    """Covers missing features, NaN, the limits of int64, unpacked lists, and a feature that occurs twice."""
    expected = read_by_tensorflow(name)
    found = columns(records_of(name), FEATURES)
    assert found.keys() == expected.keys()
    for feature, values in expected.items():
        assert bit_equal(found[feature], values if values.shape[1] > 1 else values[:, 0]), feature


def test_missing_features_are_counted():
    """Shows that the test above covers missing features: this file lacks each of them at least five times."""
    absences = Absences()
    list(read_blocks(records_of(PARTS[1]), FEATURES, absences))
    missing = absences.missing
    assert len(missing) == 11
    assert min(missing.values()) >= 5
    expected = read_by_tensorflow(PARTS[1])
    for name in ("home.cont", "user.twhin", "author_embedding", "weight", "served_ms"):  # zero only if missing
        assert missing[name] == (expected[name] == 0).all(axis=1).sum(), name


def test_many_rows_are_read_in_blocks():
    records = list(itertools.islice(itertools.cycle(records_of(PARTS[0])), 700))
    blocks = [len(block["weight"]) for block in read_blocks(records, FEATURES, Absences())]
    assert sum(blocks) == 700
    assert max(blocks) < 300
    weight = columns(records, FEATURES)["weight"]
    assert bit_equal(weight, np.resize(read_by_tensorflow(PARTS[0])["weight"][:, 0], 700))


def test_a_missing_feature_does_not_keep_the_value_of_the_previous_block():
    feature = ExampleFeature("x", "float_list", 1, TableColumn("x", "float32"))
    records = [example(x=[1.0])] * 256 + [b""]
    assert columns(records, [feature])["x"].tolist() == [1.0] * 256 + [0.0]


def test_no_records_yield_no_blocks():
    assert list(read_blocks([], FEATURES, Absences())) == []


@pytest.mark.parametrize(
    ("positions", "width"), [(None, 7), (None, 3), ((0, 2, 5), 3), ((6,), 1)], ids=["all", "first", "mask", "last"]
)
def test_a_feature_is_cut_to_its_column(positions, width):
    feature = ExampleFeature("home.cont", "float_list", 7, TableColumn("continuous", "float32", width), positions)
    expected = read_by_tensorflow(PARTS[0])["home.cont"][:, list(positions or range(width))]
    assert bit_equal(columns(records_of(PARTS[0]), [feature])["continuous"], expected)


def test_integers_are_converted_to_floats():
    feature = ExampleFeature("home.binary", "int64_list", 5, TableColumn("continuous", "float32", 5))
    expected = read_by_tensorflow(PARTS[1])["home.binary"].astype(np.float32)
    assert bit_equal(columns(records_of(PARTS[1]), [feature])["continuous"], expected)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("short", "feature 'home.cont': expected float_list of length 7, found float_list of length 6"),
        ("long", "feature 'home.binary': expected int64_list of length 5, found int64_list of length 6"),
        ("empty-list", "feature 'user.twhin': expected float_list of length 4, found float_list of length 0"),
        ("empty-list-of-one", "feature 'like': expected int64_list of length 1, found int64_list of length 0"),
        ("other-kind", "feature 'user.twhin': expected float_list of length 4, found int64_list of length 4"),
        (
            "empty-list-of-other-kind",
            "feature 'discrete': expected int64_list of length 3, found float_list of length 0",
        ),
        ("bytes", "feature 'weight': expected float_list of length 1, found bytes_list of length 1"),
        ("garbage", "not a tf.Example: "),
        ("cut", "not a tf.Example: "),
    ],
)
def test_records_that_tensorflow_refuses_are_refused(name, problem):
    with pytest.raises(RecordError) as caught:
        columns(records_of(f"refused-{name}.tfrecord"), FEATURES)
    assert str(caught.value).startswith(f"record 1 (counted from 0): {problem}")


def test_every_refused_file_is_tested():
    assert len(list(WRITTEN_BY_TENSORFLOW.glob("refused-*"))) == 9


@pytest.mark.parametrize("value", [2.0, -1.0, 0.5, float("nan"), float("inf")])
def test_a_label_other_than_0_and_1_is_an_error(value):
    feature = ExampleFeature("like", "float_list", 1, TableColumn("like", "int8"), largest=1)
    records = [example(like=[1.0])] * 300 + [example(like=[value])]
    with pytest.raises(RecordError, match=rf"^record 300 .*'like'.* {value}, .*0 to 1$"):
        columns(records, [feature])


@pytest.mark.parametrize("value", [256, -1, 2**40 + 1, -(2**63)])
def test_a_binary_value_that_does_not_fit_a_byte_is_an_error(value):
    message = Example()
    message.features.feature["binary"].int64_list.value.extend([0, 255, value])
    feature = ExampleFeature("binary", "int64_list", 3, TableColumn("binary", "uint8", 3), largest=255)
    with pytest.raises(RecordError, match=rf"^record 0 .*'binary'.* {value}, .*0 to 255$"):
        columns([message.SerializeToString()], [feature])


def test_a_binary_value_that_is_cut_off_is_not_checked():
    message = Example()
    message.features.feature["binary"].int64_list.value.extend([0, 255, 256])
    feature = ExampleFeature("binary", "int64_list", 3, TableColumn("binary", "uint8", 2), largest=255)
    assert columns([message.SerializeToString()], [feature])["binary"].tolist() == [[0, 255]]


def test_a_list_in_packed_and_unpacked_pieces_is_read():
    """Protobuf allows such lists. TensorFlow neither writes nor reads them."""
    pieces = b"\x0a\x04" + struct.pack("<f", 1) + b"\x0d" + struct.pack("<f", 2) + b"\x0a\x04" + struct.pack("<f", 3)
    feature = b"\x12" + bytes([len(pieces)]) + pieces
    entry = b"\x0a\x01x\x12" + bytes([len(feature)]) + feature
    features = b"\x0a" + bytes([len(entry)]) + entry
    record = b"\x0a" + bytes([len(features)]) + features
    x = ExampleFeature("x", "float_list", 3, TableColumn("x", "float32", 3))
    assert columns([record], [x])["x"].tolist() == [[1.0, 2.0, 3.0]]


def test_tensorflow_read_every_feature_of_the_schema_but_bytes():
    named = [entry["feature_name"] for entry in json.loads(SCHEMA.read_text())["schema"]]
    assert set(named) - set(read_by_tensorflow(PARTS[0])) == {"text"}
