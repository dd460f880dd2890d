import itertools
import logging
import math
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch

import core.evaluation.evaluator
from common.distributed.consensus import RankFlag
from common.distributed.world import World
from common.errors import UserError
from common.tracking.measurement import Measurement
from core.autocast import Autocast
from core.evaluation.evaluator import Evaluator, StoppedError
from core.metrics.evaluation_set import EvaluationSet
from core.metrics.multi_task import MultiTaskMetrics
from tests.support.toy import ALONE, CPU, ToyBatch, ToyModel, ToyReader, dense, toy_batch

ROWS = 6


def evaluation_set(reader: ToyReader) -> EvaluationSet:
    untyped: Any = reader
    return EvaluationSet(untyped, lambda device: MultiTaskMetrics(["a", "b"], device))


def batches(count: int) -> EvaluationSet:
    return evaluation_set(ToyReader(lambda: (toy_batch(ROWS, seed=i) for i in range(count))))


def endless() -> EvaluationSet:
    return evaluation_set(ToyReader(lambda: (toy_batch(ROWS) for _ in itertools.count())))


def evaluator(evaluation_sets: dict[str, EvaluationSet], **options: Any) -> Evaluator:
    defaults: dict[str, Any] = {
        "world": ALONE,
        "autocast": Autocast(CPU, None),
        "num_eval_steps": -1,
        "timeout_in_s": 1e9,
        "log_every_n": 1000,
    }
    return Evaluator(evaluation_sets, **{**defaults, **options})


def evaluate(tested: Evaluator, module: ToyModel | None = None, stop: Iterable[bool] = ()) -> list[Measurement]:
    recorded: list[Measurement] = []
    answers = iter(stop)
    partitions = list(tested.evaluation_sets)
    tested.evaluate(dense(module or ToyModel()), 7, partitions, lambda: next(answers, False), recorded.append)
    return recorded


@pytest.mark.parametrize(("num_eval_steps", "read"), [(1, 1), (3, 3), (5, 5), (6, 5), (-1, 5), (-9, 5)])
def test_num_eval_steps_limits_the_batches_of_each_partition(num_eval_steps: int, read: int) -> None:
    tested = evaluator({"x": batches(5), "y": batches(9)}, num_eval_steps=num_eval_steps)
    x, y = evaluate(tested)
    assert (x.step, x.mode, x.partition) == (7, "evaluate", "x")
    assert x.metrics["examples"] == read * ROWS
    assert y.metrics["examples"] == (9 if num_eval_steps < 0 else num_eval_steps) * ROWS
    assert x.timing["timed_out"] is False, "the configuration asks for so few batches"


def test_only_the_requested_partitions_are_evaluated() -> None:
    recorded: list[Measurement] = []
    tested = evaluator({name: batches(1) for name in "xyz"})
    tested.evaluate(dense(ToyModel()), 7, ["z", "x"], lambda: False, recorded.append)
    assert [measurement.partition for measurement in recorded] == ["z", "x"]


def test_an_empty_partition_has_no_examples_and_no_loss() -> None:
    (measured,) = evaluate(evaluator({"x": batches(0)}))
    assert measured.metrics["examples"] == 0
    assert measured.metrics["mean/loss"] is None


def test_metrics_are_computed_from_the_outputs_of_the_model() -> None:
    model = ToyModel(dropout=0.5).eval()
    expected = MultiTaskMetrics(["a", "b"], CPU)
    with torch.no_grad():
        for i in range(5):
            expected.update(model(toy_batch(ROWS, seed=i))[1])
    (measured,) = evaluate(evaluator({"x": batches(5)}), ToyModel(dropout=0.5))
    assert measured.metrics == expected.compute()


class Clock:
    """Stands in for the time module. Only tests advance it."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_partitions_share_the_time_and_a_partial_evaluation_is_recorded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    monkeypatch.setattr(core.evaluation.evaluator, "time", clock)

    class SlowModel(ToyModel):
        """Takes 10 s for each batch."""

        def forward(self, batch: ToyBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            clock.now += 10
            return super().forward(batch)

    tested = evaluator({"x": batches(2), "y": endless(), "z": endless()}, timeout_in_s=45)
    caplog.set_level(logging.INFO)
    x, y, z = evaluate(tested, SlowModel())
    assert x.metrics["examples"] == 2 * ROWS
    assert x.timing == {"seconds": 20.0, "timed_out": False}
    # The flags of a batch are sent before the previous one is computed, so one more is evaluated than fits.
    assert y.metrics["examples"] == 4 * ROWS
    assert y.timing["timed_out"] is True
    assert z.metrics["examples"] == 0
    assert z.timing["timed_out"] is True
    complete, cut_short, skipped = ((record.levelname, record.getMessage()) for record in caplog.records)
    assert complete[0] == "INFO"
    assert cut_short[0] == skipped[0] == "WARNING"
    assert cut_short[1].startswith("evaluated y at step 7: 24 examples")
    assert "training.eval_timeout_in_s after 4 batches" in cut_short[1]
    assert skipped[1] == "did not evaluate z at step 7: training.eval_timeout_in_s ended before its first batch"


def test_an_endless_partition_ends_at_the_real_clock() -> None:
    (measured,) = evaluate(evaluator({"x": endless()}, timeout_in_s=0.05))
    assert measured.timing["timed_out"] is True
    examples = measured.metrics["examples"]
    assert examples is not None
    assert examples % ROWS == 0


def test_bad_data_raises_the_error_of_the_reader() -> None:
    def broken() -> Iterator[ToyBatch]:
        yield toy_batch(ROWS)
        raise UserError("part-3.parquet: row 5: not a number")

    with pytest.raises(UserError, match=r"part-3\.parquet: row 5"):
        evaluate(evaluator({"x": evaluation_set(ToyReader(broken))}))


def test_a_stop_request_drops_the_current_partition() -> None:
    recorded: list[Measurement] = []
    answers = iter([False] * 4 + [True])  # 3 batches and the end of x, then the first batch of y
    tested = evaluator({"x": batches(3), "y": batches(3)})
    with pytest.raises(StoppedError):
        tested.evaluate(dense(ToyModel()), 7, ["x", "y"], lambda: next(answers), recorded.append)
    assert [measurement.partition for measurement in recorded] == ["x"]


def test_an_exchange_in_flight_about_the_next_training_step_is_not_lost() -> None:
    world = World(0, 0, 1, CPU)
    world.consensus.begin(RankFlag.BAD_DATA)
    evaluate(evaluator({"x": batches(3)}, world=world))
    assert world.consensus.result() == RankFlag.BAD_DATA


@pytest.mark.parametrize("training", [True, False])
def test_the_model_returns_to_its_mode_even_after_an_error(training: bool) -> None:
    class WatchedModel(ToyModel):
        modes: list[bool]

        def forward(self, batch: ToyBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            self.modes.append(self.training or self.dropout.training)
            if len(self.modes) == 3:
                raise RuntimeError("the model broke")
            return super().forward(batch)

    model = WatchedModel()
    model.modes = []
    model.train(training)
    evaluate(evaluator({"x": batches(2)}), model)
    assert model.training is model.dropout.training is training
    with pytest.raises(RuntimeError, match="the model broke"):
        evaluate(evaluator({"x": batches(2)}), model)
    assert model.training is model.dropout.training is training
    assert model.modes == [False, False, False]


def test_frozen_batch_norm_stays_frozen() -> None:
    model = ToyModel(batch_norm=True)
    model.norm.eval()
    evaluate(evaluator({"x": batches(2)}), model)
    assert model.training
    assert not model.norm.training


def test_an_evaluation_changes_neither_the_model_nor_the_random_numbers_of_training() -> None:
    model = ToyModel(dropout=0.5, batch_norm=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.get_rng_state()
    evaluate(evaluator({"x": batches(3)}), model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state())
    assert not torch.is_inference_mode_enabled()


def test_forward_passes_run_under_autocast() -> None:
    exact = evaluate(evaluator({"x": batches(2)}))[0].metrics["mean/loss"]
    rounded = evaluate(evaluator({"x": batches(2)}, autocast=Autocast(CPU, torch.bfloat16)))
    loss = rounded[0].metrics["mean/loss"]
    assert exact is not None
    assert loss is not None
    assert loss != exact
    assert math.isclose(loss, exact, rel_tol=0.02)


def test_progress_is_logged_every_log_every_n_batches(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    evaluate(evaluator({"x": batches(5)}, log_every_n=2))
    assert [message for message in caplog.messages if message.startswith("evaluating")] == [
        "evaluating x at step 7: 2 batches",
        "evaluating x at step 7: 4 batches",
    ]


def test_each_batch_is_a_beat_of_the_watchdog() -> None:
    beats: list[tuple[str, int]] = []
    evaluate(evaluator({"x": batches(2)}, beat=lambda what, number: beats.append((what, number))))
    assert [number for _, number in beats] == [0, 1, 2]
    assert all("x at step 7" in what for what, _ in beats)


def test_headline_metrics_are_logged_even_if_they_are_zero_but_not_if_unavailable(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class ZeroMetrics:
        headline = ("mean/rce", "mean/auroc")

        def update(self, outputs: Any) -> None:
            pass

        def compute(self) -> dict[str, float | int | None]:
            return {"mean/rce": 0.0, "mean/auroc": None, "examples": 7}

    caplog.set_level(logging.INFO)
    evaluate(evaluator({"rows": EvaluationSet(batches(2).reader, lambda _: ZeroMetrics())}))
    (message,) = caplog.messages
    assert message.startswith("evaluated rows at step 7: 7 examples")
    assert message.endswith(", mean/rce 0")
