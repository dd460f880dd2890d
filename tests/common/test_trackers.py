import logging

import pytest

from common.measurement import Measurement
from common.metrics_file import MetricsFile, read_metrics
from common.trackers import Trackers, build_trackers


def train(step: int, **metrics: float | None) -> Measurement:
    return Measurement(step, "train", None, metrics, {"examples_per_second": 1000.5})


class Sink:
    def __init__(self, fails: type[BaseException] | None = None) -> None:
        self.fails = fails
        self.calls: list[int | str] = []

    def log(self, measurement: Measurement) -> None:
        self.calls.append(measurement.step)
        if self.fails is not None:
            raise self.fails("the disk is full")

    def finish(self) -> None:
        self.calls.append("finish")
        if self.fails is not None:
            raise self.fails("the disk is still full")


def test_a_failing_sink_is_one_warning_and_the_others_go_on(caplog):
    good, bad = Sink(), Sink(fails=OSError)
    trackers = Trackers([bad, good])
    for step in (1, 2, 3):
        trackers.log(train(step))
    assert good.calls == [1, 2, 3]
    assert bad.calls == [1]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "Sink failed at step 1" in record.message
    assert "OSError: the disk is full" in record.message


def test_every_sink_is_finished_once(caplog):
    good, bad = Sink(), Sink(fails=OSError)
    trackers = Trackers([good, bad])
    trackers.log(train(1))
    caplog.clear()
    trackers.finish()
    trackers.finish()
    trackers.log(train(2))
    assert good.calls == [1, "finish"]
    assert bad.calls == [1, "finish"]
    (record,) = caplog.records
    assert "the disk is still full" in record.message


def test_an_interrupt_is_not_swallowed():
    trackers = Trackers([Sink(fails=KeyboardInterrupt)])
    with pytest.raises(KeyboardInterrupt):
        trackers.log(train(1))


def test_a_sink_that_cannot_be_built_is_one_warning(caplog):
    trackers = Trackers()

    def build() -> Sink:
        raise ConnectionError("nobody there")

    trackers.add("TensorBoard", build)
    trackers.log(train(1))
    trackers.finish()
    (record,) = caplog.records
    assert "TensorBoard could not be set up" in record.message
    assert "ConnectionError: nobody there" in record.message


def test_no_sinks_do_nothing(caplog):
    trackers = Trackers()
    trackers.log(train(1))
    trackers.finish()
    assert trackers.run_id is None
    assert not caplog.records


def test_a_run_without_wandb_has_its_metrics_file(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for step in (1, 2):
        file.log(train(step))
    file.finish()
    trackers = build_trackers(tmp_path, None, {}, last_step=1)
    trackers.log(train(2, loss=0.5))
    trackers.finish()
    assert read_metrics(tmp_path / "metrics.jsonl") == [train(1), train(2, loss=0.5)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_directory_that_cannot_be_written_is_one_warning(tmp_path, caplog):
    in_the_way = tmp_path / "run"
    in_the_way.write_text("a file")
    trackers = build_trackers(in_the_way, None, {}, last_step=0)
    trackers.log(train(1))
    trackers.finish()
    (record,) = caplog.records
    assert "metrics file could not be set up" in record.message
