import json
import math

import pytest
import torch

from common.distributed.world import World
from core.loop.window import Stopwatch, TrainWindow
from tests.support.toy import ALONE, CPU


def add(window: TrainWindow, *losses: float, skipped: int = 0) -> None:
    for index, loss in enumerate(losses):
        window.add(torch.tensor(loss), torch.tensor(float(index < skipped)))


def test_the_loss_is_the_mean_over_the_steps_since_the_last_log() -> None:
    window = TrainWindow(ALONE, {})
    add(window, 0.5, 1.0, 3.0, skipped=2)
    assert window.compute_and_reset() == {"loss": 1.5, "skipped_updates": 2}
    add(window, 8.0)
    assert window.compute_and_reset() == {"loss": 8.0, "skipped_updates": 0}


def test_a_long_window_is_summed_in_parts() -> None:
    window = TrainWindow(ALONE, {})
    losses = [float(step) for step in range(3000)]
    add(window, *losses, skipped=1500)
    assert window.compute_and_reset() == {"loss": 1499.5, "skipped_updates": 1500}


def test_an_empty_window_has_no_loss() -> None:
    assert TrainWindow(ALONE, {}).compute_and_reset() == {"loss": None, "skipped_updates": 0}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_nonfinite_loss_spoils_only_its_own_window_even_across_a_checkpoint(bad: float) -> None:
    window = TrainWindow(ALONE, {})
    add(window, 0.5, bad, skipped=1)
    saved = json.loads(json.dumps(window.snapshot(), allow_nan=False))
    for continued in (window, TrainWindow(ALONE, saved)):
        add(continued, 1.0)
        assert continued.compute_and_reset() == {"loss": None, "skipped_updates": 1}
        add(continued, 2.0)
        assert continued.compute_and_reset() == {"loss": 2.0, "skipped_updates": 0}


def test_a_resumed_window_continues_bit_for_bit() -> None:
    losses = torch.rand(9, generator=torch.Generator().manual_seed(1)).tolist()
    uninterrupted = TrainWindow(ALONE, {})
    add(uninterrupted, *losses)
    first = TrainWindow(ALONE, {})
    add(first, *losses[:4])
    resumed = TrainWindow(ALONE, json.loads(json.dumps(first.snapshot())))
    add(resumed, *losses[4:])
    add(first, *losses[4:])  # the window that was saved continues too
    assert uninterrupted.compute_and_reset() == resumed.compute_and_reset() == first.compute_and_reset()


def test_a_window_continues_on_another_number_of_ranks() -> None:
    """Two ranks did 3 steps with losses of 0.5 and 1.5 and skipped one update; a single rank does one more step."""
    saved: dict[str, float | None] = {"loss_sum": 6.0, "skipped": 2.0, "steps": 3.0, "ranks": 2.0}
    window = TrainWindow(ALONE, saved)
    add(window, 5.0)
    assert window.compute_and_reset() == {"loss": (3 * 1.0 + 5.0) / 4, "skipped_updates": 1}


def test_adding_a_step_reads_nothing_from_the_device() -> None:
    window = TrainWindow(World(0, 0, 1, torch.device("meta")), {})
    window.add(torch.empty((), device="meta"), torch.empty((), device="meta"))  # reading a value would raise


def test_the_stopwatch_excludes_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [50.0]
    monkeypatch.setattr("core.loop.window.time.perf_counter", lambda: now[0])
    stopwatch = Stopwatch()
    for _ in range(4):
        stopwatch.stepped()
    stopwatch.waited(2.0)
    now[0] += 8.0
    with stopwatch.pause():
        now[0] += 6.0
    assert stopwatch.timing(100) == {"seconds": 8.0, "examples_per_second": 50.0, "data_wait_share": 0.25}
    stopwatch.restart()
    now[0] += 1.0
    stopwatch.stepped()
    assert stopwatch.timing(100) == {"seconds": 1.0, "examples_per_second": 100.0, "data_wait_share": 0.0}


def test_the_window_is_on_the_device_of_the_world() -> None:
    assert TrainWindow(ALONE, {})._own.device == CPU
