import subprocess
import sys
from collections.abc import Callable

import pytest

import common.process.program
from common.errors import UserError
from common.process.program import ArgumentParser, run
from tests.support.root import ROOT


def ended(body: str) -> "subprocess.CompletedProcess[str]":
    """A program whose main() has this body, run as a process."""
    imports = "from common.errors import UserError\nfrom common.process.program import run\n"
    program = f"{imports}def main():\n    {body}\nrun(main)"
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)


def status_of(main: Callable[[], int]) -> int | str | None:
    with pytest.raises(SystemExit) as raised:
        run(main)
    return raised.value.code


def mistaken(message: str) -> Callable[[], int]:
    def main() -> int:
        raise UserError(message)

    return main


def test_a_users_mistake_is_one_message_and_status_2():
    process = ended("raise UserError('train.yaml: no such file\\n  look there')")
    assert process.returncode == 2
    assert process.stderr == "error: train.yaml: no such file\n  look there\n"
    assert process.stdout == ""


def test_what_was_not_expected_keeps_its_traceback():
    process = ended("raise KeyError('a bug')")
    assert process.returncode == 1
    assert process.stderr.startswith("Traceback")
    assert process.stderr.endswith("KeyError: 'a bug'\n")


@pytest.mark.parametrize("status", [0, 1])
def test_the_status_is_mains(status, capsys):
    assert status_of(lambda: status) == status
    assert capsys.readouterr() == ("", "")


def test_a_mistake_on_the_command_line_is_the_users(capsys):
    def main() -> int:
        ArgumentParser(prog="prog").parse_args(["--confg", "x"])
        return 0

    assert status_of(main) == 2
    assert capsys.readouterr().err == "error: unrecognized arguments: --confg x\nusage: prog [-h]\n"


@pytest.mark.parametrize(
    ("rank", "told"), [("0", "error: /data: not here\n"), ("1", "error on rank 1: /data: not here\n")]
)
def test_a_mistake_that_no_other_rank_meets_is_told_by_the_rank_that_does(rank, told, monkeypatch, capsys):
    """The other rank never comes."""
    with monkeypatch.context() as patch:
        patch.setattr(common.process.program, "_PATIENCE_IN_S", 0.5)
        for name, value in {
            "RANK": rank,
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0" if rank == "0" else "9",
        }.items():
            patch.setenv(name, value)
        assert status_of(mistaken("/data: not here")) == 2
    assert capsys.readouterr().err == told


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
@pytest.mark.parametrize("before", ["", "threading.Thread(target=time.sleep, args=(600,), daemon=True).start(); "])
def test_an_interrupt_ends_at_once_with_130_and_rank_0_alone_tells(rank, lines, before, monkeypatch):
    monkeypatch.setenv("RANK", rank)
    process = ended(f"import threading, time; {before}raise KeyboardInterrupt")
    assert process.returncode == 130
    assert process.stderr.count("interrupted; the same command continues") == lines


def test_an_exception_of_one_rank_of_several_ends_it_at_once_with_its_traceback(monkeypatch):
    """Its end would wait for ranks that may be gone: here, for a thread that never ends."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    process = ended(
        "import threading; threading.Thread(target=threading.Event().wait).start(); raise KeyError('a bug')"
    )
    assert process.returncode == 1
    assert process.stderr.startswith("Traceback")
    assert process.stderr.endswith("KeyError: 'a bug'\n")


def test_the_exception_of_another_rank_is_one_message_and_status_1(monkeypatch):
    monkeypatch.setenv("RANK", "2")
    process = ended(
        "from common.distributed.consensus import RankFailedError; raise RankFailedError('rank 1 failed: KeyError: x')"
    )
    assert process.returncode == 1
    assert process.stderr == "error on rank 2: rank 1 failed: KeyError: x\n"
