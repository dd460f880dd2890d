"""Two ranks train like one: gradients, skipped updates, windows of train metrics, dropout and buffers."""

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from common.distributed.world import World
from core.loop.window import TrainWindow
from tests.support.ranks import run_ranks
from tests.support.toy import (
    ALONE,
    ToyModel,
    gradients,
    largest_difference,
    replicated,
    toy_batch,
    toy_step,
    true_gradients,
)

ROWS = 24


def worker(world: World) -> dict[str, Any]:
    found: dict[str, Any] = {}
    whole = toy_batch(ROWS)
    for count in (1, 2, 3):
        # Each rank has half of every micro-batch.
        own = [part.parts(world.size)[world.rank] for part in whole.parts(count)]
        wrapped = replicated(ToyModel(), world)
        assert isinstance(wrapped.replica, DistributedDataParallel)
        reductions: list[int] = []
        wrapped.replica.register_comm_hook(reductions, _counted_mean)
        step = toy_step(wrapped, world=world)
        loss, skipped = step(own, 1)
        found[f"gradients {count}"] = gradients(wrapped.module)
        found[f"weights {count}"] = {n: t.clone() for n, t in wrapped.module.state_dict().items()}
        found[f"loss {count}"] = loss.item()
        found[f"reductions {count}"] = len(reductions)
    assert skipped.item() == 0

    # The loss is non-finite on rank 1 only.
    for amp in (None, torch.float16):
        model = ToyModel()
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        wrapped = replicated(model, world)
        step = toy_step(wrapped, optimizer=optimizer, world=world, amp=amp)
        batch = toy_batch(8, seed=world.rank)
        if world.rank == 1:
            batch.weights[0, 0] = math.nan
        window = TrainWindow(world, {})
        window.add(*step([batch], 1))
        found[f"unchanged {amp}"] = largest_difference(model.state_dict(), ToyModel().state_dict())
        found[f"window {amp}"] = window.compute_and_reset()
        found[f"scale {amp}"] = step.scaler.get_scale()

    # The running sums of two windows, and of one that is restored from a snapshot.
    windows = [TrainWindow(world, {}), TrainWindow(world, {})]
    for losses in ((0.5, 1.5), (2.0, 4.0)):
        for window in windows:
            window.add(torch.tensor(losses[world.rank]), torch.tensor(0.0))
    found["snapshot"] = windows[0].snapshot()
    resumed = TrainWindow(world, found["snapshot"])
    for window in (*windows, resumed):
        window.add(torch.tensor(float(world.rank)), torch.tensor(1.0))
    found["train metrics"] = [window.compute_and_reset() for window in (*windows, resumed)]

    # Dropout differs between ranks. After share_buffers(), all ranks have the batch norm buffers of rank 0.
    model = ToyModel(dropout=0.5, batch_norm=True)
    wrapped = replicated(model, world, deterministic=True)
    step = toy_step(wrapped, world=world)
    found["dropout loss"] = step([toy_batch(ROWS)], 1)[0].item()
    step([toy_batch(ROWS, seed=world.rank)], 2)
    found["own buffers before"] = model.running_mean.clone()
    step([toy_batch(ROWS, seed=world.rank)], 3)
    found["own buffers"] = model.running_mean.clone()
    wrapped.share_buffers()
    found["shared buffers"] = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found["weights"] = model.hidden.weight.detach().clone()
    return found


def _counted_mean(reductions: list[int], bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Average a bucket of gradients over the ranks and append its index to `reductions`."""
    reductions.append(bucket.index())
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    mean: torch.futures.Future[torch.Tensor] = work.get_future().then(lambda done: done.value()[0] / 2)
    return mean


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_ranks(worker)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_gradients_equal_those_of_one_rank_with_the_whole_batch(ranks, count):
    expected = true_gradients(toy_batch(ROWS))
    for found in ranks:
        assert largest_difference(found[f"gradients {count}"], expected) < 1e-5
    assert all(torch.equal(t, ranks[1][f"weights {count}"][n]) for n, t in ranks[0][f"weights {count}"].items())

    alone = ToyModel()
    toy_step(alone)(toy_batch(ROWS).parts(count), 1)
    assert largest_difference(ranks[0][f"weights {count}"], alone.state_dict()) < 1e-5
    mean_loss = sum(found[f"loss {count}"] for found in ranks) / 2
    assert mean_loss == pytest.approx(ToyModel()(toy_batch(ROWS))[0].item(), abs=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_gradients_are_reduced_once_per_step(ranks, count):
    assert [found[f"reductions {count}"] for found in ranks] == [1, 1]


@pytest.mark.parametrize("amp", [None, torch.float16])
def test_a_non_finite_loss_on_one_rank_skips_the_update_on_all(ranks, amp):
    assert [found[f"unchanged {amp}"] for found in ranks] == [0, 0]
    assert [found[f"window {amp}"] for found in ranks] == [{"loss": None, "skipped_updates": 1}] * 2
    assert [found[f"scale {amp}"] for found in ranks] == [2.0**15 if amp else 1.0] * 2


def test_train_metrics_are_means_over_steps_and_ranks(ranks):
    for found in ranks:
        assert found["snapshot"] == {"loss_sum": 8.0, "skipped": 0.0, "steps": 2.0, "ranks": 2.0}
        assert found["train metrics"] == [{"loss": (0.5 + 1.5 + 2 + 4 + 0 + 1) / 6, "skipped_updates": 1}] * 3


def test_train_metrics_saved_on_two_ranks_are_continued_on_one(ranks):
    window = TrainWindow(ALONE, ranks[0]["snapshot"])
    window.add(torch.tensor(0.5), torch.tensor(1.0))
    assert window.compute_and_reset() == {"loss": (1.0 + 3.0 + 0.5) / 3, "skipped_updates": 1}


def test_ranks_draw_their_own_dropout(ranks):
    assert ranks[0]["dropout loss"] != ranks[1]["dropout loss"]
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])


def test_buffers_are_local_in_training_and_those_of_rank_0_after_sharing(ranks):
    assert not torch.equal(ranks[0]["own buffers"], ranks[1]["own buffers"])
    for rank, found in enumerate(ranks):
        # A step updates the buffers with the statistics of this rank only.
        expected = 0.9 * found["own buffers before"] + 0.1 * toy_batch(ROWS, seed=rank).features.mean(0)
        torch.testing.assert_close(found["own buffers"], expected)
    for name, buffer in ranks[0]["shared buffers"].items():
        assert torch.equal(buffer, ranks[1]["shared buffers"][name]), name
    assert torch.equal(ranks[0]["shared buffers"]["norm.running_mean"], ranks[0]["own buffers"])
