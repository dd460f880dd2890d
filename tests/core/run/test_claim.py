import shutil
from pathlib import Path

import pytest

from common.errors import UserError
from core.run.claim import ClaimedDirectory


def locked(path: Path, lock_name: str = ".lock") -> tuple[ClaimedDirectory, str | None]:
    path.mkdir(exist_ok=True)
    directory = ClaimedDirectory(str(path), lock_name)
    return directory, directory.lock()


def test_one_process_of_a_kind_has_it_until_it_lets_it_go(tmp_path):
    first, holder = locked(tmp_path)
    assert holder is not None
    other, nothing = locked(tmp_path)
    assert nothing is None
    assert other.holder == first.holder == holder.strip()
    assert locked(tmp_path, ".lock-of-another-kind")[1] is not None
    first.check_held()
    first.release()
    first.release()  # twice does no harm
    assert locked(tmp_path)[1] is not None


def test_all_processes_must_see_it(tmp_path):
    _, holder = locked(tmp_path / "here")
    assert holder is not None
    ClaimedDirectory(str(tmp_path / "here"), ".lock").check_shared(holder)
    with pytest.raises(UserError, match="all processes need the same directory on a shared file system"):
        ClaimedDirectory(str(tmp_path / "there"), ".lock").check_shared(holder)


def test_a_directory_that_was_removed_meanwhile_is_not_held_any_more(tmp_path):
    directory, _ = locked(tmp_path / "run")
    directory.check_held()
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(UserError, match="was removed while it was in use"):
        directory.check_held()
    locked(tmp_path / "run")  # by another process
    with pytest.raises(UserError, match="was removed while it was in use"):
        directory.check_held()
