"""The index of tensors: it survives JSON, and values that contradict each other are refused."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from common.checkpointing.raw_storage.index import (
    InvalidIndexError,
    StoredChunk,
    StoredTensor,
    TensorIndex,
    parse_index,
)

INDEX = TensorIndex(
    {
        "table": StoredTensor(
            torch.float16,
            (5, 4),
            (
                StoredChunk((0, 0), (3, 4), "tensors-0.bin", 4, (1, 2)),
                StoredChunk((3, 0), (2, 4), "tensors-1.bin", 0, (3,)),
            ),
        ),
        "scalar": StoredTensor(torch.float32, (), (StoredChunk((), (), "tensors-0.bin", 0, (2**32 - 1,)),)),
        "empty": StoredTensor(torch.bool, (0, 3), (StoredChunk((0, 0), (0, 3), "tensors-1.bin", 16, ()),)),
    },
    block_size=16,
)


def content() -> Any:
    return json.loads(json.dumps(INDEX.to_json()))


def test_an_index_survives_json() -> None:
    assert parse_index(content()) == INDEX
    assert INDEX.file_sizes() == {"tensors-0.bin": 28, "tensors-1.bin": 16}


def test_the_planner_sees_shapes_dtypes_and_chunks() -> None:
    metadata = INDEX.metadata().state_dict_metadata
    table: Any = metadata["table"]
    assert (table.size, table.properties.dtype) == (torch.Size((5, 4)), torch.float16)
    assert [(chunk.offsets, chunk.sizes) for chunk in table.chunks] == [((0, 0), (3, 4)), ((3, 0), (2, 4))]


def _change(*keys: Any, to: Any) -> Callable[[Any], None]:
    def change(value: Any) -> None:
        for key in keys[:-1]:
            value = value[key]
        value[keys[-1]] = to

    return change


CHUNK = ("tensors", "table", "chunks", 0)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda value: value.pop("tensors"), "not an index"),
        (lambda value: value.pop("block_size"), "not an index"),
        (_change("block_size", to=-1), "not an index"),
        (_change("block_size", to=True), "not an index"),
        (_change("block_size", to=8), "number of checksums of 'table'"),
        (_change("tensors", to=[]), "not an index"),
        (_change("tensors", "table", to=None), "not an index"),
        (_change("tensors", "table", "dtype", to="float7"), "unknown dtype 'float7'"),
        (_change("tensors", "table", "dtype", to="onnx"), "unknown dtype 'onnx'"),
        (_change("tensors", "table", "dtype", to=["float16"]), "not an index"),
        (_change("tensors", "table", "dtype", to="float32"), "number of checksums of 'table'"),
        (_change("tensors", "table", "shape", to=[6, 4]), "do not add up"),
        (_change("tensors", "table", "shape", to=[20]), "not an index"),
        (_change("tensors", "table", "shape", to=[2**31, 2**31]), "do not add up"),
        (_change("tensors", "table", "shape", to=[10**400]), "not an index"),
        (_change("tensors", "table", "shape", to="54"), "not an index"),
        (_change("tensors", "table", "chunks", to=[]), "do not add up"),
        (_change(*CHUNK, to=3), "not an index"),
        (_change(*CHUNK, "offsets", to=[3, 0]), "not inside the tensor"),
        (_change(*CHUNK, "offsets", to=[-1, 0]), "not an index"),
        (_change(*CHUNK, "shape", to=[3.5, 4]), "not an index"),
        (_change(*CHUNK, "file", to="../6/tensors-0.bin"), "'../6/tensors-0.bin', which is not a tensor file"),
        (_change(*CHUNK, "file", to="state.json"), "'state.json', which is not a tensor file"),
        (_change(*CHUNK, "file", to=7), "not an index"),
        (_change(*CHUNK, "position", to=5), "chunks in tensors-0.bin do not follow one another"),
        (_change(*CHUNK, "position", to=0), "chunks in tensors-0.bin do not follow one another"),
        (_change(*CHUNK, "position", to=10**30), "not an index"),
        (_change(*CHUNK, "crc32c", to=[1]), "number of checksums of 'table'"),
        (_change(*CHUNK, "crc32c", to=["1", "2"]), "not an index"),
    ],
)
def test_values_that_are_not_an_index_are_refused(change: Callable[[Any], object], problem: str) -> None:
    value = content()
    change(value)
    assert value != content()
    with pytest.raises(InvalidIndexError) as caught:
        parse_index(value)
    assert problem in str(caught.value)


def test_a_wrong_value_anywhere_is_refused_or_leaves_an_index() -> None:
    """Nothing but InvalidIndexError is raised for JSON of any shape."""

    def places(value: Any, path: tuple[Any, ...] = ()) -> Any:
        yield path
        children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, child in children:
            yield from places(child, (*path, key))

    refused = 0
    for path in places(content()):
        wrongs: list[Any] = [None, -1, 0, 2**70, 1.5, "", "x", "\ud800", [], [[]], {}, {"a": 1}, True]
        for wrong in wrongs:
            value: Any = {"root": copy.deepcopy(content())}
            _change("root", *path, to=wrong)(value)
            if isinstance(value["root"], dict):
                try:
                    parse_index(value["root"])
                except InvalidIndexError:
                    refused += 1
    assert refused > 300
