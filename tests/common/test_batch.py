import dataclasses
from collections.abc import Mapping

import pytest
import torch

from common.batch import Batch


@dataclasses.dataclass(frozen=True)
class SomeBatch(Batch):
    name: str
    optional: torch.Tensor | None
    features: torch.Tensor
    labels: torch.Tensor
    extras: Mapping[str, torch.Tensor]


def some_batch() -> SomeBatch:
    features, labels = torch.arange(6.0).reshape(3, 2), torch.ones(3, dtype=torch.int8)
    return SomeBatch("some", None, features, labels, {"position": torch.arange(3), "age": torch.zeros(3, 4)})


def test_batch_size_is_that_of_the_first_tensor():
    assert some_batch().batch_size == 3


def test_batch_without_a_tensor_has_no_batch_size():
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
    assert {name: (t.device.type, t.shape, t.dtype) for name, t in moved.extras.items()} == {
        "position": ("meta", (3,), torch.int64),
        "age": ("meta", (3, 4), torch.float32),
    }


def test_to_the_same_device_copies_nothing():
    batch = some_batch()
    assert batch.to("cpu").features is batch.features
    assert batch.to("cpu").extras["age"] is batch.extras["age"]


def test_to_does_not_change_the_original():
    batch = some_batch()
    batch.to("meta")
    assert batch.features.device.type == batch.extras["age"].device.type == "cpu"


def test_record_stream_marks_every_tensor():
    class Recorded(torch.Tensor):
        def record_stream(self, s: torch.Stream) -> None:
            marked.append((self.shape, s))

    marked: list[tuple[torch.Size, torch.Stream]] = []
    batch = some_batch()
    recorded = dataclasses.replace(
        batch,
        features=batch.features.as_subclass(Recorded),
        labels=batch.labels.as_subclass(Recorded),
        extras={name: tensor.as_subclass(Recorded) for name, tensor in batch.extras.items()},
    )
    stream = torch.Stream("cpu")
    recorded.record_stream(stream)
    assert marked == [((3, 2), stream), ((3,), stream), ((3,), stream), ((3, 4), stream)]
