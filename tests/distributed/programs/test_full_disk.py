"""A run whose checkpoints are on a file system that fills up, as a user starts it."""

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

# $0: the directory of the checkpoints, $1: where what is left in it is copied to; the rest: the command.
ON_A_SMALL_DISK = """
mount -t tmpfs -o size=5m none "$0" || exit 77
left=$1; shift
"$@"; status=$?
cp -r "$0" "$left"
exit $status
"""


def test_a_small_file_system_is_one_error_per_failed_save_and_status_1(recap_data: Path, tmp_path: Path) -> None:
    """It has room for one checkpoint."""
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
    found = re.findall(r"ERROR.*?(/\S+/\d+: cannot write the checkpoint: .*)", done.stderr)
    told = r"{0}/{1}: cannot write the checkpoint: No space left on device \(\d\.\d MiB free; free some space\)\. "
    for message, step in zip(found, (8, 12), strict=True):
        assert re.fullmatch(told.format(re.escape(str(root)), step) + r"Complete checkpoints: \[4\]", message)
    assert "Traceback" not in done.stderr
    assert [m.step for m in read_metrics(run / "metrics.jsonl")] == [3, 6, 9, 12], "training went on"
    assert complete_steps(left) == [4]
    with CheckpointReader(left / "4") as checkpoint:
        checkpoint.verify()
