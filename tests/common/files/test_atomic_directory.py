"""tests/projects/test_targets.py tries the programs that write to such a directory."""

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import UserError
from common.files.atomic_directory import atomic_directory
from tests.support.faults import forbidden
from tests.support.preload import run_with_faults
from tests.support.root import ROOT


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(out: Path) -> None:
    """Write a file and a directory with a file."""
    with atomic_directory(out) as partial:
        (partial / "a").write_text("x")
        (partial / "deep").mkdir()
        (partial / "deep" / "b").write_text("y")
        assert not (out / "a").exists()


def is_filled(out: Path) -> bool:
    return (out / "a").read_text() == "x" and (out / "deep" / "b").read_text() == "y" and names(out) == ["a", "deep"]


def never(out: Path) -> str:
    """Return the message of the error that is reported before the block runs."""
    with pytest.raises(UserError) as caught, atomic_directory(out):
        raise AssertionError("the work began")
    assert str(caught.value).startswith(f"--out {out}")
    return str(caught.value)


def test_directory_appears_when_complete(tmp_path):
    out = tmp_path / "new" / "deeper" / "out"
    with atomic_directory(out) as partial:
        (partial / "a").write_text("x")
        assert not out.exists()
    assert names(tmp_path / "new" / "deeper") == ["out"]
    assert (out / "a").read_text() == "x"


def fail(out: Path, error: BaseException) -> None:
    with atomic_directory(out) as partial:
        (partial / "a").write_text("x")
        raise error


@pytest.mark.parametrize("mode", [None, 0o755, 0o750])
@pytest.mark.parametrize("error", [UserError("bad data"), KeyboardInterrupt(), OSError(28, "No space left")])
def test_error_leaves_everything_as_it_was(tmp_path, mode, error):
    out = tmp_path / "out"
    if mode is not None:
        out.mkdir(mode)
    before = [(path, path.stat().st_mode, path.stat().st_ino) for path in tmp_path.rglob("*")]
    with pytest.raises((UserError, KeyboardInterrupt)):
        fail(out, error)
    assert [(path, path.stat().st_mode, path.stat().st_ino) for path in tmp_path.rglob("*")] == before


def test_error_removes_new_parents_but_no_others(tmp_path):
    (tmp_path / "old").mkdir()
    with pytest.raises(UserError, match="bad data"):
        fail(tmp_path / "old" / "new" / "out", UserError("bad data"))
    assert names(tmp_path) == ["old"]
    assert not names(tmp_path / "old")


def test_existing_file_or_directory_is_refused_and_unchanged(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    for out in (tmp_path, tmp_path / "file", tmp_path / "link"):
        assert "already exists" in never(out)
    assert "'file'" in never(tmp_path)
    assert names(tmp_path) == ["file", "link"]


def test_empty_directory_stays_the_same_directory(tmp_path):
    """Its owner, its mode, and links to it stay, and it may be somebody's current directory."""
    out = tmp_path / "out"
    out.mkdir(mode=0o750)
    (out / "lost+found").mkdir()
    before = out.stat()
    fill(out)
    assert (out.stat().st_ino, out.stat().st_mode) == (before.st_ino, before.st_mode)
    (out / "lost+found").rmdir()
    assert is_filled(out)


@pytest.mark.parametrize("target", ["empty", "missing", "missing/deeper"])
def test_links_to_directories_are_followed(tmp_path, target):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(target)
    fill(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert is_filled(tmp_path / target)


def test_a_name_of_the_greatest_length_works(tmp_path):
    for name in ("x" * 255, "日" * 85):
        fill(tmp_path / name)
        assert is_filled(tmp_path / name)


def a_file_as_parent(folder: Path) -> Path:
    (folder / "file").write_text("x")
    return folder / "file" / "out"


def a_circle_of_links(folder: Path) -> Path:
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    return folder / "a"


@pytest.mark.parametrize(
    ("make", "fact"),
    [
        (a_file_as_parent, "Not a directory"),
        (a_circle_of_links, "Too many levels of symbolic links"),
        (lambda folder: folder / ("x" * 256), "File name too long"),
        (lambda folder: folder / ("x" * 256) / "out", "File name too long"),
        (lambda folder: folder.joinpath(*["x" * 200] * 30), "File name too long"),
        (lambda folder: folder / os.fsdecode(b"caf\xe9"), "UTF-8"),
    ],
)
def test_an_impossible_directory_is_reported_before_the_work(tmp_path, make: Callable[[Path], Path], fact):
    out = make(tmp_path)
    before = names(tmp_path)
    with pytest.raises(UserError, match=fact), atomic_directory(out):
        raise AssertionError("the work began")
    assert names(tmp_path) == before


def test_a_directory_without_permission_is_reported_before_the_work(tmp_path):
    (tmp_path / "empty").mkdir()
    with forbidden(tmp_path):
        assert "Permission denied" in never(tmp_path / "new")
        fill(tmp_path / "empty")  # needs no permission for its parent
    (tmp_path / "other").mkdir()
    with forbidden(tmp_path / "other"):
        assert "Permission denied" in never(tmp_path / "other")
        assert "Permission denied" in never(tmp_path / "other" / "out")
    assert names(tmp_path) == ["empty", "other"]


def test_complete_files_are_kept_if_the_directory_can_no_longer_be_written(tmp_path):
    out = tmp_path / "out"

    def fill_while_another_program_writes() -> None:
        with atomic_directory(out) as partial:
            (partial / "a").write_text("x")
            out.mkdir()
            (out / "of another program").touch()

    with pytest.raises(UserError, match=f"^--out {out}: .*Directory not empty.*from /.*$") as caught:
        fill_while_another_program_writes()
    kept = Path(str(caught.value).rpartition(" from ")[2])
    assert (kept / "a").read_text() == "x"
    assert names(out) == ["of another program"]


def test_current_directory_can_be_filled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(Path())
    assert Path.cwd().samefile(tmp_path)
    assert is_filled(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("exists", [False, True])
def test_a_signal_leaves_everything_as_it_was(tmp_path, number, exists):
    out = tmp_path / "out"
    if exists:
        out.mkdir()
    before = signal.signal(number, lambda number, _: sys.exit(128 + number))  # as in programs that do not train

    def fill_until_the_signal() -> None:
        with atomic_directory(out) as partial:
            (partial / "a").write_text("x")
            signal.raise_signal(number)

    try:
        with pytest.raises(SystemExit) as caught:
            fill_until_the_signal()
    finally:
        signal.signal(number, before)
    assert caught.value.code == 128 + number
    assert [path.name for path in tmp_path.rglob("*")] == (["out"] if exists else [])


def test_another_thread_can_fill_a_directory(tmp_path):
    thread = threading.Thread(target=fill, args=[tmp_path / "out"])
    thread.start()
    thread.join(30)
    assert is_filled(tmp_path / "out")


@pytest.mark.parametrize("bind", [False, True])
def test_an_empty_mount_point_can_be_filled(tmp_path, bind):
    """A bind mount is on the file system of its parent, so os.path.ismount() does not recognize it."""
    out, source = tmp_path / "out", tmp_path / "source"
    out.mkdir()
    source.mkdir()
    mount = f"mount --bind {source} {out}" if bind else f"mount -t tmpfs none {out}"
    shell = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*shell, mount], capture_output=True, check=False, timeout=120).returncode != 0:
        pytest.skip("this machine forbids mounts")
    program = (
        "import sys; from pathlib import Path; from common.files.atomic_directory import atomic_directory\n"
        f"with atomic_directory(Path({str(out)!r})) as partial: (partial / 'a').write_text('x')\n"
        f"print(*sorted(path.name for path in Path({str(out)!r}).iterdir()))"
    )
    command = f'{mount} && exec "{sys.executable}" -c "$0"'
    ran = subprocess.run([*shell, command, program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "a\n", "")
    assert names(source) == (["a"] if bind else [])
    assert not names(out)


FILL = """
import sys
from pathlib import Path
from common.errors import UserError
from common.files.atomic_directory import atomic_directory
try:
    with atomic_directory(Path(sys.argv[1]) / "out") as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "b").write_text("y")
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("fault", ["fsync_file", "fsync_directory"])
def test_a_directory_appears_only_when_it_is_durable(tmp_path: Path, fault: str) -> None:
    ended = run_with_faults(FILL, tmp_path, {fault: errno.EIO})
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(f"--out {tmp_path}/out: cannot write this directory: Input/output error")
    assert names(tmp_path) == []
