"""Tensors written and read behind torch.distributed.checkpoint's planner."""

import itertools
import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from common.checkpointing.raw_storage.index import DamagedTensorsError, TensorIndex, parse_index
from common.checkpointing.raw_storage.reader import RawReader, check_sizes, verify_tensors
from common.checkpointing.raw_storage.writer import RawWriter
from tests.support.faults import flip_a_bit

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.complex64,
    torch.complex128,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


@pytest.fixture(autouse=True)
def _no_process_group() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def save(directory: Path, tensors: dict[str, torch.Tensor], block_size: int = 64) -> TensorIndex:
    directory.mkdir(exist_ok=True)
    dcp.save(dict(tensors), storage_writer=RawWriter(directory, "index", 0, block_size), no_dist=True)
    return read_index(directory)


def read_index(directory: Path) -> TensorIndex:
    return parse_index(json.loads((directory / "index").read_text()))


def load(directory: Path, into: dict[str, torch.Tensor]) -> None:
    dcp.load(into, storage_reader=RawReader(directory, read_index(directory)), no_dist=True)


def raw(tensor: torch.Tensor) -> list[int]:
    content: list[int] = tensor.detach().resolve_conj().reshape(-1).contiguous().view(torch.uint8).tolist()
    return content


def values(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Return values with random bits."""
    size = math.prod(shape) * dtype.itemsize
    bits = torch.randint(0, 2 if dtype == torch.bool else 256, (size,), dtype=torch.uint8)
    return bits.view(dtype).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_read_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    shapes = [(), (1,), (7,), (0,), (0, 3), (3, 0), (9, 5), (2, 3, 4), (1, 100)]
    tensors = {str(shape): values(dtype, *shape) for shape in shapes}
    save(tmp_path / "checkpoint", tensors)
    found = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    load(tmp_path / "checkpoint", found)
    assert {name: raw(tensor) for name, tensor in found.items()} == {name: raw(t) for name, t in tensors.items()}


def test_tensors_of_any_strides_are_written_and_filled(tmp_path: Path) -> None:
    whole = torch.randn(12, 10)
    tensors = {
        "transposed": whole.t(),
        "column": whole[:, 3],
        "conjugated": torch.randn(5, 3, dtype=torch.cfloat).conj(),
    }
    save(tmp_path, tensors)
    into, conjugated = torch.zeros(20, 24), torch.zeros(5, 3, dtype=torch.cfloat).conj()
    found = {"transposed": into.t()[2:14, 3:13].t(), "column": into[18, ::2], "conjugated": conjugated}
    load(tmp_path, found)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert int((into != 0).sum()) == 120 + 12, "nothing else was written"


def test_a_parameter_is_filled_in_place_and_another_dtype_is_converted(tmp_path: Path) -> None:
    saved = torch.randn(40, 3)
    save(tmp_path, {"weight": saved})
    parameter, half = torch.nn.Parameter(torch.zeros(40, 3)), torch.zeros(40, 3, dtype=torch.float16)
    load(tmp_path, {"weight": parameter})
    load(tmp_path, {"weight": half})
    assert torch.equal(parameter.detach(), saved)
    assert torch.equal(half, saved.half())


def test_a_file_has_the_bytes_of_the_tensors_and_nothing_else(tmp_path: Path) -> None:
    tensors = {f"{number}": torch.full((number,), number, dtype=torch.int16) for number in range(40)}
    index = save(tmp_path, tensors)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "tensors-0.bin"]
    assert sum(index.file_sizes().values()) == (tmp_path / "tensors-0.bin").stat().st_size == 2 * sum(range(40))
    assert sorted((tmp_path / "tensors-0.bin").read_bytes()[::2]) == sorted(n for n in range(40) for _ in range(n))


def test_a_checkpoint_without_tensors(tmp_path: Path) -> None:
    index = save(tmp_path, {})
    verify_tensors(tmp_path, index)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_something_other_than_a_tensor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(dcp.CheckpointException, match="TypeError: count is not a tensor"):
        save(tmp_path, {"count": 3})  # type: ignore[dict-item]


class PartPlanner(DefaultLoadPlanner):
    """Lets a test read any part of a stored tensor."""

    def __init__(self, target: torch.Tensor) -> None:
        super().__init__()
        self.target = target

    def resolve_tensor(self, _: ReadItem) -> torch.Tensor:
        return self.target


@pytest.mark.parametrize("block_size", [1, 48, 100, 10_000])
def test_every_part_of_a_chunk_can_be_read_without_the_rest(tmp_path: Path, block_size: int) -> None:
    shape = (5, 3, 2)
    tensor = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    index = save(tmp_path, {"x": tensor}, block_size)
    ranges = [list(itertools.combinations(range(length + 1), 2)) for length in shape]
    for box in itertools.product(*ranges):
        begins, ends = zip(*box, strict=True)
        target = torch.zeros([end - begin for begin, end in box])
        item = ReadItem(
            LoadItemType.TENSOR,
            MetadataIndex("x", begins),
            torch.Size((0, 0, 0)),
            MetadataIndex("x", (0, 0, 0)),
            torch.Size(begins),
            torch.Size(target.shape),
        )
        RawReader(tmp_path, index).read_data(LoadPlan([item]), PartPlanner(target)).wait()
        expected = tensor[tuple(slice(begin, end) for begin, end in zip(begins, ends, strict=True))]
        assert torch.equal(target, expected), box


def test_every_changed_byte_is_found_by_a_load_and_by_a_verification(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(7, 3), "b": torch.tensor(1.0), "c": torch.arange(20, dtype=torch.int8)}
    index = save(tmp_path, tensors)
    for position in range((tmp_path / "tensors-0.bin").stat().st_size):
        flip_a_bit(tmp_path / "tensors-0.bin", position)
        with pytest.raises(DamagedTensorsError, match=r"tensors-0\.bin.*the checksum of .* differs from the index"):
            verify_tensors(tmp_path, index)
        with pytest.raises(dcp.CheckpointException, match="DamagedTensorsError"):
            load(tmp_path, {name: torch.zeros_like(tensor) for name, tensor in tensors.items()})
        flip_a_bit(tmp_path / "tensors-0.bin", position)
    verify_tensors(tmp_path, index)


def test_the_error_names_the_rows(tmp_path: Path) -> None:
    index = save(tmp_path, {"table": torch.zeros(100, 4)}, block_size=160)
    flip_a_bit(tmp_path / "tensors-0.bin", 16 * 25)
    with pytest.raises(DamagedTensorsError, match="the checksum of rows 20 to 29 of 'table' differs"):
        verify_tensors(tmp_path, index)


@pytest.mark.parametrize("size", [0, 10, 81, None])
def test_a_file_of_another_size_is_found(tmp_path: Path, size: int | None) -> None:
    index = save(tmp_path, {"a": torch.zeros(20)})
    file = tmp_path / "tensors-0.bin"
    content = file.read_bytes()
    file.unlink()
    if size is not None:
        file.write_bytes(content.ljust(size, b"\0")[:size])
    with pytest.raises(DamagedTensorsError, match="missing" if size is None else f"its size is {size} bytes"):
        check_sizes(tmp_path, index)


def test_blocks_and_early_writeback_of_a_file_of_many_mebibytes(tmp_path: Path) -> None:
    tensors = {
        "large": torch.randn(3000, 3000),
        "after": torch.arange(5),
        "wide": torch.randn(2, 1_500_000),
    }
    index = save(tmp_path, tensors, 4 * 2**20)
    assert [len(chunk.checksums) for tensor in index.tensors.values() for chunk in tensor.chunks] == [9, 1, 2]
    found = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    load(tmp_path, found)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
