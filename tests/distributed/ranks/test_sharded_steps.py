"""One decision per step with sharded tables: a non-finite value on one rank changes nothing on any rank."""

import math
from typing import Any

import pytest
import torch

from common.distributed.world import World
from common.errors import UserError
from core.autocast import Autocast
from core.loop.step import TrainStep
from core.models.shards import local_parts
from core.run.tensors import training_tensors
from tests.distributed.ranks.test_sharded import BATCH, TwoTables, batch_of, build
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.faults

KINDS = ("loss", "dense gradient", "row gradient")


def spoil(model: TwoTables, kind: str) -> None:
    """Make every following loss, gradient of the dense vector, or gradient of rows non-finite, but nothing else."""
    if kind == "dense gradient":
        model.between.register_hook(lambda gradient: gradient * math.inf)  # type: ignore[no-untyped-call]
    elif kind == "loss":
        model.register_forward_hook(lambda _module, _batch, outputs: (outputs[0] + math.inf, outputs[1]))
    else:

        def replace(_module: Any, _inputs: Any, rows: dict[str, Any]) -> None:
            rows["user"].values().register_hook(lambda gradient: gradient * math.nan)

        model.tables.register_forward_hook(replace)


def run(world: World, kind: str, sharding: str) -> dict[str, Any]:
    """Train four steps. Spoil rank 1, or the only rank, before the third."""
    model, optimizer, rates = build(world, "row_wise_adagrad", sharding)
    model.replicate()
    step = TrainStep(model, optimizer, rates, world=world, autocast=Autocast(world.device, None))
    share = BATCH // world.size
    skipped, changed = [], []
    for number in range(1, 5):
        if number == 3 and world.rank == world.size - 1:
            spoil(model.module, kind)  # type: ignore[arg-type]
        tensors = training_tensors(model, optimizer)
        parts = {name: [part.tensor for part in local_parts(tensor)] for name, tensor in tensors.items()}
        before = {name: [tensor.clone() for tensor in own] for name, own in parts.items()}
        _, outcome = step([batch_of(number, world.rank * share, (world.rank + 1) * share)], number)
        skipped.append(outcome.item())
        changed.append(
            {
                name
                for name, own in parts.items()
                if not all(torch.equal(*pair) for pair in zip(before[name], own, strict=True))
            }
        )
    return {"skipped": skipped, "changed": changed}


def refusals(world: World) -> list[str]:
    """Return the messages about options that sharded tables do not support."""
    model, optimizer, rates = build(world, "sgd", None)
    messages = []
    try:
        TrainStep(model, optimizer, rates, world=world, autocast=Autocast(world.device, torch.float16))
    except UserError as error:
        messages.append(str(error))
    step = TrainStep(model, optimizer, rates, world=world, autocast=Autocast(world.device, None))
    try:
        step([batch_of(1, 0, 4), batch_of(1, 4, 8)], 1)
    except UserError as error:
        messages.append(str(error))
    return messages


def worker(world: World) -> dict[str, Any]:
    found: dict[str, Any] = {kind: run(world, kind, "row_wise" if world.size > 1 else "table_wise") for kind in KINDS}
    return found | {"refusals": refusals(world)}


@pytest.fixture(scope="module", params=[1, 2])
def ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_ranks(worker, world_size=request.param)


@pytest.mark.parametrize("kind", KINDS)
def test_a_nonfinite_value_on_one_rank_changes_nothing_on_any(ranks, kind):
    for found in ranks:
        assert found[kind]["skipped"] == [0.0, 0.0, 1.0, 1.0]
        assert found[kind]["changed"][2:] == [set(), set()]
    for step in (0, 1):  # ranks hold different rows, and not all are looked up
        changed = set.union(*(found[kind]["changed"][step] for found in ranks))
        assert {"model.between", "model.tables.embeddings.user.weight"} <= changed


def test_options_that_would_spoil_the_tables_are_refused(ranks):
    for found in ranks:
        float16, accumulation = found["refusals"]
        assert float16.startswith("runtime.amp_dtype: float16")
        assert accumulation.startswith("training.gradient_accumulation: ")
