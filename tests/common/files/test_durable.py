import errno
from pathlib import Path

import pytest

from common.files.durable import atomic_file, is_blank, replace_file, sync_directory, sync_file
from tests.support.faults import forbidden, full_disk
from tests.support.preload import run_with_faults


def test_a_file_is_replaced_and_nothing_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_file(path, "first")
    replace_file(path, "sécond\n")
    assert path.read_text(encoding="utf-8") == "sécond\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_keeps_its_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_file(path, "earlier")
    with full_disk(3), pytest.raises(OSError, match="File too large"):
        replace_file(path, "a longer text")
    with forbidden(tmp_path), pytest.raises(PermissionError):
        replace_file(path, "another")
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_appears_when_its_writer_has_ended_without_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_file(path) as partial:
        partial.write_bytes(b"first")
        assert not path.exists()
    with full_disk(3), pytest.raises(OSError, match="File too large"), atomic_file(path) as partial:
        partial.write_bytes(b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_existing_files_and_directories_are_synchronized(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    assert sync_file(tmp_path / "file")
    assert sync_directory(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync_file(tmp_path / "missing")
    with pytest.raises(NotADirectoryError):
        sync_directory(tmp_path / "file")


USE = """
import sys
from pathlib import Path
from common.files.durable import replace_file, sync_directory, sync_file
root = Path(sys.argv[1])
replace_file(root / "file", "content")
print(sync_file(root / "file"), sync_directory(root))
"""


def test_a_file_system_without_fsync_is_accepted(tmp_path: Path) -> None:
    assert run_with_faults(USE, tmp_path, {"fsync_directory": errno.EINVAL}).stdout == "True False\n"
    assert run_with_faults(USE, tmp_path, {"fsync_file": errno.ENOSYS}).stdout == "False True\n"
    assert (tmp_path / "file").read_text() == "content"


def test_a_disk_that_fails_to_synchronize_is_an_error(tmp_path: Path) -> None:
    for fault in ("fsync_file", "fsync_directory"):
        ended = run_with_faults(USE, tmp_path, {fault: errno.EIO})
        assert ended.returncode == 1
        assert "Input/output error" in ended.stderr


@pytest.mark.parametrize(("content", "blank"), [(b"", True), (b"\0" * 100, True), (b"\n", True), (b"\0x", False)])
def test_what_a_power_failure_can_leave_is_blank(content: bytes, blank: bool) -> None:
    assert is_blank(content) == blank
