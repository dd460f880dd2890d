"""Two ranks evaluate together: they take the same number of batches, decide together and report metrics of all rows."""

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from common.distributed.consensus import RankConsensus, RankFlag
from common.distributed.world import World
from common.errors import RankFailedError, UserError
from common.tracking.measurement import Measurement
from core.autocast import Autocast
from core.evaluation.evaluator import Evaluator, StoppedError
from core.metrics.evaluation_set import EvaluationSet
from core.metrics.multi_task import MultiTaskMetrics
from tests.support.ranks import run_ranks
from tests.support.toy import ToyBatch, ToyModel, ToyReader, replicated, toy_batch

ROWS = 8


class BadRowError(UserError):
    """An error class of a project, which ranks exchange too."""


def _batches(
    world: World, count: int, bad_on: int | None = None, error: type[Exception] = BadRowError
) -> Callable[[], Iterator[ToyBatch]]:
    """Return a source of this rank's half of `count` global batches. The third one raises on rank `bad_on`."""

    def source() -> Iterator[ToyBatch]:
        for index in range(count):
            if bad_on == world.rank and index == 2:
                raise error(f"part-{world.rank}.parquet: row 5")
            yield toy_batch(ROWS, seed=index).parts(world.size)[world.rank]

    return source


def _outcome(act: Callable[[], Any]) -> Any:
    try:
        return act()
    except Exception as error:
        return type(error), str(error)


def worker(world: World) -> dict[str, Any]:
    found: dict[str, Any] = {}
    consensus = world.consensus
    _exchange(world, consensus, found)
    model = ToyModel(batch_norm=True)
    wrapped = replicated(model, world)
    model.running_mean.fill_(world.rank)

    def evaluate(
        name: str, source: Callable[[], Iterator[ToyBatch]], *, stop: bool = False, timeout_in_s: float = 1e9
    ) -> None:
        reader: Any = ToyReader(source)
        evaluation_set = EvaluationSet(reader, lambda device: MultiTaskMetrics(["a", "b"], device))
        evaluator = Evaluator(
            {"x": evaluation_set},
            world=world,
            autocast=Autocast(world.device, None),
            num_eval_steps=4,
            timeout_in_s=timeout_in_s,
            log_every_n=1000,
        )
        recorded: list[Measurement] = []
        found[f"{name} raised"] = _outcome(lambda: evaluator.evaluate(wrapped, 3, ["x"], lambda: stop, recorded.append))
        found[name] = [(m.metrics, m.timing["timed_out"]) for m in recorded]

    evaluate("whole", _batches(world, 3))
    evaluate("bounded", _batches(world, 9))
    found["training"] = (wrapped.module.training, model.norm.training)
    found["buffers"] = model.running_mean.clone()
    evaluate("bad on 1", _batches(world, 3, bad_on=1))
    evaluate("bug on 1", _batches(world, 3, bad_on=1, error=ZeroDivisionError))
    evaluate("timed out on 1", _batches(world, 3), timeout_in_s=1e9 if world.rank == 0 else -1.0)
    evaluate("stopped on 1", _batches(world, 3), stop=world.rank == 1)
    evaluate("whole again", _batches(world, 3))

    # Only rank 0 has rows.
    metrics = MultiTaskMetrics(["a", "b"], world.device)
    if world.rank == 0:
        with torch.inference_mode():
            metrics.update(model.eval()(toy_batch(ROWS))[1])
    found["rows on 0 only"] = metrics.compute()
    return found


def _exchange(world: World, consensus: RankConsensus, found: dict[str, Any]) -> None:
    flags = [(RankFlag.STOP, RankFlag.NONE), (RankFlag.BAD_DATA, RankFlag.TIME_UP), (RankFlag.NONE, RankFlag.NONE)]
    joined = []
    for pair in flags:
        consensus.begin(pair[world.rank])
        joined.append(consensus.result())
    consensus.begin(RankFlag.STOP if world.rank == 0 else RankFlag.NONE)
    consensus.begin(RankFlag.NONE if world.rank == 0 else RankFlag.BAD_DATA)
    joined += [consensus.result(), consensus.result()]
    found["joined flags"] = joined

    def fail(on: set[int]) -> None:
        if world.rank in on:
            raise BadRowError(f"row on rank {world.rank}")

    found["no error"] = _outcome(lambda: consensus.on_all_ranks(lambda: fail(set())))
    found["error on rank 1"] = _outcome(lambda: consensus.on_all_ranks(lambda: fail({1})))
    found["errors on both"] = _outcome(lambda: consensus.on_all_ranks(lambda: fail({0, 1})))
    found["raised on all"] = _outcome(
        lambda: consensus.raise_on_all_ranks(UserError("own") if world.rank == 1 else None)
    )
    found["from rank 0"] = consensus.broadcast_from_rank_zero(lambda: {"rank": world.rank})
    found["error from rank 0"] = _outcome(lambda: consensus.broadcast_from_rank_zero(lambda: fail({world.rank})))
    # No flags or collectives are left over.
    consensus.begin(RankFlag.NONE)
    joined.append(consensus.result())


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_ranks(worker)


def computed_by_one_process(rows: list[ToyBatch]) -> dict[str, Any]:
    """Return the metrics that one process computes from all rows with the buffers of rank 0."""
    model = ToyModel(batch_norm=True).eval()
    model.running_mean.zero_()
    metrics = MultiTaskMetrics(["a", "b"], torch.device("cpu"))
    with torch.inference_mode():
        for batch in rows:
            metrics.update(model(batch)[1])
    return metrics.compute()


@pytest.mark.parametrize(("name", "count"), [("whole", 3), ("bounded", 4), ("whole again", 3)])
def test_metrics_cover_all_rows_with_the_buffers_of_rank_0(ranks, name, count):
    expected = computed_by_one_process([toy_batch(ROWS, seed=index) for index in range(count)])
    for found in ranks:
        assert found[f"{name} raised"] is None
        ((metrics, timed_out),) = found[name]
        # A prediction that differs in its last bit can fall into the next bin.
        assert metrics == pytest.approx(expected, rel=1e-6, abs=1e-5)
        assert not timed_out
    assert ranks[0][name] == ranks[1][name]


def test_a_rank_without_rows_returns_the_metrics_too(ranks):
    assert ranks[0]["rows on 0 only"] == ranks[1]["rows on 0 only"]
    assert ranks[1]["rows on 0 only"] == pytest.approx(computed_by_one_process([toy_batch(ROWS)]), rel=1e-6, abs=1e-5)


def test_rank_1_receives_the_buffers_of_rank_0_and_training_mode_is_restored(ranks):
    assert [found["buffers"].tolist() for found in ranks] == [[0.0] * 5] * 2
    assert [found["training"] for found in ranks] == [(True, True)] * 2


def test_bad_data_on_one_rank_raises_the_same_error_on_all(ranks):
    for found in ranks:
        assert found["bad on 1 raised"] == (BadRowError, "part-1.parquet: row 5")
        assert found["bad on 1"] == []


def test_a_bug_in_the_reader_of_one_rank_is_reported_to_the_others(ranks):
    rank_0, rank_1 = (found["bug on 1 raised"] for found in ranks)
    assert rank_1 == (ZeroDivisionError, "part-1.parquet: row 5")
    error, message = rank_0
    assert error is RankFailedError
    for fact in ("rank 1", "traceback", "ZeroDivisionError: part-1.parquet: row 5"):
        assert fact in message


def test_a_time_limit_on_one_rank_ends_the_evaluation_on_all(ranks):
    for found in ranks:
        ((metrics, timed_out),) = found["timed out on 1"]
        assert timed_out
        assert metrics["examples"] == 0


def test_a_signal_to_one_rank_stops_the_evaluation_on_all(ranks):
    for found in ranks:
        assert found["stopped on 1 raised"] == (StoppedError, "")
        assert found["stopped on 1"] == []


def test_an_exchange_joins_the_flags_of_the_ranks(ranks):
    expected = [
        RankFlag.STOP,
        RankFlag.BAD_DATA | RankFlag.TIME_UP,
        RankFlag.NONE,
        RankFlag.BAD_DATA,  # nested: the inner exchange first
        RankFlag.STOP,
        RankFlag.NONE,
    ]
    assert [found["joined flags"] for found in ranks] == [expected] * 2


def test_the_error_of_the_lowest_rank_is_raised_on_all(ranks):
    for found in ranks:
        assert found["no error"] is None
        assert found["error on rank 1"] == (BadRowError, "row on rank 1")
        assert found["errors on both"] == (BadRowError, "row on rank 0")
        assert found["raised on all"] == (UserError, "own")


def test_all_ranks_receive_the_value_or_the_error_of_rank_0(ranks):
    for found in ranks:
        assert found["from rank 0"] == {"rank": 0}
        assert found["error from rank 0"] == (BadRowError, "row on rank 0")


def test_errors_can_be_pickled():
    assert str(pickle.loads(pickle.dumps(BadRowError("x")))) == "x"
