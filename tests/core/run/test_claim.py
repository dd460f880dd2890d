import errno
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import UserError
from common.process.identity import process_identity
from core.run.claim import ClaimedDirectory
from tests.support.preload import run_with_faults
from tests.support.root import ROOT


def locked(path: Path, lock_name: str = ".lock") -> tuple[ClaimedDirectory, str | None]:
    path.mkdir(exist_ok=True)
    directory = ClaimedDirectory(str(path), lock_name)
    return directory, directory.lock()


def test_one_process_of_a_kind_holds_the_lock_until_it_releases_it(tmp_path: Path) -> None:
    first, holder = locked(tmp_path)
    assert holder is not None
    other, nothing = locked(tmp_path)
    assert nothing is None
    assert other.holder == first.holder == f"process {os.getpid()} on {socket.gethostname()}"
    assert holder.startswith(f"{first.holder}, ")
    assert locked(tmp_path, ".lock-of-another-kind")[1] is not None
    first.check_held()
    first.release()
    first.release()  # a second call does nothing
    assert locked(tmp_path)[1] is not None


def test_all_processes_must_see_the_same_directory(tmp_path: Path) -> None:
    _, holder = locked(tmp_path / "here")
    assert holder is not None
    ClaimedDirectory(str(tmp_path / "here"), ".lock").check_shared(holder)
    with pytest.raises(UserError, match=rf"{tmp_path}/there.*shared file system"):
        ClaimedDirectory(str(tmp_path / "there"), ".lock").check_shared(holder)


def test_a_directory_that_was_removed_is_no_longer_held(tmp_path: Path) -> None:
    directory, _ = locked(tmp_path / "run")
    directory.check_held()
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(UserError, match=rf"{tmp_path}/run.*removed"):
        directory.check_held()
    locked(tmp_path / "run")  # by another process
    with pytest.raises(UserError, match=rf"{tmp_path}/run.*removed"):
        directory.check_held()


def test_another_claim_ends_the_right_to_write(tmp_path: Path) -> None:
    """A lock that is valid on one host only does not keep out a process on another host."""
    directory, claim = locked(tmp_path)
    assert claim is not None
    assert directory.may_write()
    directory.check_not_taken()
    holder = tmp_path / ".lock.holder"
    holder.write_text("process 7 on another-host, 0123456789abcdef another-host:7:1:2:3\n")
    assert not directory.is_taken, "it reads no file"
    assert not directory.may_write()
    assert directory.is_taken
    for check in (directory.check_not_taken, directory.check_held):
        with pytest.raises(UserError, match=rf"^{tmp_path}: process 7 on another-host has claimed this directory"):
            check()
    holder.write_text(claim)
    assert not directory.may_write(), "what the other process wrote in between may be anything"
    holder.write_text("the other process's")
    directory.release()
    assert holder.read_text() == "the other process's"


def test_a_claim_that_was_removed_is_not_another_claim(tmp_path: Path) -> None:
    directory, _ = locked(tmp_path)
    (tmp_path / ".lock.holder").unlink()
    assert directory.may_write()
    directory.check_held()


def test_each_claim_has_a_token_of_its_own_and_a_clean_end_is_recorded(tmp_path: Path) -> None:
    tokens = set()
    for _ in range(3):
        directory, claim = locked(tmp_path)
        assert claim is not None
        tokens.add(claim.split()[4])
        directory.release()
        assert (tmp_path / ".lock.holder").read_text() == f"{claim}released\n"
    assert len(tokens) == 3


def test_an_earlier_holder_that_was_killed_does_not_matter(tmp_path: Path) -> None:
    own = process_identity(os.getpid())
    for ended in ("another-host:1:2:3:4", own.replace(f":{os.getpid()}:", ":4194305:")):
        (tmp_path / ".lock.holder").write_text(f"process 1 on a-host, 0123 {ended}\n")
        directory, claim = locked(tmp_path)
        assert claim is not None
        directory.release()


CLAIM = """
import logging, sys
from core.run.claim import ClaimedDirectory
logging.basicConfig(format="%(message)s")
directory = ClaimedDirectory(sys.argv[1], ".lock")
print("claimed" if directory.lock() else f"held by {directory.holder}")
"""


def claim_with(faults: dict[str, int], directory: Path) -> "subprocess.CompletedProcess[str]":
    """Claim the directory in a new process, with faults of its file system."""
    ended = run_with_faults(CLAIM, directory, faults)
    assert ended.returncode == 0, ended.stderr
    return ended


@pytest.mark.parametrize(
    ("number", "reason"), [(0, "two locks on the same file"), (errno.ENOLCK, "flock: No locks available")]
)
def test_without_locks_a_warning_says_so_and_a_running_holder_is_refused(
    tmp_path: Path, number: int, reason: str
) -> None:
    for _ in range(2):  # the first one has ended without a release
        ended = claim_with({"flock": number}, tmp_path)
        assert ended.stdout == "claimed\n"
        assert ended.stderr.startswith(f"{tmp_path}: file locks do not work here ({reason}")
    directory, _ = locked(tmp_path)
    ended = claim_with({"flock": number}, tmp_path)
    assert ended.stdout == f"held by {directory.holder}\n"
    assert directory.may_write()


def test_a_lock_file_that_was_removed_does_not_let_another_process_in(tmp_path: Path) -> None:
    directory, _ = locked(tmp_path)
    (tmp_path / ".lock").unlink()
    assert claim_with({}, tmp_path).stdout == f"held by {directory.holder}\n"


OPENED = """
import sys
from pathlib import Path
from core.run.claim import DirectoryLock
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
lock = DirectoryLock(Path(sys.argv[1]), ".lock")
lock.acquire("process 1 on host, token")
lock.is_taken(), lock.is_in_place(), lock.holder
lock.release()
print(opened.count(sys.argv[1] + "/.lock"))
"""


def test_the_holder_opens_its_lock_file_once(tmp_path: Path) -> None:
    """Closing a second descriptor would drop a POSIX lock."""
    command = [sys.executable, "-c", OPENED, str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout == "1\n"
