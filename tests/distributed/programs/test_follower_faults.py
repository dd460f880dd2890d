"""Faults at moments spread over an evaluation, each in a process of its own: a kill, a checkpoint that others change.

The processes are forked from one that has imported everything and done nothing, so that each costs little.
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
from tests.support.evaluated_run import NAMES, STEPS, Job
from tests.support.programs import TIMEOUT_IN_S
from tests.support.root import ROOT

MOMENTS = 5


def fork(action: Callable[[], object]) -> int:
    """Runs `action` in a process; its exit status, or the negative number of the signal that ended it."""
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


def evaluate(job: Job, at: int, fault: Callable[[], object]) -> int:
    """Evaluates, with the fault at the so many-th call of a Python function; the number of all calls."""
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
    data = checkpoint / "__0_0.distcp"
    os.truncate(data, data.stat().st_size // 2)


def main(directory: Path) -> None:
    """The process that the others are forked from; prints what was found, as JSON."""
    import core.evaluation.poller

    core.evaluation.poller._POLL_IN_S = 0.01
    original = directory / "original"
    original.mkdir()
    assert fork(lambda: Job(original).train()) == 0
    calls = directory / "calls"
    assert fork(lambda: calls.write_text(str(evaluate(Job(original), 0, lambda: None)))) == 0
    moments = [int(calls.read_text()) * (2 * i + 1) // (2 * MOMENTS) for i in range(MOMENTS)]
    (original / "run/metrics-evaluator.jsonl").unlink()

    def copy(name: str) -> Path:
        return Path(shutil.copytree(original, directory / name))

    found: dict[str, Any] = {"expected": Job(original).expected(), "killed": [], "removed": [], "truncated": []}
    for moment in moments:
        place = copy(f"killed-{moment}")
        metrics = place / "run/metrics-evaluator.jsonl"
        begun = place / "begun"

        def evaluate_and_die(place: Path = place, moment: int = moment) -> None:
            evaluate(Job(place), moment, lambda: os.kill(os.getpid(), signal.SIGKILL))

        def evaluate_the_rest(place: Path = place, begun: Path = begun) -> None:
            job = Job(place)
            with begun.open("w") as file:
                job.on_partition = lambda: print("begun", file=file)
                job.evaluate()

        statuses = [fork(evaluate_and_die)]
        done = sum(map(len, completed_partitions(metrics).values()))
        statuses.append(fork(evaluate_the_rest))
        found["killed"].append([statuses, done + len(begun.read_text().splitlines()), Job(place).found()])
        for name, fault in (("removed", remove), ("truncated", truncate)):
            place = copy(f"{name}-{moment}")

            def evaluate_through(place: Path = place, moment: int = moment, fault: Any = fault) -> None:
                evaluate(Job(place), moment, lambda: fault(place / "run/checkpoints/8"))

            found[name].append([fork(evaluate_through), Job(place).found()])
    sys.stdout.write(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    code = "import sys; from pathlib import Path; from tests.distributed.programs.test_evaluator_faults import main; "
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


def test_killed_at_any_moment_nothing_is_evaluated_twice_or_left_out(found: dict[str, Any]) -> None:
    assert [measurement[:2] for measurement in found["expected"]] == [[step, name] for step in STEPS for name in NAMES]
    assert found["killed"] == [[[-signal.SIGKILL, 0], 6, found["expected"]]] * MOMENTS, found["stderr"]


@pytest.mark.parametrize("fault", ["removed", "truncated"])
def test_a_checkpoint_that_others_change_at_any_moment_is_left_out_or_evaluated_as_it_was(
    found: dict[str, Any], fault: str
) -> None:
    without = [measurement for measurement in found["expected"] if measurement[0] != 8]
    outcomes = found[fault]
    assert [status for status, _ in outcomes] == [0] * MOMENTS, found["stderr"]
    assert outcomes[0][1] == without
    assert outcomes[-1][1] == found["expected"]
    assert all(measured in (without, found["expected"]) for _, measured in outcomes)
