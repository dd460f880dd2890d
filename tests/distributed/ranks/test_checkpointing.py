"""Two ranks write one checkpoint, and one process reads it."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from common.checkpointing.directory import complete_steps
from common.checkpointing.manifest import CheckpointError
from common.checkpointing.reader import CheckpointReader, read_state, read_tensors
from common.checkpointing.writer import write_checkpoint
from common.distributed.world import World
from core.models.dense import DenseModel
from core.run.tensors import load_model, load_optimizer, training_tensors
from tests.support.faults import full_disk
from tests.support.ranks import run_ranks
from tests.support.toy import ToyModel, replicated, toy_batch, toy_step

pytestmark = pytest.mark.faults


def _trained(world: World) -> tuple[DenseModel, torch.optim.Optimizer]:
    model = ToyModel()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    wrapped = replicated(model, world)
    step = toy_step(wrapped, optimizer=optimizer, world=world)
    for number in (1, 2):
        step([toy_batch(8, seed=10 * number + world.rank)], number)
    return wrapped, optimizer


def worker(world: World, root: Path) -> dict[str, Any]:
    group = dist.new_group(backend="gloo")
    model, optimizer = _trained(world)
    tensors = training_tensors(model, optimizer)
    path = write_checkpoint(root, 2, tensors, {"rank": world.rank, "x": 0.1 + 0.2}, group)
    found: dict[str, Any] = {
        "complete after the save": complete_steps(root),
        "tensors": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "state": read_state(path),
    }
    restored = replicated(ToyModel(), world)
    fresh = torch.optim.Adam(restored.module.parameters(), fused=True)
    with CheckpointReader(path) as checkpoint:
        load_model(restored, checkpoint)
        load_optimizer(restored, fresh, checkpoint)
    found["restored"] = {name: t.detach().clone() for name, t in training_tensors(restored, fresh).items()}

    # The disk is full for rank 1 only, then for rank 0 only.
    for step, failing in ((3, 1), (4, 0)):
        with full_disk(16) if world.rank == failing else contextlib.nullcontext():
            try:
                write_checkpoint(root, step, tensors, {}, group)
            except CheckpointError as error:
                found[f"full disk on rank {failing}"] = str(error)
    write_checkpoint(root, 5, tensors, {}, group)
    found["complete at the end"] = complete_steps(root)
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run") / "checkpoints"


@pytest.fixture(scope="module")
def ranks(root: Path) -> list[dict[str, Any]]:
    return run_ranks(worker, root)


def test_one_process_reads_what_two_ranks_wrote_bit_for_bit(ranks, root):
    found = read_tensors(root / "2")
    for rank in ranks:
        assert found.keys() == rank["tensors"].keys()
        assert all(torch.equal(tensor, found[name]) for name, tensor in rank["tensors"].items())
    files = {path.name for path in (root / "2").iterdir()}
    assert {"__0_0.distcp", "__1_0.distcp"} <= files, "each rank wrote a part"


def test_both_ranks_read_the_checkpoint_back(ranks):
    for rank in ranks:
        assert rank["state"] == {"rank": 0, "x": 0.1 + 0.2}
        assert rank["restored"].keys() == rank["tensors"].keys()
        assert all(torch.equal(tensor, rank["restored"][name]) for name, tensor in rank["tensors"].items())


def test_all_ranks_see_a_checkpoint_once_it_is_written(ranks):
    assert [rank["complete after the save"] for rank in ranks] == [[2], [2]]


@pytest.mark.parametrize(("failing", "step"), [(0, 4), (1, 3)])
def test_a_full_disk_on_one_rank_is_the_same_error_on_both(ranks, root, failing, step):
    message, other = (rank[f"full disk on rank {failing}"] for rank in ranks)
    assert message == other
    for fact in (f"{root}/{step}: ", "File too large", "[2]"):
        assert fact in message


def test_a_save_succeeds_after_a_failed_one(ranks, root):
    assert [rank["complete at the end"] for rank in ranks] == [[2, 5], [2, 5]]
    assert read_tensors(root / "5").keys() == ranks[0]["tensors"].keys()
