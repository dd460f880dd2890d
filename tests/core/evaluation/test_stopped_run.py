"""A follower notices that early stopping has ended its run."""

from pathlib import Path

import pytest

from common.tracking.measurement import Measurement
from common.tracking.metrics_file import MetricsFile
from core.config.training import EarlyStoppingConfig
from core.evaluation.completed import completed_partitions
from core.evaluation.stopped_run import StoppedRun
from core.run.early_stopping import EarlyStopping
from tests.support.scripted_run import PARTITIONS, ScriptedRun

CONFIG = EarlyStoppingConfig(partition="v", metric="auc", mode="max", patience=2)


def test_the_evaluations_in_the_file_decide(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    stopped_run = StoppedRun(CONFIG, path)
    trainer = EarlyStopping(CONFIG, {})
    assert not stopped_run.stops_by(2, {})
    file = MetricsFile(path)
    for step, value in [(2, 0.5), (4, 0.4)]:
        saved = trainer.state()
        for partition in ("other", "v"):
            trainer.add(measurement := Measurement(step, "evaluate", partition, {"auc": value}, {}))
            file.append(measurement)
        assert not stopped_run.stops_by(step, saved)
    file.append(Measurement(6, "evaluate", "v", {"auc": 0.3}, {}))
    assert not stopped_run.stops_by(4, saved), "the checkpoint of step 6 is not complete yet"
    assert stopped_run.stops_by(6, saved)
    assert not StoppedRun(None, path).stops_by(6, saved)
    file.close()
    MetricsFile(path, last_step=4).close()  # the trainer resumed from an earlier checkpoint
    assert not stopped_run.stops_by(6, saved)


@pytest.fixture(autouse=True)
def _short_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.evaluation.poller._POLL_IN_S", 0.01)


def test_a_follower_ends_after_the_last_checkpoint_of_a_stopped_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = ScriptedRun(tmp_path)
    run.train(patience=3)
    caplog.set_level("INFO")
    outcome = run.evaluate(patience=3)
    assert (outcome.stopped_by, outcome.timed_out) == (None, False)
    assert caplog.messages[-1] == "finished: the run was stopped early after step 10"
    metrics = run.save_dir / "metrics-evaluator.jsonl"
    assert completed_partitions(metrics) == {step: list(PARTITIONS) for step in (2, 4, 6, 8, 10)}
    assert not run.evaluate(patience=3).timed_out, "a second one finds nothing to do"
    run.train(patience=4)
    assert not run.evaluate(patience=4).timed_out
    assert list(completed_partitions(metrics)) == [2, 4, 6, 8, 10, 12]
