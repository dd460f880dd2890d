"""Blocks of raw bytes: where a tensor is cut, and that checksums are those of the bytes."""

from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from common.checkpointing.raw_storage.blocks import read_block, read_checksum, row_ranges, write_tensor


@pytest.mark.parametrize(
    ("shape", "dtype", "block_size", "expected"),
    [
        ((), torch.float32, 64, [range(1)]),
        ((5,), torch.float32, 8, [range(2), range(2, 4), range(4, 5)]),
        ((5, 3), torch.float16, 12, [range(2), range(2, 4), range(4, 5)]),
        ((2, 100), torch.float32, 8, [range(1), range(1, 2)]),
        ((0, 3), torch.float32, 8, []),
        ((3, 0), torch.float32, 8, []),
        ((4, 2, 2), torch.complex64, 64, [range(2), range(2, 4)]),
    ],
)
def test_a_block_is_a_number_of_whole_rows(
    shape: tuple[int, ...], dtype: torch.dtype, block_size: int, expected: list[range]
) -> None:
    assert row_ranges(shape, dtype, block_size) == expected


def written(tensor: torch.Tensor, block_size: int) -> tuple[bytes, tuple[int, ...]]:
    pieces: list[bytes] = []

    def write(piece: NDArray[np.uint8]) -> None:
        pieces.append(piece.tobytes())

    checksums = write_tensor(write, tensor, block_size)
    return b"".join(pieces), checksums


TENSORS = {
    "float32": torch.randn(7, 3),
    "strided": torch.randn(3, 7).t(),
    "every other": torch.arange(20)[::2],
    "expanded": torch.ones(1, 3).expand(7, 3),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "bool": torch.tensor([True, False, True]),
    "parameter": torch.nn.Parameter(torch.ones(3, 2)),
    "conjugated": torch.randn(4, 3, dtype=torch.complex64).conj(),
    "negated": torch.randn(4, dtype=torch.complex64).conj().imag,
    "three dimensions": torch.arange(24, dtype=torch.int8).reshape(4, 3, 2).transpose(1, 2),
}


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("block_size", [16, 2**22])
def test_the_values_are_written_in_c_order(name: str, block_size: int) -> None:
    tensor = TENSORS[name]
    content, checksums = written(tensor, block_size)
    values = tensor.detach().resolve_conj().resolve_neg().numpy()
    assert content == np.ascontiguousarray(values).tobytes()
    blocks = [
        np.ascontiguousarray(np.atleast_1d(values)[rows.start : rows.stop]).tobytes()
        for rows in row_ranges(tensor.shape, tensor.dtype, block_size)
    ]
    assert b"".join(blocks) == content
    assert list(checksums) == [google_crc32c.value(block) for block in blocks]


def test_an_empty_tensor_has_no_bytes() -> None:
    assert written(torch.zeros(0, 3), 8) == (b"", ())


def test_a_block_larger_than_a_piece_is_read_back(tmp_path: Path) -> None:
    tensor = torch.randn(1, 700_001)
    content, checksums = written(tensor, 64)
    assert len(checksums) == 1
    (tmp_path / "file").write_bytes(b"before" + content)
    with (tmp_path / "file").open("rb") as file:
        found = torch.empty_like(tensor)
        assert read_block(file.fileno(), 6, found) == checksums[0]
        assert torch.equal(found, tensor)
        assert read_block(file.fileno(), 5, found) not in (checksums[0], None)
        assert read_block(file.fileno(), 7, found) is None
        assert read_checksum(file.fileno(), 6, len(content)) == checksums[0]
        assert read_checksum(file.fileno(), 7, len(content)) is None
        assert read_checksum(file.fileno(), 6, 0) == 0
