import logging
from pathlib import Path

import pytest

from common.errors import UserError
from common.tracking.measurement import Measurement
from core.evaluation.completed import CompletedEvaluations, completed_partitions
from tests.support.faults import full_disk


def measured(step: int, partition: str) -> Measurement:
    return Measurement(step, "evaluate", partition, {"rce": 1.5}, {})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics-evaluator.jsonl"


def opened(path: Path) -> CompletedEvaluations:
    completed = CompletedEvaluations(path)
    completed.open()
    return completed


def test_the_next_start_finds_the_completed_evaluations(path: Path) -> None:
    assert completed_partitions(path) == {}
    completed = opened(path)
    assert not completed
    for evaluation in ((4, "first"), (4, "second"), (8, "first")):
        assert evaluation not in completed
        completed.add(measured(*evaluation))
        assert evaluation in completed
    assert completed
    completed.close()
    with path.open("a") as file:
        file.write('{"step": 8, "mode": "eva')  # killed while it wrote
    reopened = opened(path)
    assert reopened
    assert (8, "first") in reopened
    assert (8, "second") not in reopened
    reopened.add(measured(8, "second"))
    reopened.close()
    assert completed_partitions(path) == {4: ["first", "second"], 8: ["first", "second"]}


def test_a_line_that_cannot_be_written_is_an_error_and_records_nothing(path: Path) -> None:
    completed = opened(path)
    completed.add(measured(4, "first"))
    before = path.read_bytes()
    with full_disk(len(before) + 10), pytest.raises(UserError, match=rf"^{path}: .*File too large"):
        completed.add(measured(4, "second"))
    assert path.read_bytes() == before
    assert (4, "second") not in completed
    completed.close()


def test_completed_evaluations_of_the_requested_partitions_are_logged(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    completed = opened(path)
    completed.log(["first"])
    assert not caplog.messages
    for evaluation in ((4, "first"), (4, "second"), (8, "first")):
        completed.add(measured(*evaluation))
    completed.log(["third"])
    assert not caplog.messages
    completed.log(["first", "third"])
    (message,) = caplog.messages
    assert message.startswith(f"{path} contains 2 evaluation(s) of steps 4 to 8")
    assert "move the file away" in message
    completed.close()


def test_closing_an_unopened_file_does_nothing(path: Path) -> None:
    CompletedEvaluations(path).close()
    assert not path.exists()
