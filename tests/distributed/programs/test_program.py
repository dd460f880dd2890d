"""Runs a program with user errors under torchrun: each message once, and status 2 on every rank."""

import os
import signal
import subprocess
import sys

import pytest

from tests.support.root import ROOT

PROGRAM = """
import pathlib, sys
from common.process.environment import rank_from_env
from common.distributed.world import joined_world
from common.process.program import run
from common.errors import UserError

def main() -> int:
    with joined_world(60.0, "cpu"):
        raise UserError(sys.argv[2 + rank_from_env()])

try:
    run(main)
except SystemExit as exit:
    pathlib.Path(sys.argv[1], f"status-{rank_from_env()}").write_text(str(exit.code))
    raise
"""


SAME = "train.yaml: no such file"


@pytest.mark.parametrize("messages", [(SAME, SAME), ("1 rank did not join", "data: no such file")])
def test_each_user_error_on_two_ranks_is_printed_once_and_both_exit_with_status_2(tmp_path, messages):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [sys.executable, *launcher, str(program), str(tmp_path), *messages],
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
    assert all(stderr.count(message) == 1 for message in messages)
    assert f"error: {messages[0]}\n" in stderr
    assert (f"error on rank 1: {messages[1]}\n" in stderr) == (messages[0] != messages[1])
    assert "UserError" not in stderr
    assert stdout == ""
