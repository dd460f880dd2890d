from pathlib import Path

import pytest

from common.errors import UserError
from common.tracking.measurement import Measurement
from common.tracking.metrics_file import MetricsFile
from core.checkpoints.best import BestSteps


def log(
    path: Path,
    step: int,
    value: float | None,
    partition: str | None = "v",
    mode: str = "evaluate",
    timed_out: bool = False,
) -> None:
    file = MetricsFile(path)
    timing = {"timed_out": timed_out}
    file.append(Measurement(step, "train" if mode == "train" else "evaluate", partition, {"loss": value}, timing))
    file.close()


def test_the_steps_with_the_best_values_are_found(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step, value in enumerate([0.5, 0.2, 0.9, float("nan"), 0.2, None, 0.9], start=1):
        log(path, step, value)
        log(path, step, -step, "other")
        log(path, step, -step, None, "train")
    everything = range(1, 10)
    assert BestSteps([path], "v", "loss", "min", 1)(everything) == {5}, "the later of equal steps"
    assert BestSteps([path], "v", "loss", "min", 3)(everything) == {1, 2, 5}
    assert BestSteps([path], "v", "loss", "max", 1)(everything) == {7}
    assert BestSteps([path], "v", "loss", "max", 3)([1, 2, 4, 6]) == {1, 2}, "only the given steps count"
    assert BestSteps([path], "v", "auroc", "max", 3)(everything) == set()


def test_new_lines_of_either_file_are_read(tmp_path: Path) -> None:
    run, follower = tmp_path / "metrics.jsonl", tmp_path / "metrics-evaluator.jsonl"
    best = BestSteps([run, follower], "v", "loss", "max", 1)
    assert best([1, 2, 3]) == set()
    log(follower, 1, 0.1)
    assert best([1, 2, 3]) == {1}
    log(follower, 2, 0.2)
    with follower.open("a") as file:  # a line that is being written
        file.write('{"step": 3, "mode": "eval')
    assert best([1, 2, 3]) == {2}
    log(follower, 3, 0.3)
    assert best([1, 2, 3]) == {3}
    log(run, 1, 0.9)
    log(run, 3, 0.0)
    assert best([1, 2, 3]) == {1}, "the run's own measurements take precedence"
    assert best([2, 3]) == {2}


def test_an_evaluation_that_the_time_limit_has_cut_short_does_not_count(tmp_path: Path) -> None:
    run, follower = tmp_path / "metrics.jsonl", tmp_path / "metrics-evaluator.jsonl"
    best = BestSteps([run, follower], "v", "loss", "max", 1)
    log(run, 1, 0.9, timed_out=True)
    log(run, 2, 0.1)
    assert best([1, 2]) == {2}
    log(follower, 1, 0.5)
    assert best([1, 2]) == {1}, "the complete evaluation of the follower counts"


def test_a_file_that_was_truncated_or_replaced_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    best = BestSteps([path], "v", "loss", "max", 1)
    for step in (1, 2, 3):
        log(path, step, step)
    assert best([1, 2, 3]) == {3}
    MetricsFile(path, last_step=2).close()  # as a resume does
    assert best([1, 2, 3]) == {2}
    path.rename(tmp_path / "old")
    assert best([1, 2, 3]) == set()
    log(path, 1, 0.5)
    log(path, 2, 0.4)
    assert best([1, 2, 3]) == {1}
    with path.open("a") as file:
        file.write("damaged\n")
    for _ in range(2):
        with pytest.raises(UserError, match=r"metrics\.jsonl, line 3"):
            best([1])
    MetricsFile(tmp_path / "old", last_step=1).close()
    (tmp_path / "old").replace(path)
    assert best([1, 2, 3]) == {1}
