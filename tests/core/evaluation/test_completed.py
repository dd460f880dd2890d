import logging
from pathlib import Path

import pytest

from common.errors import UserError
from common.tracking.measurement import Measurement
from core.evaluation.completed import CompletedEvaluations, evaluated
from tests.support.faults import full_disk


def measured(step: int, name: str) -> Measurement:
    return Measurement(step, "evaluate", name, {"rce": 1.5}, {})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics-evaluator.jsonl"


def marks_of(path: Path) -> CompletedEvaluations:
    marks = CompletedEvaluations(path)
    marks.open()
    return marks


def test_a_mark_is_a_line_that_the_next_start_finds(path: Path) -> None:
    assert evaluated(path) == {}
    marks = marks_of(path)
    assert not marks.any()
    for step, name in ((4, "first"), (4, "second"), (8, "first")):
        assert not marks.has(step, name)
        marks.set(measured(step, name))
        assert marks.has(step, name)
    marks.close()
    with path.open("a") as file:
        file.write('{"step": 8, "mode": "eva')  # killed as it wrote
    again = marks_of(path)
    assert again.any()
    assert (again.has(8, "first"), again.has(8, "second")) == (True, False)
    again.set(measured(8, "second"))
    again.close()
    assert evaluated(path) == {4: ["first", "second"], 8: ["first", "second"]}


def test_a_mark_that_cannot_be_written_is_an_error_and_leaves_nothing(path: Path) -> None:
    marks = marks_of(path)
    marks.set(measured(4, "first"))
    before = path.read_bytes()
    with (
        full_disk(len(before) + 10),
        pytest.raises(UserError, match=r"metrics-evaluator\.jsonl: can't be written: File too large; make room"),
    ):
        marks.set(measured(4, "second"))
    assert path.read_bytes() == before
    assert not marks.has(4, "second")
    marks.close()


def test_what_was_evaluated_already_is_told_with_what_to_do(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    marks = marks_of(path)
    marks.tell(["first"])
    assert not caplog.messages
    for step, name in ((4, "first"), (4, "second"), (8, "first")):
        marks.set(measured(step, name))
    marks.tell(["first", "third"])
    (message,) = caplog.messages
    assert message.startswith(f"{path} has 2 evaluation(s) of steps 4 to 8, which are not made again, ")
    assert message.endswith("move the file away to evaluate anew")
    marks.close()
