"""Parameters without a gradient on two ranks: one message on both, before DDP fails or hangs."""

import pytest
import torch
from torch import nn

from common.distributed.world import World
from common.errors import UserError
from tests.support.ranks import run_ranks
from tests.support.toy import ToyBatch, ToyModel, largest_difference, replicated, toy_batch, toy_step

pytestmark = pytest.mark.faults


class SpareModel(ToyModel):
    """Has a layer that only some ranks use, or none."""

    def __init__(self, *, uses_spare: bool) -> None:
        super().__init__(dropout=0.5, batch_norm=True)
        self.spare = nn.Linear(2, 2)
        self._uses_spare = uses_spare

    def forward(self, batch: ToyBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, outputs = super().forward(batch)
        return loss + (self.spare(outputs["logits"]).mean() if self._uses_spare else 0), outputs


def message(world: World, model: ToyModel, amp: torch.dtype | None = None) -> str:
    """Train two steps of two micro-batches. Return the error message, or an empty string."""
    step = toy_step(replicated(model, world), world=world, amp=amp)
    try:
        for number in (1, 2):
            step([toy_batch(8, seed=number), toy_batch(8, seed=number + 2)], number)
    except UserError as error:
        return str(error)
    return ""


def worker(world: World) -> dict[str, object]:
    frozen = SpareModel(uses_spare=False)
    frozen.spare.requires_grad_(False)
    all_frozen = ToyModel()
    all_frozen.requires_grad_(False)
    trained = ToyModel(dropout=0.5, batch_norm=True)
    return {
        "unused": message(world, SpareModel(uses_spare=False)),
        "unused in float16": message(world, SpareModel(uses_spare=False), torch.float16),
        "used on rank 0": message(world, SpareModel(uses_spare=world.rank == 0)),
        "used": message(world, SpareModel(uses_spare=True)),
        "frozen": message(world, frozen),
        "all frozen": message(world, all_frozen),
        "trained": (message(world, trained), trained.state_dict()),
        "frozen state": frozen.state_dict(),
    }


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, object]]:
    return run_ranks(worker)


@pytest.mark.parametrize("case", ["unused", "unused in float16"])
def test_all_ranks_name_a_parameter_that_none_uses(ranks, case):
    for found in ranks:
        assert found[case].startswith("2 of the model's 8 trainable parameters got no gradient in the first backward")
        assert " on rank" not in found[case]
        assert "spare.weight, spare.bias.\n" in found[case]


def test_all_ranks_name_a_parameter_that_only_one_uses(ranks):
    for found in ranks:
        assert "first backward pass on rank 1, so" in found["used on rank 0"]
        assert "spare.weight, spare.bias.\n" in found["used on rank 0"]


def test_used_and_frozen_parameters_are_accepted(ranks):
    assert all(found["used"] == found["frozen"] == "" for found in ranks)


def test_a_model_that_is_frozen_as_a_whole_is_refused(ranks):
    assert all(found["all frozen"].startswith("the model has no trainable parameters") for found in ranks)


def test_the_check_changes_neither_random_numbers_nor_statistics(ranks):
    """The frozen layer makes no difference, and all ranks have the same parameters."""
    for found in ranks:
        error, state = found["trained"]
        assert error == ""
        assert state["norm.num_batches_tracked"] == 4
        shared = {name: tensor for name, tensor in found["frozen state"].items() if not name.startswith("spare")}
        assert largest_difference(state, shared) == 0
        parameters = {name: tensor for name, tensor in state.items() if "running" not in name}
        of_rank_0 = {name: ranks[0]["trained"][1][name] for name in parameters}
        assert largest_difference(parameters, of_rank_0) == 0
