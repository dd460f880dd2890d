"""Starts a run, as a user does, whose checkpoints are on a file system that fills up."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from common.checkpointing.directory import complete_steps
from common.checkpointing.reader import CheckpointReader
from common.tracking.metrics_file import read_metrics
from tests.support.programs import TIMEOUT_IN_S, command
from tests.support.root import ROOT
from tests.support.runs import small_run

pytestmark = pytest.mark.faults

# $0: directory of the checkpoints; $1: directory that receives a copy of it at the end; the rest: the command.
ON_A_SMALL_DISK = """
mount -t tmpfs -o size=4m none "$0" || exit 77
left=$1; shift
"$@"; status=$?
cp -r "$0" "$left"
exit $status
"""


def test_a_full_file_system_is_one_error_per_failed_save_and_status_1(recap_data: Path, tmp_path: Path) -> None:
    """The file system has room for one checkpoint."""
    run, left = tmp_path / "run", tmp_path / "left"
    root = run / "checkpoints"
    root.mkdir(parents=True)
    trainer = command(small_run(recap_data, run, "training.eval_every_n=0"), 1)
    shell = ["unshare", "--mount", "sh", "-c", ON_A_SMALL_DISK, str(root), str(left)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*shell, *trainer], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_IN_S, check=False
    )
    if done.returncode == 77 or done.stderr.startswith("unshare:"):
        pytest.skip("needs the right to mount a file system")
    assert done.returncode == 1, done.stderr
    messages = [line for line in done.stderr.splitlines() if " ERROR " in line]
    for message, step in zip(messages, (8, 12), strict=True):
        assert f"{root}/{step}: " in message
        assert "No space left on device" in message
        assert re.search(r"\d\.\d MiB free", message)
        assert message.endswith("[4]"), "the complete checkpoints"
    assert "Traceback" not in done.stderr
    assert [m.step for m in read_metrics(run / "metrics.jsonl")] == [3, 6, 9, 12], "training continued"
    assert complete_steps(left) == [4]
    with CheckpointReader(left / "4") as checkpoint:
        checkpoint.verify()
