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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_pinned_batch_reaches_cuda_on_another_stream():
    pinned = some_batch().pin_memory()
    assert pinned.features.is_pinned()
    assert pinned.labels.is_pinned()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        moved = pinned.to("cuda", non_blocking=True)
    torch.cuda.current_stream().wait_stream(stream)
    moved.record_stream(torch.cuda.current_stream())
    assert torch.equal(moved.features.cpu(), some_batch().features)
