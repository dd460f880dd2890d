import signal
import subprocess
import sys
from pathlib import Path

import pytest

from core.config.base_config import UserError
from core.run_directory import RunDirectory, check_same_run

ROOT = Path(__file__).parents[2]

HOLDER = """
import sys
from core.run_directory import RunDirectory
directory = RunDirectory(sys.argv[1])
directory.claim("holder: 1\\n", overwrite=False)
print("claimed", flush=True)
sys.stdin.read()
"""


def test_a_run_keeps_others_out_until_it_ends_however_it_ends(tmp_path):
    run = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "claimed\n"
            other = RunDirectory(str(run))
            with pytest.raises(UserError, match="another run is training here") as raised:
                other.claim("other: 1\n", overwrite=True)
            assert str(run) in str(raised.value)
            other.release()
            assert (run / "config.yaml").read_text() == "holder: 1\n"
        finally:
            holder.send_signal(signal.SIGKILL)
    other.claim("other: 1\n", overwrite=False)
    assert (run / "config.yaml").read_text() == "other: 1\n"
    other.release()
    RunDirectory(str(run)).claim("third: 1\n", overwrite=False)


def test_claiming_makes_the_directory_and_writes_the_configuration(tmp_path):
    directory = RunDirectory(str(tmp_path / "a" / "b"))
    directory.claim("training: {}\n", overwrite=False)
    assert directory.config.read_text() == "training: {}\n"
    assert not list(directory.path.glob("*.writing"))
    directory.release()
    directory.release()  # twice does no harm


def test_home_is_meant_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunDirectory("~/run").checkpoints == tmp_path / "run" / "checkpoints"


def earlier_run(path: Path) -> RunDirectory:
    directory = RunDirectory(str(path))
    for file in ("checkpoints/5/manifest.json", "checkpoints/.writing-7/state.json", "wandb/run-1/log"):
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        (path / file).write_text("{}")
    for file in ("metrics.jsonl", "config.yaml", "wandb.json", "notes.txt", "metrics.png"):
        (path / file).write_text("earlier")
    return directory


def test_overwriting_removes_what_is_the_runs_and_nothing_else(tmp_path):
    directory = earlier_run(tmp_path)
    directory.claim("now", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "config.yaml", "metrics.png", "notes.txt"]
    assert directory.config.read_text() == "now"


def test_continuing_removes_unfinished_checkpoints_alone(tmp_path):
    directory = earlier_run(tmp_path)
    directory.claim("now", overwrite=False)
    assert [path.name for path in directory.checkpoints.iterdir()] == ["5"]
    assert directory.metrics.read_text() == "earlier"


def test_what_cannot_be_deleted_is_an_error_not_a_run_that_quietly_continues(tmp_path):
    directory = earlier_run(tmp_path)
    elsewhere = tmp_path / "big-disk"
    directory.checkpoints.rename(elsewhere)
    directory.checkpoints.symlink_to(elsewhere)
    with pytest.raises(UserError, match=r"training\.save_dir .*can't be written: .*symbolic link"):
        directory.claim("now", overwrite=True)
    assert (elsewhere / "5").is_dir()


def test_a_file_in_the_place_of_the_directory_is_a_clear_error(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match=r"training\.save_dir .*run: can't be written"):
        RunDirectory(str(tmp_path / "run")).claim("", overwrite=False)


IDENTITY = {
    "runtime": {"seed": 0},
    "model": {"tasks": {"recap.fav": {"pos_weight": 1.0}}, "sizes": [4, 8], "norm": None},
    "files of train_data": "abc",
}


def test_an_unchanged_run_goes_on():
    check_same_run(Path("run"), IDENTITY, {**IDENTITY})


def test_every_difference_is_listed_with_the_path_of_its_key():
    now = {
        "runtime": {"seed": 1},
        "model": {
            "tasks": {"recap.fav": {"pos_weight": 2.0}, "recap.reply": {"pos_weight": 1.0}},
            "sizes": [4, 16],
            "norm": {"eps": 0.1},
            "depth": 3,
        },
    }
    with pytest.raises(UserError) as raised:
        check_same_run(Path("some/run"), IDENTITY, now)
    assert str(raised.value).splitlines() == [
        "training.save_dir some/run holds another run:",
        "  runtime.seed: 0 in the run, 1 now",
        "  model.tasks[recap.fav].pos_weight: 1.0 in the run, 2.0 now",
        "  model.tasks[recap.reply]: not in the run",
        "  model.sizes: [4, 8] in the run, [4, 16] now",
        "  model.norm: not in the run",
        "  model.depth: null in the run, 3 now",
        '  files of train_data: "abc" in the run, null now',
        "Undo these changes to continue it, give this run a save_dir of its own, or start anew with "
        "--overwrite_save_dir (which deletes the run there).",
    ]


def test_many_differences_are_cut_short():
    with pytest.raises(UserError, match=r"\n  and 5 more\n"):
        check_same_run(Path("run"), {str(key): 0 for key in range(25)}, {})
    with pytest.raises(UserError, match=r"a: in the run, not any more"):
        check_same_run(Path("run"), {"a": {"b": 1}}, {})


def test_zero_and_false_are_differences_too():
    with pytest.raises(UserError, match=r"b: 0 in the run, null now"):
        check_same_run(Path("run"), {"a": {}, "b": 0}, {"a": {}, "b": None})
