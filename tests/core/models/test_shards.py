"""Tensors that are not sharded. tests/distributed/ranks/test_sharded.py covers sharded ones."""

import pytest
import torch

from core.models.shards import empty_on_host, is_sharded, local_parts, table_of


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_an_unsharded_tensor_is_one_part_that_shares_its_memory(shape: tuple[int, ...]) -> None:
    tensor = torch.zeros(shape)
    assert not is_sharded(tensor)
    (part,) = local_parts(tensor)
    assert part.offsets == (0,) * len(shape)
    part.tensor.fill_(7.0)
    assert torch.equal(tensor, torch.full(shape, 7.0))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.int64])
def test_host_memory_has_the_size_and_the_dtype_of_the_tensor(device: str, dtype: torch.dtype) -> None:
    tensor = torch.empty(4, 3, dtype=dtype, device=device)
    empty = empty_on_host(tensor)
    assert (empty.shape, empty.dtype, empty.device.type) == (tensor.shape, dtype, "cpu")
    assert device == "meta" or empty.data_ptr() != tensor.data_ptr()


@pytest.mark.parametrize("prefix", ["", "model.", "deep.in.the."])
def test_a_parameter_names_its_table(prefix: str) -> None:
    assert table_of(f"{prefix}tables.embeddings.user.weight") == "user"
