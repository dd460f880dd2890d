import json
import math
from pathlib import Path

import pytest

from common.errors import UserError
from common.tracking.measurement import Measurement
from common.tracking.metrics_file import MetricsFile, MetricsTail, read_metrics
from common.tracking.trackers import build_trackers


def train(step: int, **metrics: float | None) -> Measurement:
    return Measurement(step, "train", None, metrics, {"examples_per_second": 1000.5})


def write(path: Path, *measurements: Measurement) -> None:
    file = MetricsFile(path)
    for measurement in measurements:
        file.append(measurement)
    file.close()


def test_a_measurement_is_written_at_once_as_one_line_of_json(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    file = MetricsFile(path)
    file.append(Measurement(5, "evaluate", "validation", {"auroc": 0.1 + 0.2, "n": 7}, {"complete": True, "s": 2.5}))
    assert path.read_text() == (
        '{"step": 5, "mode": "evaluate", "partition": "validation", '
        '"metrics": {"auroc": 0.30000000000000004, "n": 7}, "timing": {"complete": true, "s": 2.5}}\n'
    )
    file.close()


def test_values_that_are_not_finite_or_not_available_are_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, train(1, a=math.nan, b=math.inf, c=-math.inf, d=None, e=0.0))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    line = json.loads(path.read_text(), parse_constant=refuse)
    assert line["metrics"] == {"a": None, "b": None, "c": None, "d": None, "e": 0.0}


def test_measurements_are_read_back(tmp_path):
    written = [
        train(1, loss=1 / 3),
        Measurement(2, "evaluate", "test", {"rce": None}, {}),
        train(2, loss=1e-300),
    ]
    write(tmp_path / "metrics.jsonl", *written)
    assert read_metrics(tmp_path / "metrics.jsonl") == written


def test_a_missing_file_has_no_measurements(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("incomplete", ['{"step": 3, "mode": "tr', "\0\0\0\0", "{}"])
def test_an_incomplete_last_line_is_ignored_and_removed(tmp_path, incomplete):
    path = tmp_path / "metrics.jsonl"
    write(path, train(1), train(2))
    with path.open("a") as file:
        file.write(incomplete)
    assert read_metrics(path) == [train(1), train(2)]
    write(path, train(3))
    assert read_metrics(path) == [train(1), train(2), train(3)]


def test_a_resume_removes_the_lines_after_its_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    evaluated = Measurement(20, "evaluate", "test", {"rce": 1.5}, {})
    write(path, train(10), train(20), evaluated)
    kept = path.read_bytes()
    write(path, train(30), Measurement(40, "evaluate", "test", {}, {}))
    MetricsFile(path, last_step=20).close()
    assert path.read_bytes() == kept


def test_a_fresh_run_removes_all_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, train(10))
    MetricsFile(path, last_step=0).close()
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    "line",
    [
        "hello",
        "[1, 2]",
        '{"loss": 1}',
        '{"step": 2, "loss": 1}',
        "",
        '{"step": 2, "mode": "train", "partition": null, "metrics": null, "timing": {}}',
    ],
)
def test_a_damaged_line_is_an_error_that_names_it_and_leaves_the_file_unchanged(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    write(path, train(1))
    with path.open("a") as file:
        file.write(line + "\n")
        file.write('{"step": 3, "mode": "train", "partition": null, "metrics": {}, "timing": {}}\n')
    before = path.read_bytes()
    for use in (read_metrics, MetricsFile, lambda path: build_trackers(path.parent, None, {}, last_step=0)):
        with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: not a measurement"):
            use(path)
    assert path.read_bytes() == before


def test_a_complete_last_line_that_is_not_a_measurement_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("my own notes\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 1: not a measurement"):
        MetricsFile(path, last_step=0)
    assert path.read_text() == "my own notes\n"


def test_a_directory_at_the_path_is_an_error_that_names_it(tmp_path):
    with pytest.raises(UserError, match=r"Is a directory") as raised:
        read_metrics(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_metrics_tail_returns_each_line_once_and_reports_a_replaced_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    assert tail.read() == ([], False)
    write(path, train(1), train(2))
    assert tail.read() == (read_metrics(path), True)
    assert tail.read() == ([], False)
    write(path, train(3))
    with path.open("a") as file:
        file.write('{"step": 4, "mode": "tr')
    assert tail.read() == ([read_metrics(path)[-1]], False)
    MetricsFile(path, last_step=1).close()
    assert tail.read() == (read_metrics(path), True)
    path.unlink()
    assert tail.read() == ([], True)
