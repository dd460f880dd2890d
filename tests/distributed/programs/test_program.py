"""Runs a program with a user error under torchrun: one message, and status 2 on every rank."""

import os
import signal
import subprocess
import sys

from tests.support.root import ROOT

PROGRAM = """
import pathlib, sys
from common.process.environment import rank_from_env
from common.distributed.world import joined_world
from common.process.program import run
from common.errors import UserError

def main() -> int:
    with joined_world(60.0, "cpu"):
        raise UserError("train.yaml: no such file")

try:
    run(main)
except SystemExit as exit:
    pathlib.Path(sys.argv[1], f"status-{rank_from_env()}").write_text(str(exit.code))
    raise
"""


def test_a_user_error_on_two_ranks_is_printed_once_and_both_exit_with_status_2(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [sys.executable, *launcher, str(program), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=90)
    finally:
        if process.poll() is None:
            # The workers have sessions of their own. torchrun ends them when it receives SIGTERM.
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    assert [(tmp_path / f"status-{rank}").read_text() for rank in range(2)] == ["2", "2"]
    assert stderr.count("train.yaml: no such file") == 1
    assert "error: train.yaml: no such file\n" in stderr
    assert "UserError" not in stderr
    assert stdout == ""
