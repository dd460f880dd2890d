"""The moving average of weights, compared with its definition in float64."""

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from core.models.averaging import WeightAverage

NOT_SKIPPED, SKIPPED = torch.tensor(0.0), torch.tensor(1.0)


class Example(nn.Module):
    """Has tied, frozen and trained parameters, and buffers of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(3, 4, dtype=torch.float64)
        self.tied = nn.Linear(3, 4)
        self.tied.weight = self.first.weight
        self.frozen = nn.Linear(3, 4).requires_grad_(False)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("mask", torch.tensor([-torch.inf]), persistent=False)


AVERAGED = [
    *("first.weight", "first.bias", "second.weight", "second.bias", "tied.weight", "tied.bias"),
    *("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"),
]


def changed(module: nn.Module, seed: int) -> None:
    """Change all parameters and float buffers, and count a batch."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point() and not name.startswith("frozen"):
                tensor.copy_(torch.randn_like(tensor))
    module.norm.num_batches_tracked += 1  # type: ignore[union-attr,operator]


def copied(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def averaged(states: Sequence[dict[str, torch.Tensor]], decay: float) -> dict[str, torch.Tensor]:
    """Return the average in float64 after states 1, 2, ..., which begins with state 0."""
    average = {name: states[0][name].double() for name in AVERAGED}
    for n, state in enumerate(states[1:], start=1):
        d = min(decay, (1 + n) / (10 + n))
        average = {name: d * value + (1 - d) * state[name].double() for name, value in average.items()}
    return average


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [0.1, 0.5, 0.999])
def test_is_the_average_of_the_definition(decay: float) -> None:
    """A decay of 0.1 applies from the first update, 0.5 from the 8th, and 0.999 not within these 30."""
    module = Example()
    average = WeightAverage(module, decay)
    states = [copied(module)]
    assert_close(average.tensors(), averaged(states, decay))
    for step in range(1, 31):
        changed(module, step)
        states.append(copied(module))
        average.update(NOT_SKIPPED)
        assert_close(average.tensors(), averaged(states, decay))
    assert average.num_updates == 30
    assert average.tensors()["tied.weight"] is average.tensors()["first.weight"]
    assert [buffer.data_ptr() for buffer in average.buffers()] == [
        average.tensors()[name].data_ptr() for name in ("norm.running_mean", "norm.running_var")
    ]


def test_a_skipped_update_changes_nothing() -> None:
    module = Example()
    average, expected = WeightAverage(module, 0.9), WeightAverage(module, 0.9)
    for step in range(1, 6):
        changed(module, step)
        if step != 3:
            expected.update(NOT_SKIPPED)
        average.update(SKIPPED if step == 3 else NOT_SKIPPED)
    assert average.num_updates == expected.num_updates == 4
    assert all(torch.equal(value, average.tensors()[name]) for name, value in expected.tensors().items())


def test_continues_after_a_number_of_updates() -> None:
    module = Example()
    average = WeightAverage(module, 0.999)
    changed(module, 1)
    average.update(NOT_SKIPPED)
    continued = WeightAverage(module, 0.999, num_updates=1)
    for name, tensor in continued.tensors().items():
        tensor.copy_(average.tensors()[name])
    changed(module, 2)
    for each in (average, continued):
        each.update(NOT_SKIPPED)
        assert each.num_updates == 2
    assert all(torch.equal(value, average.tensors()[name]) for name, value in continued.tensors().items())


@pytest.mark.parametrize("fails", [False, True])
def test_weights_and_averages_are_exchanged_and_restored_bit_for_bit(fails: bool) -> None:
    module = Example()
    average = WeightAverage(module, 0.9)
    changed(module, 1)
    average.update(NOT_SKIPPED)
    weights, averages = copied(module), {name: tensor.clone() for name, tensor in average.tensors().items()}
    parameters = dict(module.named_parameters())
    try:
        with average.in_place_of_weights():
            inside = module.state_dict()
            assert all(torch.equal(inside[name], averages.get(name, weight)) for name, weight in weights.items())
            assert not torch.equal(inside["first.weight"], weights["first.weight"])
            assert inside["norm.num_batches_tracked"] == 1
            if fails:
                raise OSError
    except OSError:
        assert fails
    assert all(torch.equal(module.state_dict()[name], weight) for name, weight in weights.items())
    assert all(torch.equal(average.tensors()[name], value) for name, value in averages.items())
    assert all(parameter is parameters[name] for name, parameter in module.named_parameters())


def test_a_model_without_weights_has_an_empty_average() -> None:
    average = WeightAverage(nn.Identity(), 0.9)
    average.update(NOT_SKIPPED)
    assert (average.tensors(), average.buffers(), average.num_updates) == ({}, [], 1)
