import subprocess
import sys
from collections.abc import Callable

import pytest

import common.process.program
from common.errors import UserError
from common.process.program import ArgumentParser, run
from tests.support.ranks import free_port, rank_environment
from tests.support.root import ROOT


def run_main(body: str) -> "subprocess.CompletedProcess[str]":
    """Run a program in its own process. `body` is the body of its main()."""
    imports = "from common.errors import UserError\nfrom common.process.program import run\n"
    program = f"{imports}def main():\n    {body}\nrun(main)"
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)


def status_of(main: Callable[[], int]) -> int | str | None:
    with pytest.raises(SystemExit) as raised:
        run(main)
    return raised.value.code


def raising_user_error(message: str) -> Callable[[], int]:
    def main() -> int:
        raise UserError(message)

    return main


def test_a_user_error_is_one_message_and_status_2():
    process = run_main("raise UserError('train.yaml: no such file\\n  look there')")
    assert process.returncode == 2
    assert process.stderr == "error: train.yaml: no such file\n  look there\n"
    assert process.stdout == ""


def test_an_unexpected_exception_keeps_its_traceback():
    process = run_main("raise KeyError('a bug')")
    assert process.returncode == 1
    assert process.stderr.startswith("Traceback")
    assert process.stderr.endswith("KeyError: 'a bug'\n")


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("np.zeros(2**45)", "Unable to allocate 256. TiB for an array"),
        ("pa.allocate_buffer(2**45)", "malloc of size 35184372088832 failed"),
        ("[threading.Thread(target=time.sleep, args=(9,), daemon=True).start() for _ in range(99)]", "can't start new"),
    ],
)
def test_running_out_of_memory_is_one_message_and_status_2(statement, problem):
    imports = "import resource, threading, time, numpy as np, pyarrow as pa"
    limit = "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))"
    process = run_main(f"{imports}; {limit}; {statement}")
    assert process.returncode == 2
    assert process.stderr.startswith("error: out of memory in ")
    assert problem in process.stderr
    assert ". The address space of this process (ulimit -v) has 1.0 GiB, of which " in process.stderr
    assert process.stderr.count("\n") == 1


@pytest.mark.parametrize("status", [0, 1])
def test_the_exit_status_is_the_one_that_main_returns(status, capsys):
    assert status_of(lambda: status) == status
    assert capsys.readouterr() == ("", "")


def test_an_error_on_the_command_line_is_a_user_error(capsys):
    def main() -> int:
        ArgumentParser(prog="prog").parse_args(["--confg", "x"])
        return 0

    assert status_of(main) == 2
    assert capsys.readouterr().err == "error: unrecognized arguments: --confg x\nusage: prog [-h]\n"


@pytest.mark.parametrize(
    ("rank", "message"), [("0", "error: /data: not here\n"), ("1", "error on rank 1: /data: not here\n")]
)
def test_an_error_on_one_rank_only_is_printed_by_that_rank(rank, message, monkeypatch, capsys):
    """The other rank never joins."""
    with monkeypatch.context() as patch:
        patch.setattr(common.process.program, "_REPORT_TIMEOUT_IN_S", 0.5)
        for name, value in {
            "RANK": rank,
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0" if rank == "0" else "9",
        }.items():
            patch.setenv(name, value)
        assert status_of(raising_user_error("/data: not here")) == 2
    assert capsys.readouterr().err == message


def test_a_program_for_one_process_does_not_start_as_one_of_several(monkeypatch, capsys):
    monkeypatch.setattr(common.process.program, "_REPORT_TIMEOUT_IN_S", 0.2)
    started: list[str] = []

    def main() -> int:
        started.append("main")
        return 0

    with pytest.raises(SystemExit) as ended:
        run(main, one_process=True)
    assert (ended.value.code, started) == (0, ["main"])
    for name, value in rank_environment(0, 2, free_port()).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        run(main, one_process=True)
    assert (ended.value.code, started) == (2, ["main"])
    assert "error: this program runs in one process, but the environment sets WORLD_SIZE=2" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"])
def test_a_malformed_environment_is_reported_before_the_program_starts(name, monkeypatch, capsys):
    for other, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}.items():
        monkeypatch.setenv(other, value)
    monkeypatch.setenv(name, "x")
    assert status_of(raising_user_error("the program has started")) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith(f"error: the environment sets {name}='x', which is not a number")


def test_plain_python_under_slurm_warns_once_and_runs(monkeypatch, capsys):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    assert status_of(lambda: 0) == 0
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: ")
    assert "torchrun" in warning


@pytest.mark.parametrize(("rank", "start"), [("0", "error: "), ("1", "error on rank 1: ")])
def test_a_rank_that_cannot_reach_the_others_reports_at_once(rank, start, monkeypatch):
    """Nothing answers at the address, so a wait for rank 0 would take 20 s."""
    for name, value in {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}.items():
        monkeypatch.setenv(name, value)
    process = run_main(
        "import common.process.program as program; from common.errors import RendezvousError; "
        "program._wait_for_report = None; raise RendezvousError('nobody there')"
    )
    assert process.returncode == 2
    assert process.stderr == f"{start}nobody there\n"


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
@pytest.mark.parametrize("before", ["", "threading.Thread(target=time.sleep, args=(600,), daemon=True).start(); "])
def test_an_interrupt_exits_at_once_with_status_130_and_only_rank_0_prints(rank, lines, before, monkeypatch):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    process = run_main(f"import threading, time; {before}raise KeyboardInterrupt")
    assert process.returncode == 130
    assert process.stderr.count("interrupted; the same command continues") == lines


def test_an_unexpected_exception_on_one_of_several_ranks_exits_at_once_with_its_traceback(monkeypatch):
    """A normal exit would wait for ranks that may be gone. A thread that never ends stands in for them."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    process = run_main(
        "import threading; threading.Thread(target=threading.Event().wait).start(); raise KeyError('a bug')"
    )
    assert process.returncode == 1
    assert process.stderr.startswith("Traceback")
    assert process.stderr.endswith("KeyError: 'a bug'\n")


def test_an_exception_on_another_rank_is_one_message_and_status_1(monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    process = run_main(
        "from common.distributed.consensus import RankFailedError; raise RankFailedError('rank 1 failed: KeyError: x')"
    )
    assert process.returncode == 1
    assert process.stderr == "error on rank 2: rank 1 failed: KeyError: x\n"


def test_a_lost_rank_is_one_message_without_a_traceback(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    process = run_main(
        "from common.errors import LostRankError\n"
        "    try:\n        raise RuntimeError('gloo/transport/tcp/pair.cc')\n"
        "    except RuntimeError as error:\n        raise LostRankError('rank 1: another rank died') from error"
    )
    assert process.returncode == 1
    assert process.stderr == "LostRankError: rank 1: another rank died\n"
