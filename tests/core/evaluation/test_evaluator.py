import itertools
import logging
import math
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch

import core.evaluation.evaluator
from common.distributed.consensus import RankConsensus, RankFlag
from common.errors import UserError
from common.tracking.measurement import Measurement
from core.autocast import Autocast
from core.evaluation.evaluator import Evaluator, StoppedError
from core.metrics.evaluation_set import EvaluationSet
from core.metrics.multi_task import MultiTaskMetrics
from tests.support.toy import ALONE, CPU, ToyBatch, ToyModel, ToyReader, toy_batch

ROWS = 6


def partition(reader: ToyReader) -> EvaluationSet:
    untyped: Any = reader
    return EvaluationSet(untyped, lambda device: MultiTaskMetrics(["a", "b"], device))


def batches(count: int) -> ToyReader:
    return ToyReader(lambda: (toy_batch(ROWS, seed=i) for i in range(count)))


def endless() -> EvaluationSet:
    return partition(ToyReader(lambda: (toy_batch(ROWS) for _ in itertools.count())))


def evaluator(partitions: dict[str, EvaluationSet], **options: Any) -> Evaluator:
    defaults: dict[str, Any] = {
        "world": ALONE,
        "autocast": Autocast(CPU, None),
        "consensus": RankConsensus(),
        "num_eval_steps": -1,
        "timeout_in_s": 1e9,
        "log_every_n": 1000,
    }
    return Evaluator(partitions, **{**defaults, **options})


def evaluate(tested: Evaluator, model: ToyModel | None = None, stop: Iterable[bool] = ()) -> list[Measurement]:
    recorded: list[Measurement] = []
    answers = iter(stop)
    names = list(tested.partitions)
    tested.evaluate(model or ToyModel(), 7, names, lambda: next(answers, False), recorded.append)
    return recorded


@pytest.mark.parametrize(("num_eval_steps", "read"), [(1, 1), (3, 3), (5, 5), (6, 5), (-1, 5), (-9, 5)])
def test_num_eval_steps_bounds_the_batches_of_each_partition(num_eval_steps, read):
    tested = evaluator({"x": partition(batches(5)), "y": partition(batches(9))}, num_eval_steps=num_eval_steps)
    x, y = evaluate(tested)
    assert (x.step, x.mode, x.partition) == (7, "evaluate", "x")
    assert x.metrics["examples"] == read * ROWS
    assert y.metrics["examples"] == (9 if num_eval_steps < 0 else num_eval_steps) * ROWS
    # Not "timed out": this is what was asked for.
    assert x.timing["timed_out"] is False


def test_an_empty_partition_is_evaluated_to_nothing():
    (measured,) = evaluate(evaluator({"x": partition(batches(0))}))
    assert measured.metrics["examples"] == 0
    assert measured.metrics["mean/loss"] is None


def test_metrics_are_those_of_the_models_outputs():
    model = ToyModel(dropout=0.5).eval()
    expected = MultiTaskMetrics(["a", "b"], CPU)
    with torch.no_grad():
        for i in range(5):
            expected.update(model(toy_batch(ROWS, seed=i))[1])
    (measured,) = evaluate(evaluator({"x": partition(batches(5))}), ToyModel(dropout=0.5))
    assert measured.metrics == expected.compute()


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_time_is_shared_by_all_partitions_and_what_was_evaluated_is_the_result(monkeypatch, caplog):
    clock = Clock()
    monkeypatch.setattr(core.evaluation.evaluator, "time", clock)

    class Slow(ToyModel):
        """Each batch takes 10 s."""

        def forward(self, batch: ToyBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            clock.now += 10
            return super().forward(batch)

    tested = evaluator({"x": partition(batches(2)), "y": endless(), "z": endless()}, timeout_in_s=45)
    caplog.set_level(logging.INFO)
    x, y, z = evaluate(tested, Slow())
    assert x.metrics["examples"] == 2 * ROWS
    assert x.timing == {"seconds": 20.0, "timed_out": False}
    # The word about a batch is sent before the batch at hand is computed: one more is read than fits in.
    assert y.metrics["examples"] == 4 * ROWS
    assert y.timing["timed_out"] is True
    assert z.metrics["examples"] == 0
    assert z.timing["timed_out"] is True
    assert "evaluated y at step 7: 24 examples" in caplog.text
    assert "stopped by eval_timeout_in_s after 4 batches" in caplog.text


def test_an_endless_partition_ends_at_the_real_clock():
    (measured,) = evaluate(evaluator({"x": endless()}, timeout_in_s=0.05))
    assert measured.timing["timed_out"] is True
    examples = measured.metrics["examples"]
    assert examples is not None
    assert examples % ROWS == 0


def test_bad_data_is_the_users_error():
    def broken() -> Iterator[ToyBatch]:
        yield toy_batch(ROWS)
        raise UserError("part-3.parquet: row 5: not a number")

    with pytest.raises(UserError, match=r"part-3\.parquet: row 5"):
        evaluate(evaluator({"x": partition(ToyReader(broken))}))


def test_a_request_to_stop_drops_the_partition_at_hand():
    recorded: list[Measurement] = []
    answers = iter([False] * 4 + [True])  # 3 batches and the end of x, then the first batch of y
    tested = evaluator({"x": partition(batches(3)), "y": partition(batches(3))})
    with pytest.raises(StoppedError):
        tested.evaluate(ToyModel(), 7, ["x", "y"], lambda: next(answers), recorded.append)
    assert [measured.partition for measured in recorded] == ["x"]


def test_a_word_under_way_about_the_next_training_step_is_not_lost():
    consensus = RankConsensus()
    consensus.begin(RankFlag.BAD_DATA)
    evaluate(evaluator({"x": partition(batches(3))}, consensus=consensus))
    assert consensus.result() == RankFlag.BAD_DATA


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_in_the_mode_it_was_in_afterwards(training):
    class Watched(ToyModel):
        modes: list[bool]

        def forward(self, batch: ToyBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            self.modes.append(self.training or self.dropout.training)
            if len(self.modes) == 3:
                raise RuntimeError("the model broke")
            return super().forward(batch)

    model = Watched()
    model.modes = []
    model.train(training)
    evaluate(evaluator({"x": partition(batches(2))}), model)
    assert model.training is model.dropout.training is training
    with pytest.raises(RuntimeError, match="the model broke"):
        evaluate(evaluator({"x": partition(batches(2))}), model)
    assert model.training is model.dropout.training is training
    assert model.modes == [False, False, False]


def test_evaluation_changes_neither_the_model_nor_what_training_draws():
    model = ToyModel(dropout=0.5, batch_norm=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.get_rng_state()
    evaluate(evaluator({"x": partition(batches(3))}), model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state())
    assert not torch.is_inference_mode_enabled()


def test_forward_passes_run_under_autocast():
    exact = evaluate(evaluator({"x": partition(batches(2))}))[0].metrics["mean/loss"]
    rounded = evaluate(evaluator({"x": partition(batches(2))}, autocast=Autocast(CPU, torch.bfloat16)))
    loss = rounded[0].metrics["mean/loss"]
    assert exact is not None
    assert loss is not None
    assert loss != exact
    assert math.isclose(loss, exact, rel_tol=0.02)


def test_progress_is_logged_every_so_many_batches(caplog):
    caplog.set_level(logging.INFO)
    evaluate(evaluator({"x": partition(batches(5))}, log_every_n=2))
    assert [m for m in caplog.messages if m.startswith("evaluating")] == [
        "evaluating x at step 7: 2 batches",
        "evaluating x at step 7: 4 batches",
    ]
