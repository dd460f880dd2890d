import errno
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import UserError
from core.run.directory import FollowerDirectory, RunDirectory
from core.run.launch import Launch, Overwrite
from tests.support.faults import forbidden
from tests.support.preload import run_with_faults
from tests.support.root import ROOT

HOLDER = """
import sys
from core.run.directory import RunDirectory
directory = RunDirectory(sys.argv[1])
print(directory.claim(), end="", flush=True)
sys.stdin.read()
"""


def claimed(path: Path) -> RunDirectory:
    directory = RunDirectory(str(path))
    directory.claim()
    return directory


def begin(directory: RunDirectory, config: str, *, is_resumed: bool = False, overwrite: bool = False) -> None:
    directory.begin(config, is_resumed, Overwrite(None, overwrite))


def test_a_run_locks_its_directory_until_its_process_ends_even_by_a_kill(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            holder = process.stdout.readline()
            assert f"process {process.pid} on " in holder
            other = RunDirectory(str(run))
            with pytest.raises(UserError, match="another run") as raised:
                other.claim()
            assert str(run) in str(raised.value)
            assert f"process {process.pid} on " in str(raised.value)
            other.release()
            other.check_shared(holder)
        finally:
            process.send_signal(signal.SIGKILL)
    other.claim()
    other.release()
    claimed(run)


def test_a_run_begins_with_its_resolved_configuration(tmp_path: Path) -> None:
    directory = claimed(tmp_path / "a" / "b")
    begin(directory, "training: {}\n")
    assert directory.config.read_text().endswith("\ntraining: {}\n")
    assert names(directory.path) == [".lock", ".lock.holder", "checkpoints", "config.yaml"]
    directory.release()
    directory.release()  # a second call does nothing
    claimed(tmp_path / "a" / "b")  # a run's own config.yaml is accepted


def test_a_config_yaml_of_the_user_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("# precious\n")
    with pytest.raises(UserError, match=rf"{tmp_path}.*config\.yaml .*not written by a run"):
        RunDirectory(str(tmp_path)).claim()
    assert (tmp_path / "config.yaml").read_text() == "# precious\n"


@pytest.mark.parametrize("content", [b"", b"\0" * 900, b"\n"])
def test_a_config_yaml_that_a_power_failure_emptied_is_replaced(tmp_path: Path, content: bytes) -> None:
    directory = claimed(tmp_path)
    begin(directory, "earlier")
    directory.release()
    directory.config.write_bytes(content)
    directory = claimed(tmp_path)
    begin(directory, "now", is_resumed=True)
    assert directory.config.read_text().endswith("\nnow")


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunDirectory("~/run").checkpoints == tmp_path / "run" / "checkpoints"


def earlier_run(path: Path) -> RunDirectory:
    """Return the directory of a run that has ended, with files of the user in it."""
    directory = claimed(path)
    begin(directory, "earlier")
    for file in ("checkpoints/5/manifest.json", "checkpoints/.writing-7/state.json", "wandb/run-1/log", "wandb.json"):
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        (path / file).write_text(json.dumps({"run_id": "abcd1234", "sent": {}}))
    for file in ("metrics.jsonl", "notes.txt", "metrics.png", "checkpoints/notes.txt"):
        (path / file).write_text("earlier")
    for file in ("metrics-evaluator.jsonl", "wandb-evaluator.json"):
        (path / file).write_text("the follower's")
    return directory


def follower(path: Path) -> FollowerDirectory:
    """Return the directory as claimed by a follower."""
    directory = FollowerDirectory(str(path))
    directory.claim()
    return directory


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def test_overwriting_deletes_the_files_of_the_run_and_nothing_else(tmp_path: Path) -> None:
    directory = earlier_run(tmp_path)
    begin(directory, "now", overwrite=True)
    locks = [".lock", ".lock-evaluator", ".lock-evaluator.holder", ".lock.holder"]
    assert names(tmp_path) == [*locks, "checkpoints", "config.yaml", "metrics.png", "notes.txt"]
    assert names(tmp_path / "checkpoints") == ["notes.txt"]
    assert directory.config.read_text().endswith("now")


def test_overwriting_deletes_nothing_if_no_run_has_begun(tmp_path: Path) -> None:
    files = ("metrics.jsonl", "wandb.json", "metrics-evaluator.jsonl", "wandb-evaluator.json")
    for file in (*files, "checkpoints/mine/a", "wandb/b"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("the user's")
    begin(claimed(tmp_path), "now", overwrite=True)
    for file in (*(f"{file}.1" for file in files), "checkpoints/mine/a", "wandb/b"):
        assert (tmp_path / file).read_text() == "the user's"


def test_overwriting_works_with_checkpoints_on_another_disk(tmp_path: Path) -> None:
    directory = earlier_run(tmp_path)
    elsewhere = tmp_path / "big-disk"
    directory.checkpoints.rename(elsewhere)
    directory.checkpoints.symlink_to(elsewhere)
    begin(directory, "now", overwrite=True)
    assert names(elsewhere) == ["notes.txt"]


def test_a_resume_deletes_only_unfinished_checkpoints(tmp_path: Path) -> None:
    directory = earlier_run(tmp_path)
    begin(directory, "now", is_resumed=True)
    assert names(directory.checkpoints) == ["5", "notes.txt"]
    assert directory.config.read_text().endswith("now")
    assert directory.metrics.read_text() == "earlier"
    assert (tmp_path / "wandb.json").exists()
    for file in ("metrics-evaluator.jsonl", "wandb-evaluator.json"):
        assert (tmp_path / file).read_text() == "the follower's"


@pytest.mark.parametrize(("config", "is_same_run"), [("earlier", True), ("another", False)])
def test_a_fresh_run_renames_the_measurements_of_an_earlier_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, config: str, is_same_run: bool
) -> None:
    """The earlier run's checkpoints are gone, or it was killed before the first."""
    directory = earlier_run(tmp_path)
    (tmp_path / "metrics.jsonl.1").write_text("still older")
    with caplog.at_level(logging.INFO):
        begin(directory, config)
    assert not directory.metrics.exists()
    assert (tmp_path / "metrics.jsonl.2").read_text() == "earlier"
    assert "metrics.jsonl.2" in caplog.text
    assert (tmp_path / "wandb.json").exists() == is_same_run
    assert (tmp_path / "wandb.json.1").exists() != is_same_run
    for file in ("metrics-evaluator.jsonl", "wandb-evaluator.json"):
        assert not (tmp_path / file).exists()
        assert (tmp_path / f"{file}.1").read_text() == "the follower's"


def test_a_second_follower_is_refused_and_a_run_is_not(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    first = follower(tmp_path / "run")
    with pytest.raises(UserError, match=rf"/run: another follower.* \(process {os.getpid()} on "):
        follower(tmp_path / "run")
    begin(claimed(tmp_path / "run"), "now")
    first.check_held()
    first.release()
    follower(tmp_path / "run")


def test_a_fresh_run_is_refused_while_a_follower_of_the_earlier_run_works(tmp_path: Path) -> None:
    """It would record its evaluations among those of the earlier run."""
    directory = earlier_run(tmp_path)
    working = follower(tmp_path)
    before = names(tmp_path)
    for overwrite in (True, False):
        with pytest.raises(UserError, match=rf"{tmp_path}: a follower .*\(process {os.getpid()} on"):
            begin(directory, "now", overwrite=overwrite)
        assert names(tmp_path) == before
        assert directory.config.read_text().endswith("earlier")
    begin(directory, "now", is_resumed=True)
    working.check_held()
    working.release()
    begin(directory, "now", overwrite=True)
    follower(tmp_path)  # possible as soon as the run has begun


def test_a_follower_waits_until_a_run_has_created_the_directory(tmp_path: Path) -> None:
    directory = FollowerDirectory(str(tmp_path / "run"))
    assert not directory.exists
    directory.path.mkdir()
    assert not directory.exists
    claimed(tmp_path / "run")
    assert directory.exists


def test_a_file_in_place_of_the_directory_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    assert FollowerDirectory(str(tmp_path / "run")).exists, "claim() refuses it"
    for claim in (claimed, follower):
        with pytest.raises(UserError, match=r"training\.save_dir .*/run: .*Not a directory"):
            claim(tmp_path / "run")
    (tmp_path / "run").unlink()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").write_text("")
    with pytest.raises(UserError, match=r"training\.save_dir .*/run: .*File exists"):
        claimed(tmp_path / "run")


def test_checkpoints_on_another_disk_have_a_lock_of_their_own(tmp_path: Path) -> None:
    """Otherwise, two runs whose checkpoints are links to one directory would delete each other's."""
    (tmp_path / "big-disk").mkdir()
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoints").symlink_to(tmp_path / "big-disk")
    first = claimed(tmp_path / "one")
    with pytest.raises(UserError, match=rf"{tmp_path}/other: another run .*\(process {os.getpid()} on "):
        claimed(tmp_path / "other")
    assert first.may_write()
    (tmp_path / "big-disk/.lock.holder").write_text("process 7 on another-host, 0123 another-host:7:1:2:3\n")
    with pytest.raises(UserError, match=rf"^{tmp_path}/one/checkpoints: process 7 on another-host has claimed"):
        first.check_held()


@pytest.mark.parametrize("is_link", [True, False])
def test_a_rank_with_another_disk_under_checkpoints_is_refused(tmp_path: Path, is_link: bool) -> None:
    """On its machine, the link leads elsewhere, or there is a directory."""
    for path in ("disk", "disk-of-another-machine", "run"):
        (tmp_path / path).mkdir()
    link = tmp_path / "run/checkpoints"
    link.symlink_to(tmp_path / "disk")
    directory = RunDirectory(str(tmp_path / "run"))
    claim = directory.claim()
    RunDirectory(str(tmp_path / "run")).check_shared(claim)
    link.unlink()
    if is_link:
        link.symlink_to(tmp_path / "disk-of-another-machine")
    else:
        link.mkdir()
    with pytest.raises(UserError, match="does not see what rank 0 wrote there"):
        RunDirectory(str(tmp_path / "run")).check_shared(claim)


def test_a_rank_that_cannot_write_checkpoints_is_refused(tmp_path: Path) -> None:
    directory = RunDirectory(str(tmp_path))
    claim = directory.claim()
    with forbidden(directory.checkpoints), pytest.raises(UserError, match=rf"{tmp_path}: cannot write: Permission"):
        RunDirectory(str(tmp_path)).check_shared(claim)


@pytest.mark.parametrize("link", ["run", "run/checkpoints"])
def test_a_link_to_nothing_is_a_user_error(tmp_path: Path, link: str) -> None:
    (tmp_path / link).parent.mkdir(exist_ok=True)
    (tmp_path / link).symlink_to(tmp_path / "not-mounted")
    with pytest.raises(UserError, match=rf"/{link} is a link to {tmp_path}/not-mounted, which does not exist"):
        RunDirectory(str(tmp_path / "run")).claim()
    assert not (tmp_path / "not-mounted").exists()


def test_a_config_yaml_that_cannot_be_read_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").mkdir()
    with pytest.raises(UserError, match=rf"cannot read {tmp_path}/config.yaml: Is a directory"):
        RunDirectory(str(tmp_path)).claim()


CLAIM = """
import logging, sys
from common.errors import UserError
from core.run.directory import FollowerDirectory, RunDirectory
logging.basicConfig(format="%(message)s")
for kind in (RunDirectory, FollowerDirectory):
    try:
        kind(sys.argv[1]).claim()
        print("claimed")
    except UserError as error:
        print(error)
"""


def claim_with(directory: Path, faults: dict[str, int]) -> "subprocess.CompletedProcess[str]":
    """Claim the directory for a run and then for a follower, with faults of its file system."""
    ended = run_with_faults(CLAIM, directory, faults)
    assert ended.returncode == 0, ended.stderr
    assert not [path for path in directory.rglob("*") if "probe" in path.name]
    return ended


@pytest.mark.parametrize(
    ("fault", "number", "ability"),
    [
        ("rename_directory", errno.EXDEV, "rename a directory (Invalid cross-device link)"),
        ("rename_directory", errno.ENOSYS, "rename a directory (Function not implemented)"),
        ("truncate", errno.ENOTSUP, "shorten a file (Operation not supported)"),
        ("rename_file", errno.ENOSYS, "replace a file by renaming another one (Function not implemented)"),
    ],
)
def test_a_file_system_that_cannot_do_what_a_run_needs_is_refused(
    tmp_path: Path, fault: str, number: int, ability: str
) -> None:
    run, of_follower = claim_with(tmp_path, {fault: number}).stdout.splitlines()
    where = f"training.save_dir {tmp_path}"
    assert run == (
        f"{where}: its file system cannot {ability}, which a run needs; use a directory on another file system"
    )
    assert of_follower == ("claimed" if fault == "rename_directory" else run), "a follower renames no directory"


def test_what_a_run_can_do_without_is_one_warning(tmp_path: Path) -> None:
    ended = claim_with(tmp_path, {"fsync_directory": errno.EINVAL})
    assert ended.stdout == "claimed\n" * 2
    assert ended.stderr.count("its file system cannot synchronize a directory to disk. After a power failure") == 1


def test_a_launch_is_recorded_when_the_earlier_run_is_deleted(tmp_path: Path) -> None:
    launch = Launch.from_environment({"TORCHELASTIC_RUN_ID": "a"}, [])
    directory = earlier_run(tmp_path)
    assert directory.how_to_start_over_again(launch) is None
    directory.begin("now", is_resumed=False, overwrite=Overwrite(launch, is_due=True))
    assert RunDirectory(str(tmp_path)).how_to_start_over_again(launch)
    assert names(directory.checkpoints) == ["notes.txt"]


def test_a_checkpoint_that_the_run_would_delete_is_no_start(tmp_path: Path) -> None:
    directory = earlier_run(tmp_path / "run")
    (tmp_path / "link").symlink_to(tmp_path / "run/checkpoints/5")
    for path in (tmp_path / "run/checkpoints/5", tmp_path / "link"):
        with pytest.raises(UserError, match=rf"^training\.initial_checkpoint_dir: {path} is in the save_dir"):
            directory.check_not_deleted(path, "training.initial_checkpoint_dir")
    directory.check_not_deleted(tmp_path / "other/checkpoints/5", "training.initial_checkpoint_dir")
