"""Early stopping, compared with a loop over plain lists."""

import itertools
import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from common.tracking.measurement import Measurement
from core.config.training import EarlyStoppingConfig
from core.run.early_stopping import EarlyStopping


def config(mode: Literal["max", "min"] = "max", patience: int = 2, min_delta: float = 0.0) -> EarlyStoppingConfig:
    return EarlyStoppingConfig(partition="v", metric="auc", mode=mode, patience=patience, min_delta=min_delta)


def evaluation(step: int, value: float | None, partition: str = "v", timed_out: bool = False) -> Measurement:
    return Measurement(step, "evaluate", partition, {"auc": value, "loss": -1.0}, {"timed_out": timed_out})


def stopped_at(stopping: EarlyStopping, measurements: Iterable[Measurement]) -> int | None:
    """Add measurements until the run is over, and return the step of the last one."""
    for measurement in measurements:
        stopping.add(measurement)
        if stopping.is_over:
            return measurement.step
    return None


def truth(values: Sequence[float | None], mode: str, patience: int, min_delta: float) -> tuple[int | None, int | None]:
    """Return the step at which a run stops, and the best step before it, from the definition."""
    best, best_step, misses = -math.inf, None, 0
    for step, value in enumerate(values, start=1):
        signed = -math.inf if value is None or not math.isfinite(value) else value if mode == "max" else -value
        if signed > best + min_delta or (best == -math.inf and signed > best):
            best, best_step, misses = signed, step, 0
        else:
            misses += 1
        if misses == patience:
            return step, best_step
    return None, best_step


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("min_delta", [0.0, 0.25])
def test_stops_at_the_step_of_the_definition(mode: Literal["max", "min"], min_delta: float) -> None:
    draw = random.Random(0)
    possible = [0.0, 0.125, 0.25, 0.5, 0.75, 1.0, None, math.nan, math.inf, -math.inf]
    stops = set()
    for patience, _ in itertools.product((1, 2, 3, 8), range(100)):
        values = draw.choices(possible, k=8)
        stopping = EarlyStopping(config(mode, patience, min_delta), {})
        at = stopped_at(stopping, (evaluation(step, value) for step, value in enumerate(values, start=1)))
        best = stopping.best([])
        assert (at, best and best.step) == truth(values, mode, patience, min_delta)
        stops.add(at)
    assert stops == {None, *range(1, 9)}


def test_other_measurements_do_not_count() -> None:
    stopping = EarlyStopping(config(patience=1), {})
    stopping.add(evaluation(1, 0.5))
    stopping.add(evaluation(2, 0.1, "other"))
    stopping.add(Measurement(2, "train", None, {"auc": 0.1}, {}))
    stopping.add(evaluation(2, 0.1, timed_out=True))
    stopping.add(evaluation(3, 0.9, timed_out=True))
    assert not stopping.is_over
    assert stopping.best_steps() == [1]
    stopping.add(Measurement(4, "evaluate", "v", {}, {}))
    assert stopping.is_over


@pytest.mark.parametrize("killed_after", range(1, 7))
@pytest.mark.parametrize("is_measured", [False, True])
def test_a_saved_state_continues_and_counts_no_evaluation_twice(killed_after: int, is_measured: bool) -> None:
    """The checkpoint is saved before the evaluation of its step, or, after a failed save, again after it."""
    evaluations = [evaluation(step, value) for step, value in enumerate([0.1, 0.5, 0.4, 0.6, 0.6, None], start=1)]
    whole = EarlyStopping(config(), {})
    assert stopped_at(whole, evaluations) == 6
    before = EarlyStopping(config(), {})
    stopped_at(before, evaluations[: killed_after - (not is_measured)])
    resumed = EarlyStopping(config(), json.loads(json.dumps(before.state())))
    assert stopped_at(resumed, evaluations[killed_after - 1 :]) == 6
    assert resumed.state() == whole.state()
    assert resumed.best_steps() == [4]


def saved(values: Sequence[float]) -> Mapping[str, Any]:
    stopping = EarlyStopping(config(), {})
    stopped_at(stopping, (evaluation(step, value) for step, value in enumerate(values, start=1)))
    return stopping.state()


def test_a_larger_patience_continues_and_another_metric_begins_again() -> None:
    state = saved([0.5, 0.4, 0.3])
    assert EarlyStopping(config(), state).is_over
    assert EarlyStopping(config(patience=1), state).is_over
    longer = EarlyStopping(config(patience=3), state)
    assert (longer.is_over, longer.best_steps(), longer.notice) == (False, [1], "")
    lowest = EarlyStopping(config("min"), state)
    assert (lowest.is_over, lowest.best_steps()) == (False, [])
    assert lowest.notice == (
        "early stopping begins to count again: it compared v, auc, max before, and v, auc, min now"
    )
    off = EarlyStopping(None, state)
    off.add(evaluation(9, 0.0))
    assert (off.is_over, off.best_steps(), off.state(), off.best([])) == (False, [], {}, None)


def test_messages_name_the_cause_and_the_best_step() -> None:
    stopping = EarlyStopping(config(), saved([0.5, 0.4, 0.3]))
    assert stopping.reason == (
        "auc on v has not improved in the last 2 evaluation(s); raise training.early_stopping.patience above 2"
    )
    checkpoints = [Path("run/checkpoints/1"), Path("run/checkpoints/11")]
    assert str(stopping.best(checkpoints)) == "step 1, auc on v 0.5 (run/checkpoints/1)"
    assert str(stopping.best(checkpoints[1:])) == "step 1, auc on v 0.5 (its checkpoint does not exist)"
