"""A run that was killed at any moment and resumed is, bit for bit, the run that was not."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from common.checkpointing.storage import complete_steps, read_tensors
from tests.conftest import small_run
from tests.distributed.programs import TIMEOUT_IN_S, finish, started, wait_for_line, worker_pids


def logged(save_dir: Path) -> list[tuple[Any, ...]]:
    """All that the metrics file holds, less what depends on the clock."""
    lines = [json.loads(line) for line in (save_dir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["mode"], line["partition"], line["metrics"]) for line in lines]


def assert_equal_runs(one: Path, other: Path, step: int) -> None:
    assert logged(one) == logged(other)
    tensors, others = (read_tensors(run / "checkpoints" / str(step)) for run in (one, other))
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_and_resumed_is_bit_equal(recap_data: Path, tmp_path: Path, processes: int) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    # The optimizer, the window of train metrics (logged at 3, 6, 9), dropout and the second epoch all have a past here.
    options = (
        "training.num_epochs=2",
        "training.num_train_steps=24",
        "training.max_grad_norm=1.0",
        "model.tasks[recap.engagement.is_replied].mlp_config="
        "{layer_sizes: [8, 1], dropout: {rate: 0.3}, batch_norm: {affine: true}}",
        "model.small_embeddings.tables=[{name: topic, num_embeddings: 40, embedding_dim: 2, index: 0}]",
    )
    assert finish(small_run(recap_data, whole, *options), processes).returncode == 0
    assert len(logged(whole)) == 8 + 6

    with started(small_run(recap_data, killed, *options), processes, "--max-restarts=2") as process:
        wait_for_line(process, "step 15 of 24")  # after the checkpoint at 12
        victim = worker_pids(process)[1] if processes > 1 else process.pid
        os.kill(victim, signal.SIGKILL)
        if processes > 1:
            resumed = process.communicate(timeout=TIMEOUT_IN_S)[1]
            assert "rank 0: another rank has died or doesn't answer" in resumed
    if processes == 1:
        assert complete_steps(killed / "checkpoints")[-1] < 24
        resumed = finish(small_run(recap_data, killed, *options)).stderr
    assert "continuing after step" in resumed
    assert_equal_runs(whole, killed, 24)


def test_stopped_by_a_signal_and_resumed_is_bit_equal(recap_data: Path, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert finish(small_run(recap_data, whole, "training.num_train_steps=18"), 2).returncode == 0

    arguments = small_run(recap_data, stopped, "training.num_train_steps=18", "training.train_log_every_n=1")
    with started(arguments, 2) as process:
        wait_for_line(process, "step 5 of 18")
        os.kill(worker_pids(process)[1], signal.SIGTERM)  # one rank alone: the other learns of it
        rest = wait_for_line(process, "stopped by SIGTERM after step")
        assert "Traceback" not in rest
        process.communicate(timeout=60)
        assert process.returncode == 0, "torchrun's, where all workers have ended with 0"
    step = complete_steps(stopped / "checkpoints")[-1]
    assert 5 <= step < 18

    resumed = finish(small_run(recap_data, stopped, "training.num_train_steps=18"), 2)
    assert resumed.returncode == 0, resumed.stderr
    tensors = (read_tensors(run / "checkpoints" / "18") for run in (whole, stopped))
    one, other = tensors
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
