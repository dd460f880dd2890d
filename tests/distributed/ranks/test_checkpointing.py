"""Two ranks write one checkpoint, and one process reads it."""

import contextlib
import shutil
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor, init_from_local_shards

from common.checkpointing.directory import complete_steps
from common.checkpointing.manifest import CheckpointError
from common.checkpointing.reader import CheckpointReader, open_on_all_ranks, read_state, read_tensors
from common.checkpointing.retention import CheckpointRetention
from common.checkpointing.writer import write_checkpoint
from common.distributed.world import World
from common.reader.order import Position
from core.models.dense import DenseModel
from core.run.components import TrainingComponents
from core.run.start import Resume
from core.run.state import TrainingState
from core.run.tensors import load_model, load_optimizer, training_tensors
from tests.support.faults import flip_a_bit, full_disk
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
    assert {"tensors-0.bin", "tensors-1.bin"} <= files, "each rank wrote a part"


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


# --- Sharded tables on other numbers of ranks ---

ROWS, DIM = 1_100_003, 4


def _tables() -> dict[str, torch.Tensor]:
    """Return whole tables: of several blocks, of fewer rows than ranks, and without rows."""
    table = torch.arange(ROWS * DIM, dtype=torch.int32).view(torch.float16).reshape(-1, DIM * 2)[:ROWS]
    return {"large": table, "by column": table[:1000], "small": torch.arange(6.0).reshape(2, 3)}


def _sharded(whole: torch.Tensor, dimension: int, world: World, *, filled: bool) -> ShardedTensor:
    """Split a table over the ranks, as torchrec does: the last ranks can have fewer values, or none."""
    length = whole.size(dimension)
    share = -(-length // world.size)
    begin, end = (min(rank * share, length) for rank in (world.rank, world.rank + 1))
    part = whole.narrow(dimension, begin, end - begin)
    offsets = [begin if axis == dimension else 0 for axis in range(whole.dim())]
    metadata = ShardMetadata(offsets, list(part.shape), f"rank:{world.rank}/cpu")
    own = part.clone() if filled else torch.full_like(part, 7)
    return init_from_local_shards([Shard(own, metadata)], *whole.shape)


def _sharded_tables(world: World, *, filled: bool) -> dict[str, ShardedTensor]:
    tables = _tables().items()
    return {name: _sharded(table, int(name == "by column"), world, filled=filled) for name, table in tables}


def save_sharded(world: World, root: Path) -> None:
    write_checkpoint(root, 1, _sharded_tables(world, filled=True), {}, dist.new_group(backend="gloo"))


def load_sharded(world: World, root: Path) -> dict[str, bool]:
    """Load the tables on this number of ranks. Return whether this rank's shards have the right bits."""
    found, expected = (_sharded_tables(world, filled=filled) for filled in (False, True))
    with open_on_all_ranks(root / "1", world) as checkpoint:
        checkpoint.load(found)
    return _are_equal(found, expected)


def _are_equal(found: dict[str, ShardedTensor], expected: dict[str, ShardedTensor]) -> dict[str, bool]:
    """Return by table whether this rank's shards have the same bits."""
    return {
        name: all(
            torch.equal(own.tensor.view(torch.uint8), right.tensor.view(torch.uint8))
            for own, right in zip(table.local_shards(), expected[name].local_shards(), strict=True)
        )
        for name, table in found.items()
    }


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sharded")
    run_ranks(save_sharded, root, world_size=4)
    return root


@pytest.mark.parametrize("world_size", [4, 3, 2, 1])
def test_the_tables_of_four_ranks_are_loaded_on_other_numbers_of_ranks(sharded: Path, world_size: int) -> None:
    ranks = run_ranks(load_sharded, sharded, world_size=world_size)
    assert ranks == [{"large": True, "by column": True, "small": True}] * world_size


def test_the_tables_of_four_ranks_are_read_whole(sharded: Path) -> None:
    for name, tensor in read_tensors(sharded / "1").items():
        assert torch.equal(tensor.view(torch.uint8), _tables()[name].view(torch.uint8))
    with CheckpointReader(sharded / "1") as checkpoint:
        checkpoint.verify()
    assert {path.name for path in (sharded / "1").glob("*.bin")} == {f"tensors-{rank}.bin" for rank in range(4)}


class TablesResume(Resume):
    """Resumes with the tables only."""

    tables: dict[str, ShardedTensor]

    def restore(self, components: TrainingComponents) -> TrainingState:
        self.tables = _sharded_tables(components.world, filled=False)
        self._checkpoint.load(self.tables)
        return TrainingState({}, Position.start(1), step=int(self._checkpoint.path.name))


def resume_from_damage(world: World, root: Path) -> tuple[int, bool]:
    """Resume. Return the step, and whether this rank's shards have the right bits."""
    retention = CheckpointRetention(root, 1, None)
    newest = retention.open_newest(world)
    assert newest is not None
    components: Any = types.SimpleNamespace(world=world)
    start = TablesResume(newest, retention)
    with start:
        step = start.restore_on_all_ranks(components).step
    return step, all(_are_equal(start.tables, _sharded_tables(world, filled=True)).values())


def test_all_ranks_fall_back_if_one_finds_damage(sharded: Path, tmp_path: Path) -> None:
    for step in ("7", "8", "9"):
        shutil.copytree(sharded / "1", tmp_path / step)
    flip_a_bit(tmp_path / "9/tensors-3.bin")  # only rank 2 reads it
    (tmp_path / "8/tensors-0.bin").unlink()
    assert run_ranks(resume_from_damage, tmp_path, world_size=3) == [(7, True)] * 3
