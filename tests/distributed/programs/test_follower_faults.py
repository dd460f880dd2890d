"""Faults at several moments of a follower's work: it is killed, or somebody removes or truncates a checkpoint.

Each fault occurs in its own process. All are forked from a process that has only imported modules, to save time.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.evaluation.completed import completed_partitions
from tests.support.evaluated_run import NAMES, STEPS, EvaluatedRun
from tests.support.programs import TIMEOUT_IN_S
from tests.support.root import ROOT

pytestmark = pytest.mark.faults

MOMENTS = 5


def fork(action: Callable[[], object]) -> int:
    """Run `action` in a forked process. Return its exit status, or minus the number of the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            action()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def follow(job: EvaluatedRun, at: int, fault: Callable[[], object]) -> int:
    """Run a follower to the end and return the number of Python function calls. Call `fault` at call number `at`."""
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        if event == "call":
            calls += 1
            if calls == at:
                fault()

    sys.setprofile(count)
    job.evaluate()
    sys.setprofile(None)
    return calls


def remove(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)


def truncate(checkpoint: Path) -> None:
    data = checkpoint / "tensors-0.bin"
    os.truncate(data, data.stat().st_size // 2)


def main(directory: Path) -> None:
    """Fork all other processes, and print what they did as JSON."""
    import core.evaluation.poller

    core.evaluation.poller._POLL_IN_S = 0.01
    original = directory / "original"
    original.mkdir()
    assert fork(lambda: EvaluatedRun(original).train()) == 0
    calls = directory / "calls"
    assert fork(lambda: calls.write_text(str(follow(EvaluatedRun(original), 0, lambda: None)))) == 0
    moments = [int(calls.read_text()) * (2 * i + 1) // (2 * MOMENTS) for i in range(MOMENTS)]
    (original / "run/metrics-evaluator.jsonl").unlink()

    def copy(name: str) -> Path:
        return Path(shutil.copytree(original, directory / name))

    found: dict[str, Any] = {
        "expected": EvaluatedRun(original).expected(),
        "killed": [],
        "removed": [],
        "truncated": [],
    }
    for moment in moments:
        folder = copy(f"killed-{moment}")
        metrics = folder / "run/metrics-evaluator.jsonl"
        begun = folder / "begun"

        def follow_until_killed(folder: Path = folder, moment: int = moment) -> None:
            follow(EvaluatedRun(folder), moment, lambda: os.kill(os.getpid(), signal.SIGKILL))

        def follow_to_the_end(folder: Path = folder, begun: Path = begun) -> None:
            job = EvaluatedRun(folder)
            with begun.open("w") as file:
                job.on_partition = lambda: print("begun", file=file)
                job.evaluate()

        statuses = [fork(follow_until_killed)]
        completed = sum(map(len, completed_partitions(metrics).values()))
        statuses.append(fork(follow_to_the_end))
        found["killed"].append(
            [statuses, completed + len(begun.read_text().splitlines()), EvaluatedRun(folder).found()]
        )
        for name, fault in (("removed", remove), ("truncated", truncate)):
            folder = copy(f"{name}-{moment}")

            def follow_with_fault(folder: Path = folder, moment: int = moment, fault: Any = fault) -> None:
                follow(EvaluatedRun(folder), moment, lambda: fault(folder / "run/checkpoints/8"))

            found[name].append([fork(follow_with_fault), EvaluatedRun(folder).found()])
    sys.stdout.write(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    code = "import sys; from pathlib import Path; from tests.distributed.programs.test_follower_faults import main; "
    ended = subprocess.run(
        [sys.executable, "-c", f"{code}main(Path(sys.argv[1]))", str(tmp_path_factory.mktemp("faults"))],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_IN_S,
    )
    assert ended.returncode == 0, ended.stderr
    return {"stderr": ended.stderr, **json.loads(ended.stdout)}


def test_a_follower_killed_at_any_moment_evaluates_everything_exactly_once(found: dict[str, Any]) -> None:
    assert [measurement[:2] for measurement in found["expected"]] == [[step, name] for step in STEPS for name in NAMES]
    assert found["killed"] == [[[-signal.SIGKILL, 0], 6, found["expected"]]] * MOMENTS, found["stderr"]


@pytest.mark.parametrize("fault", ["removed", "truncated"])
def test_a_checkpoint_damaged_at_any_moment_is_skipped_or_evaluated_correctly(
    found: dict[str, Any], fault: str
) -> None:
    without = [measurement for measurement in found["expected"] if measurement[0] != 8]
    outcomes = found[fault]
    assert [status for status, _ in outcomes] == [0] * MOMENTS, found["stderr"]
    assert outcomes[0][1] == without
    assert outcomes[-1][1] == found["expected"]
    assert all(measured in (without, found["expected"]) for _, measured in outcomes)
