import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common.process.identity import is_running, process_identity, torchrun_identity
from tests.support.root import ROOT


def test_a_process_is_running_until_it_ends() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        identity = process_identity(process.pid)
        assert identity == process_identity(process.pid)
        assert is_running(identity)
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not is_running(identity), "it has ended, but its parent has not asked for its status"
    assert not is_running(identity)


@pytest.mark.parametrize(
    ("pattern", "replacement"), [("^[^:]+:", "another-host:"), (r":\d+:", ":1:"), ("[^:]+$", "an-earlier-boot")]
)
def test_a_process_of_another_host_or_an_earlier_one_with_the_same_id_is_not_running(
    pattern: str, replacement: str
) -> None:
    own = process_identity(os.getpid())
    assert is_running(own)
    another = re.sub(pattern, replacement, own, count=1)
    assert another != own
    assert not is_running(another)


@pytest.mark.parametrize("text", ["", "host", "host:", "host:x", ":::", "host:-1:5", "host:99999999999:1:2:3"])
def test_any_other_text_is_no_running_process(text: str) -> None:
    assert not is_running(text)


WORKER = """
import os, sys
from common.process.identity import torchrun_identity
with open(sys.argv[1], "a") as file:
    file.write(f"{torchrun_identity()}\\n")
sys.exit(int(os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"))
"""


@pytest.mark.faults
def test_restarted_workers_have_the_same_torchrun_even_behind_a_script(tmp_path: Path) -> None:
    """A script between torchrun and the program is a new process in each attempt."""
    (tmp_path / "worker.py").write_text(WORKER)
    script = tmp_path / "worker.sh"
    script.write_text(f'#!/bin/sh\n"{sys.executable}" "{tmp_path}/worker.py" "{tmp_path}/found"\nexit $?\n')
    script.chmod(0o755)
    options = ["--nnodes", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--max-restarts", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", *options, "--no-python", str(script)]
    for launch in (1, 2):
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
        found = (tmp_path / "found").read_text().splitlines()
        assert len(found) == 2 * launch
        assert len(set(found)) == launch


def test_there_is_no_torchrun_without_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert torchrun_identity() is None
