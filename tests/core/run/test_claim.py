import os
import shutil
import socket
from pathlib import Path

import pytest

from common.errors import UserError
from core.run.claim import ClaimedDirectory


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
