"""A run that is stopped by a signal and resumed has bit for bit the weights of an uninterrupted run.

test_chaos.py kills runs.
"""

import os
import signal
from pathlib import Path

import pytest
import torch

from common.checkpointing.directory import complete_steps
from common.checkpointing.reader import read_tensors
from tests.support.programs import finish, started, wait_for_line, worker_pids
from tests.support.runs import small_run

pytestmark = pytest.mark.faults


def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(recap_data: Path, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert finish(small_run(recap_data, whole, "training.num_train_steps=18"), 2).returncode == 0

    arguments = small_run(recap_data, stopped, "training.num_train_steps=18", "training.train_log_every_n=1")
    with started(arguments, 2) as process:
        wait_for_line(process, "step 5 of 18")
        os.kill(worker_pids(process)[1], signal.SIGTERM)  # only one rank
        assert "Traceback" not in wait_for_line(process, "stopped by SIGTERM after step")
        process.communicate(timeout=60)
        assert process.returncode == 0, "all workers ended with status 0"
    step = complete_steps(stopped / "checkpoints")[-1]
    assert 5 <= step < 18

    resumed = finish(small_run(recap_data, stopped, "training.num_train_steps=18"), 2)
    assert resumed.returncode == 0, resumed.stderr
    expected, found = (read_tensors(run / "checkpoints" / "18") for run in (whole, stopped))
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
