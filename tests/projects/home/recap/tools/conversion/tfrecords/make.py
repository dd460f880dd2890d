"""Writes the files in this folder with TensorFlow: TFRecords, and the arrays that TensorFlow reads from them (*.npz).

Install TensorFlow in a separate environment:

    python3 -m venv /tmp/tensorflow && /tmp/tensorflow/bin/pip install tensorflow
    /tmp/tensorflow/bin/python tests/projects/home/recap/tools/conversion/tfrecords/make.py
"""

import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

HERE = Path(__file__).parent
SCHEMA = {entry["feature_name"]: entry for entry in json.loads((HERE / "segdense.json").read_text())["schema"]}

Values = Iterable[float] | NDArray[Any]

rng = np.random.default_rng(0)


def floats(values: Values) -> Any:
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))


def integers(values: Values) -> Any:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def features() -> dict[str, Any]:
    """Return the features of one example."""
    return {
        "home.cont": floats(rng.lognormal(size=7)),
        "home.binary": integers(rng.integers(0, 2, 5)),
        "discrete": integers(rng.integers(0, 1000, 3)),
        "user.twhin": floats(rng.normal(size=4)),
        "author_embedding": floats(rng.normal(size=4)),
        "like": integers(rng.integers(0, 2, 1)),
        "reply": floats(rng.integers(0, 2, 1)),
        "meta.user_id": integers(rng.integers(-(2**63), 2**63, 1)),
        "served_ms": integers([1_675_000_000_000 + int(rng.integers(1000))]),
        "weight": floats(rng.random(1)),
        "languages": integers(rng.integers(0, 30, 2)),
        "text": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"\x00hello"])),
        "not in the schema": floats([1.0, 2.0]),
    }


def example(**changed: Any) -> bytes:
    """Return a serialized example. None omits a feature."""
    given = {name: value for name, value in (features() | changed).items() if value is not None}
    message = tf.train.Example(features=tf.train.Features(feature=given))
    return bytes(message.SerializeToString(deterministic=True))


def part_with_missing(num: int) -> Iterator[bytes]:
    """Yield examples with missing features, features without a kind, and values at the limits of their types."""
    names = list(SCHEMA)
    for _ in range(num):
        changed = {name: (None, tf.train.Feature())[rng.integers(2)] for name in rng.choice(names, 4, replace=False)}
        yield example(**changed)
    yield example(**{"home.cont": floats([np.nan, np.inf, -np.inf, -0.0, 1e-45, 3.4e38, 1 / 3])})
    yield example(**{"meta.user_id": integers([-(2**63)]), "discrete": integers([2**63 - 1, -1, 128])})
    yield example(**{"home.binary": integers([255, 128, 127, 1, 0])})
    yield b""


def message(number: int, data: bytes) -> bytes:
    """Return a length-delimited field of a protobuf message. `data` has fewer than 128 bytes."""
    return bytes([number << 3 | 2, len(data)]) + data


def with_feature(name: str, feature: bytes) -> bytes:
    """Return an example followed by the bytes `feature` as the feature `name`."""
    entry = message(1, name.encode()) + message(2, feature)
    return example(**{name: None}) + message(1, message(1, entry))


def part_with_other_encodings() -> Iterator[bytes]:
    """Yield examples with unpacked lists, in which every number has a tag, and one with a feature that occurs twice."""
    one_by_one = b"".join(b"\x0d" + struct.pack("<f", value) for value in (1.5, -2.5, 3.25, 1e9))
    yield with_feature("user.twhin", message(2, one_by_one))
    yield with_feature("home.binary", message(3, b"\x08\x01\x08\x00\x08\x01\x08\x01\x08\xff\x01"))
    yield with_feature("weight", message(2, b"\x0d" + struct.pack("<f", 0.5)))
    twice = message(1, message(1, message(1, b"like") + message(2, message(3, message(1, b"\x01")))))
    yield example(like=integers([0])) + twice


def refused() -> dict[str, bytes]:
    """Return records that TensorFlow refuses to read, by file name."""
    return {
        "short": example(**{"home.cont": floats([1.0] * 6)}),
        "long": example(**{"home.binary": integers([1] * 6)}),
        "empty-list": example(**{"user.twhin": floats([])}),
        "empty-list-of-one": example(like=integers([])),
        "other-kind": example(**{"user.twhin": integers([1, 2, 3, 4])}),
        "empty-list-of-other-kind": example(discrete=floats([])),
        "bytes": example(weight=tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"1"]))),
        "garbage": b"garbage",
        "cut": example()[:-3],
    }


def write(name: str, records: Iterable[bytes], compression: str = "") -> None:
    with tf.io.TFRecordWriter(str(HERE / name), tf.io.TFRecordOptions(compression_type=compression)) as writer:
        for record in records:
            writer.write(record)


def parse(name: str, compression: str = "") -> dict[str, NDArray[Any]]:
    """Parse a file as the original did: missing features are 0."""
    dtypes = {"float_list": tf.float32, "int64_list": tf.int64}
    spec = {
        name: tf.io.FixedLenFeature([entry["length"]], dtypes[entry["dtype"]], [0] * entry["length"])
        for name, entry in SCHEMA.items()
        if entry["dtype"] in dtypes
    }
    records = list(tf.data.TFRecordDataset(str(HERE / name), compression_type=compression).as_numpy_iterator())
    return {name: values.numpy() for name, values in tf.io.parse_example(records, spec).items()}


def main() -> None:
    parts = {
        "part-00000.gz": ("GZIP", [example() for _ in range(120)]),
        "part-00001.tfrecord.gz": ("GZIP", list(part_with_missing(40))),
        "part-00002.tfrecords": ("", [example() for _ in range(3)]),
        "part-00003": ("", list(part_with_other_encodings())),
        "part-00004.gz": ("GZIP", []),
    }
    for name, (compression, records) in parts.items():
        write(name, records, compression)
        if records:
            arrays: dict[str, Any] = parse(name, compression)
            np.savez_compressed(HERE / f"{name.split('.')[0]}.npz", **arrays)
    for name, record in refused().items():
        name = f"refused-{name}.tfrecord"
        write(name, [example(), record])
        try:
            parse(name)
        except (tf.errors.InvalidArgumentError, UnicodeDecodeError):  # the message can quote the bytes of the record
            continue
        raise AssertionError(f"{name} was read")


if __name__ == "__main__":
    main()
