"""Writes the part of an export that encodes columns, and compares it with the reader's encoder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from common.features.encoder import BINARY, CONTINUOUS, IDS, FeatureEncoder, embedding_key
from common.reader.files import matching_files
from common.reader.gather import empty_column, gather
from common.reader.parquet import ParquetTable
from common.reader.vectors import is_list
from projects.home.recap.data.dataset import feature_columns
from projects.home.recap.data.schema import Feature
from projects.home.recap.export.encoding import Entry, encoding_of_features, encoding_of_schema
from projects.home.recap.export.flat_ranker import EMBEDDING_PREFIX, RankerInput
from projects.home.recap.export.score import Ranker
from projects.home.recap.export.signature import write_vocabularies
from tests.support.encoded_rows import parse_features

Columns = Mapping[str, Any]


def open_encoding(folder: Path, inputs: list[RankerInput], encoding: list[Entry]) -> Ranker:
    """Return a ranker of score.py that encodes, and whose model does nothing."""
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "nothing", [value], [output]), ir_version=10)
    onnx.save(model, folder / "model.onnx")
    shapes = [
        {"name": each.name, "dtype": str(each.dtype).removeprefix("torch."), "shape": ["batch", each.width]}
        for each in inputs
    ]
    text = json.dumps({"inputs": shapes, "encoding": encoding}, allow_nan=False)
    (folder / "signature.json").write_text(text, encoding="utf-8")
    return Ranker(folder)


def open_features(folder: Path, encoder: FeatureEncoder) -> Ranker:
    """Return a ranker of score.py that encodes the features of an encoder."""
    layout = encoder.layout
    widths = {EMBEDDING_PREFIX + name: width for name, width in layout.embeddings.items()}
    inputs = [RankerInput(name, torch.float32, width) for name, width in widths.items()]
    inputs.append(RankerInput("continuous", torch.float32, len(layout.continuous)))
    inputs.append(RankerInput("binary", torch.float32, len(layout.binary)))
    inputs.append(RankerInput("ids", torch.int32, layout.num_ids))
    return open_encoding(folder, inputs, encoding_of_features(encoder, inputs, write_vocabularies(encoder, folder), ()))


def as_lists(table: pa.Table) -> Columns:
    """Return the columns of a table as lists of Python values, except nanoseconds, for which Python has no type."""
    columns = {name: table.column(name) for name in table.column_names}
    return {
        name: column.to_numpy() if column.type == pa.timestamp("ns") else column.to_pylist()
        for name, column in columns.items()
    }


def as_arrays(table: pa.Table) -> Columns:
    """Return the columns of a table as numpy arrays: of objects if they have nulls, and of arrays for lists."""
    arrays: dict[str, Any] = {}
    for name in table.column_names:
        column = table.column(name)
        if not is_list(column.type):
            arrays[name] = column.to_pandas(integer_object_nulls=True).to_numpy()
            continue
        lists = column.to_pylist()
        arrays[name] = np.empty(len(lists), object)
        for row, values in enumerate(lists):
            arrays[name][row] = values if values is None or None in values else np.array(values)
    return arrays


def check(folder: Path, table: pa.Table, features: Mapping[str, Any]) -> None:
    """Assert that score.py encodes a table exactly as the reader does, all at once and row by row."""
    encoder = FeatureEncoder.open(parse_features(features))
    encoder.check(table.schema)
    keys = {"continuous": CONTINUOUS, "binary": BINARY, "ids": IDS}
    keys |= {EMBEDDING_PREFIX + name: embedding_key(name) for name in encoder.layout.embeddings}
    read = encoder.encode(table, "table")
    ranker = open_features(folder, encoder)
    for columns in (as_lists(table), as_arrays(table)):
        encoded = ranker.encode(columns)
        assert encoded.keys() == keys.keys()
        for name, key in keys.items():
            np.testing.assert_array_equal(encoded[name], read[key].astype(encoded[name].dtype), err_msg=name)
        single = [ranker.encode({name: values[row : row + 1] for name, values in columns.items()}) for row in range(5)]
        for name, values in encoded.items():
            np.testing.assert_array_equal(np.concatenate([each[name] for each in single]), values[:5], err_msg=name)


def open_schema(folder: Path, features: Mapping[str, Feature], num_ids: Mapping[int, int]) -> Ranker:
    """Return a ranker of score.py that encodes the features of a schema."""
    inputs = [RankerInput(name, feature.dtype, feature.keep) for name, feature in features.items()]
    return open_encoding(folder, inputs, encoding_of_schema(features, inputs, num_ids))


def check_schema(
    folder: Path, table: pa.Table, features: Mapping[str, Feature], num_ids: Mapping[int, int] | None = None
) -> None:
    """Assert that score.py encodes the features of a schema as the reader does, up to numbers that are not finite."""
    pq.write_table(table, folder / "data.parquet")
    columns = feature_columns(features, num_ids)
    opened = ParquetTable(matching_files(str(folder / "data.parquet")), columns)
    group = opened.decode(0)
    ranker = open_schema(folder, features, num_ids or {})
    rows = np.arange(table.num_rows)
    for given in (as_lists(table), as_arrays(table)):
        encoded = ranker.encode(given)
        for name, feature in features.items():
            read = empty_column(len(rows), group[name], columns[name], pin_memory=False)
            gather(group[name], rows, columns[name], read.numpy())
            expected = read.to(columns[name].batch_dtype).to(feature.dtype)
            if feature.dtype == torch.float32:
                expected = torch.nan_to_num(expected, nan=0.0, posinf=0.0, neginf=0.0)
            np.testing.assert_array_equal(encoded[name], expected.numpy(), err_msg=name)
