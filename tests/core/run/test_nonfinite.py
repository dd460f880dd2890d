"""Finding the first non-finite value of a state."""

import math

import pytest
import torch

from core.run.nonfinite import (
    NamedPart,
    NonfiniteValue,
    buffer_names,
    first_nonfinite,
    first_of_ranks,
    state_parts,
)
from core.run.tensors import training_tensors
from tests.support.spoiled_model import NAN
from tests.support.toy import ToyModel, dense, toy_batch


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_nonfinite_value_is_found(dtype: torch.dtype, value: float) -> None:
    good = torch.full((3, 4), torch.finfo(dtype).max, dtype=dtype)
    good[0] *= -1
    bad = torch.zeros(5, 7, 2, dtype=dtype)
    bad[2, 3, 1], bad[4] = value, NAN
    integers = torch.arange(4)
    empty = torch.empty(0, 3, dtype=dtype)
    finite = [NamedPart("good", good), NamedPart("integers", integers), NamedPart("empty", empty)]
    assert first_nonfinite(finite) is None
    assert first_nonfinite([]) is None
    parts = [NamedPart("good", good), NamedPart("bad", bad), NamedPart("worse", torch.full((2,), NAN))]
    assert first_nonfinite(parts, 1) == NonfiniteValue((1, 1), "bad", (2, 3, 1), f"{value:g}")

    def message(name: str, tensor: torch.Tensor, *offsets: int) -> str:
        return str(first_nonfinite([NamedPart(name, tensor, offsets)]))

    assert message("bad", bad) == f"bad[2, 3, 1]: {value:g}"
    assert message("transposed", bad[:3].permute(2, 1, 0)) == f"transposed[1, 3, 2]: {value:g}"
    assert message("shard", bad[:, :, 1], 100, 10) == f"shard[102, 13]: {value:g}"
    assert message("table user", bad[:, :, 1], 100, 0) == f"table user, row 102: {value:g}"
    assert message("the loss", torch.tensor(value, dtype=dtype)) == f"the loss: {value:g}"


def test_parameters_come_before_buffers_and_buffers_before_optimizer_states() -> None:
    module = ToyModel(batch_norm=True)
    optimizer = torch.optim.Adam(module.parameters())
    module(toy_batch(8))[0].backward()
    optimizer.step()

    def first() -> str:
        model = dense(module)
        return str(first_nonfinite(state_parts(training_tensors(model, optimizer), buffer_names(model))))

    assert first() == "None"
    optimizer.state[module.out.bias]["exp_avg_sq"][1] = math.inf
    assert first() == "optimizer state exp_avg_sq.out.bias[1]: inf"
    module.running_mean[2] = NAN
    assert first() == "buffer norm.running_mean[2]: nan"
    with torch.no_grad():
        module.out.weight[1, 3] = -math.inf
    assert first() == "parameter out.weight[1, 3]: -inf"


def test_the_earliest_cause_of_all_ranks_is_described_with_its_ranks() -> None:
    early, late = NonfiniteValue((0, 3), "weight", (1,), "nan"), NonfiniteValue((1, 0), "bias", (), "inf")
    assert first_of_ranks([None, None]) is None
    assert first_of_ranks([late]) == "bias: inf"
    assert first_of_ranks([late, early, None, early]) == "weight[1]: nan, on rank 1, 3"
    assert first_of_ranks([early, early]) == "weight[1]: nan"
