import dataclasses

import pytest
import torch

from common.batch import Batch


@dataclasses.dataclass(frozen=True)
class SomeBatch(Batch):
    name: str
    optional: torch.Tensor | None
    features: torch.Tensor
    labels: torch.Tensor


def some_batch() -> SomeBatch:
    return SomeBatch("some", None, torch.arange(6.0).reshape(3, 2), torch.ones(3, dtype=torch.int8))


def test_batch_size_is_that_of_the_first_tensor():
    assert some_batch().batch_size == 3


def test_without_a_tensor_there_is_no_batch_size():
    @dataclasses.dataclass(frozen=True)
    class Named(Batch):
        name: str

    with pytest.raises(ValueError, match="Named holds no tensor"):
        _ = Named("a").batch_size


def test_to_moves_tensors_and_keeps_the_rest():
    moved = some_batch().to("meta")
    assert type(moved) is SomeBatch
    assert (moved.name, moved.optional) == ("some", None)
    assert moved.features.device.type == moved.labels.device.type == "meta"
    assert moved.features.shape == (3, 2)
    assert moved.labels.dtype == torch.int8


def test_to_where_it_is_already_copies_nothing():
    batch = some_batch()
    assert batch.to("cpu").features is batch.features


def test_to_leaves_the_original_alone():
    batch = some_batch()
    batch.to("meta")
    assert batch.features.device.type == "cpu"
