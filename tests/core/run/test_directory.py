import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from core.run.directory import FollowerDirectory, RunDirectory, check_same_run
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


def test_a_run_keeps_others_out_until_it_ends_however_it_ends(tmp_path):
    run = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout is not None
            said = holder.stdout.readline()
            assert f"process {holder.pid} on " in said
            other = RunDirectory(str(run))
            with pytest.raises(UserError, match="another run is training here") as raised:
                other.claim()
            assert str(run) in str(raised.value)
            assert f"process {holder.pid} on " in str(raised.value)
            other.release()
            other.check_shared(said)
        finally:
            holder.send_signal(signal.SIGKILL)
    other.claim()
    other.release()
    claimed(run)


def test_a_run_begins_with_its_configuration(tmp_path):
    directory = claimed(tmp_path / "a" / "b")
    directory.begin("training: {}\n", continues=False, overwrite=False)
    assert directory.config.read_text().endswith("\ntraining: {}\n")
    assert not list(directory.path.glob("*.writing"))
    directory.release()
    directory.release()  # twice does no harm
    claimed(tmp_path / "a" / "b")  # its own config.yaml is no stranger's


def test_a_config_of_somebody_elses_is_not_replaced(tmp_path):
    (tmp_path / "config.yaml").write_text("# precious\n")
    with pytest.raises(UserError, match=r"config\.yaml in it was not written by a run"):
        RunDirectory(str(tmp_path)).claim()
    assert (tmp_path / "config.yaml").read_text() == "# precious\n"


def test_home_is_meant_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunDirectory("~/run").checkpoints == tmp_path / "run" / "checkpoints"


def earlier_run(path: Path) -> RunDirectory:
    """A run that is over, with files of its user beside."""
    directory = claimed(path)
    directory.begin("earlier", continues=False, overwrite=False)
    for file in ("checkpoints/5/manifest.json", "checkpoints/.writing-7/state.json", "wandb/run-1/log", "wandb.json"):
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        (path / file).write_text(json.dumps({"run_id": "abcd1234", "sent": {}}))
    for file in ("metrics.jsonl", "notes.txt", "metrics.png", "checkpoints/notes.txt"):
        (path / file).write_text("earlier")
    for file in ("metrics-evaluator.jsonl", "wandb-evaluator.json"):
        (path / file).write_text("the evaluator's")
    return directory


def evaluator(path: Path) -> FollowerDirectory:
    """One at work."""
    directory = FollowerDirectory(str(path))
    directory.claim()
    return directory


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def test_overwriting_removes_what_is_the_runs_and_nothing_else(tmp_path):
    directory = earlier_run(tmp_path)
    directory.begin("now", continues=False, overwrite=True)
    assert names(tmp_path) == [".lock", ".lock-evaluator", "checkpoints", "config.yaml", "metrics.png", "notes.txt"]
    assert names(tmp_path / "checkpoints") == ["notes.txt"]
    assert directory.config.read_text().endswith("now")


def test_overwriting_deletes_nothing_where_no_run_has_begun(tmp_path):
    files = ("metrics.jsonl", "wandb.json", "metrics-evaluator.jsonl", "wandb-evaluator.json")
    for file in (*files, "checkpoints/mine/a", "wandb/b"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("a stranger's")
    claimed(tmp_path).begin("now", continues=False, overwrite=True)
    for file in (*(f"{file}.1" for file in files), "checkpoints/mine/a", "wandb/b"):
        assert (tmp_path / file).read_text() == "a stranger's"


def test_overwriting_works_where_checkpoints_lie_on_another_disk(tmp_path):
    directory = earlier_run(tmp_path)
    elsewhere = tmp_path / "big-disk"
    directory.checkpoints.rename(elsewhere)
    directory.checkpoints.symlink_to(elsewhere)
    directory.begin("now", continues=False, overwrite=True)
    assert names(elsewhere) == ["notes.txt"]


def test_continuing_removes_unfinished_checkpoints_alone(tmp_path):
    directory = earlier_run(tmp_path)
    directory.begin("now", continues=True, overwrite=False)
    assert names(directory.checkpoints) == ["5", "notes.txt"]
    assert directory.metrics.read_text() == "earlier"
    assert (tmp_path / "wandb.json").exists()
    for file in ("metrics-evaluator.jsonl", "wandb-evaluator.json"):
        assert (tmp_path / file).read_text() == "the evaluator's"


@pytest.mark.parametrize(("config", "is_same_run"), [("earlier", True), ("another", False)])
def test_starting_anew_beside_an_earlier_runs_measurements_keeps_them(tmp_path, caplog, config, is_same_run):
    """Its checkpoints are gone, or it was killed before the first."""
    directory = earlier_run(tmp_path)
    (tmp_path / "metrics.jsonl.1").write_text("still older")
    with caplog.at_level(logging.INFO):
        directory.begin(config, continues=False, overwrite=False)
    assert not directory.metrics.exists()
    assert (tmp_path / "metrics.jsonl.2").read_text() == "earlier"
    assert "metrics.jsonl.2" in caplog.text
    assert (tmp_path / "wandb.json").exists() == is_same_run
    assert (tmp_path / "wandb.json.1").exists() != is_same_run
    for file in ("metrics-evaluator.jsonl", "wandb-evaluator.json"):
        assert not (tmp_path / file).exists()
        assert (tmp_path / f"{file}.1").read_text() == "the evaluator's"


def test_a_second_evaluator_is_refused_and_a_run_is_not(tmp_path):
    (tmp_path / "run").mkdir()
    first = evaluator(tmp_path / "run")
    with pytest.raises(UserError, match=rf"run: another evaluator is at work here.* \(process {os.getpid()} on "):
        evaluator(tmp_path / "run")
    claimed(tmp_path / "run").begin("now", continues=False, overwrite=False)
    first.check_held()
    first.release()
    evaluator(tmp_path / "run")


def test_a_run_that_would_leave_its_evaluator_with_another_runs_measurements_is_refused(tmp_path):
    directory = earlier_run(tmp_path)
    at_work = evaluator(tmp_path)
    before = names(tmp_path)
    for overwrite in (True, False):
        with pytest.raises(UserError, match=rf"evaluator of the earlier run is at work here \(process {os.getpid()}"):
            directory.begin("now", continues=False, overwrite=overwrite)
        assert names(tmp_path) == before
        assert directory.config.read_text().endswith("earlier")
    directory.begin("now", continues=True, overwrite=False)
    at_work.check_held()
    at_work.release()
    directory.begin("now", continues=False, overwrite=True)
    evaluator(tmp_path)  # which may come as soon as the run has begun


def test_a_file_in_the_place_of_the_directory_is_a_clear_error(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match=r"training\.save_dir .*run: can't be written: Not a directory"):
        claimed(tmp_path / "run")
    (tmp_path / "run").unlink()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").write_text("")
    with pytest.raises(UserError, match=r"training\.save_dir .*run: can't be written: File exists"):
        claimed(tmp_path / "run")


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


def test_of_a_list_of_mappings_only_what_differs_within_them_is_listed():
    def model(*rows: int, **changes: Any) -> dict[str, Any]:
        tables = [{"name": "ab"[i], "num_embeddings": n, "optimizer": {"lr": 0.1}} for i, n in enumerate(rows)]
        return {"model": {"embeddings": {"tables": [*tables[:-1], tables[-1] | changes]}}}

    for saved, now, lines in [
        (model(3, 4), model(3, 5, optimizer={"lr": 0.2}), ["[1].num_embeddings: 4 in", "[1].optimizer.lr: 0.1 in"]),
        (model(3, 4), model(3), ["[1]: in the run, not any more"]),
        (model(3), model(3, 4), ["[1]: not in the run"]),
    ]:
        with pytest.raises(UserError) as raised:
            check_same_run(Path("run"), saved, now)
        told = str(raised.value).splitlines()[1:-1]
        assert len(told) == len(lines)
        for line, expected in zip(told, lines, strict=True):
            assert line.startswith(f"  model.embeddings.tables{expected}")
    check_same_run(Path("run"), model(3, 4), model(3, 4))


def test_many_differences_are_cut_short():
    with pytest.raises(UserError, match=r"\n  and 5 more\n"):
        check_same_run(Path("run"), {str(key): 0 for key in range(25)}, {})
    with pytest.raises(UserError, match=r"a: in the run, not any more"):
        check_same_run(Path("run"), {"a": {"b": 1}}, {})
    with pytest.raises(UserError, match=r"not any more\nDo this\.$"):
        check_same_run(Path("run"), {"a": {"b": 1}}, {}, "Do this.")


def test_a_hint_stands_beside_its_difference():
    saved, now = {"data": {"batch": 1}, "data_b": 1}, {"data": {"batch": 2}, "data_b": 2}
    with pytest.raises(UserError) as raised:
        check_same_run(Path("run"), saved, now, "Do this.", {"data.batch": "give batch", "data": "not this"})
    assert str(raised.value).splitlines()[1:3] == [
        "  data.batch: 1 in the run, 2 now; give batch",
        "  data_b: 1 in the run, 2 now",
    ]


def test_an_option_that_is_new_since_the_run_began_is_a_difference_where_it_is_on():
    off = {"names": [], "weigh": False, "extra": None, "tables": {}}
    check_same_run(Path("run"), {"model": {"depth": 3}}, {"model": {"depth": 3, **off}})
    with pytest.raises(UserError, match=r"run:\n  model.weigh: null in the run, true now\nUndo"):
        check_same_run(Path("run"), {"model": {"depth": 3}}, {"model": {"depth": 3, **off, "weigh": True}})


def test_zero_and_false_are_differences_too():
    with pytest.raises(UserError, match=r"b: 0 in the run, null now"):
        check_same_run(Path("run"), {"a": {}, "b": 0}, {"a": {}, "b": None})
