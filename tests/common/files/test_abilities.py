import errno
from pathlib import Path

import pytest

from common.files.abilities import check_directories, check_files, why_locks_do_not_work
from tests.support.faults import forbidden, full_disk
from tests.support.preload import run_with_faults

PROBE = """
import sys
from pathlib import Path
from common.files.abilities import MissingAbilityError, check_directories, check_files, why_locks_do_not_work
root = Path(sys.argv[1])
try:
    print(check_files(root))
    check_directories(root)
    print(why_locks_do_not_work(root))
except MissingAbilityError as error:
    print("needed:", error.strerror)
"""


def probe(directory: Path, **faults: int) -> list[str]:
    """Return what a new process finds out about the directory if its file system has faults."""
    ended = run_with_faults(PROBE, directory, faults)
    assert ended.returncode == 0, ended.stderr
    assert list(directory.iterdir()) == []
    return ended.stdout.splitlines()


def test_a_local_directory_has_all_abilities(tmp_path: Path) -> None:
    assert check_files(tmp_path) == []
    check_directories(tmp_path)
    assert why_locks_do_not_work(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_abilities_that_nothing_depends_on_are_listed(tmp_path: Path) -> None:
    assert probe(tmp_path, fsync_directory=errno.EINVAL) == ["['synchronize a directory to disk']", "None"]
    assert probe(tmp_path, fsync_file=errno.ENOSYS) == ["['synchronize a file to disk']", "None"]


@pytest.mark.parametrize(
    ("fault", "number", "ability"),
    [
        ("rename_directory", errno.EXDEV, "rename a directory (Invalid cross-device link)"),
        ("rename_directory", errno.ENOSYS, "rename a directory (Function not implemented)"),
        ("rename_directory", 0, "rename a directory (No such file or directory)"),
        ("rename_file", errno.ENOTSUP, "replace a file by renaming another one (Operation not supported)"),
        ("rename_file", 0, "replace a file by renaming another one (the file has another content)"),
        ("truncate", errno.EPERM, "shorten a file (Operation not permitted)"),
        ("fsync_directory", errno.EIO, "synchronize a directory (Input/output error)"),
    ],
)
def test_a_missing_ability_is_named(tmp_path: Path, fault: str, number: int, ability: str) -> None:
    assert probe(tmp_path, **{fault: number})[-1] == f"needed: its file system cannot {ability}"


def test_locks_that_keep_nobody_out_are_found(tmp_path: Path) -> None:
    assert "two locks on the same file" in probe(tmp_path, flock=0)[-1]
    assert probe(tmp_path, flock=errno.ENOLCK)[-1] == "flock: No locks available"


def test_a_directory_that_cannot_be_written_is_no_question_of_abilities(tmp_path: Path) -> None:
    for check in (check_files, check_directories, why_locks_do_not_work):
        with forbidden(tmp_path), pytest.raises(PermissionError):
            check(tmp_path)
    with full_disk(3), pytest.raises(OSError, match="File too large"):
        check_files(tmp_path)
    assert list(tmp_path.iterdir()) == []
