"""Two ranks evaluate together: the same number of batches, one verdict, metrics of all rows."""

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
    """Errors of a project cross the ranks, too."""


def _batches(
    world: World, count: int, bad_on: int | None = None, error: type[Exception] = BadRowError
) -> Callable[[], Iterator[ToyBatch]]:
    """The rank's half of `count` global batches."""

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
    _agree(world, consensus, found)
    model = ToyModel(batch_norm=True)
    wrapped = replicated(model, world)
    model.running_mean.fill_(world.rank)

    def evaluated(
        name: str, source: Callable[[], Iterator[ToyBatch]], *, stop: bool = False, timeout_in_s: float = 1e9
    ) -> None:
        reader: Any = ToyReader(source)
        partition = EvaluationSet(reader, lambda device: MultiTaskMetrics(["a", "b"], device))
        evaluator = Evaluator(
            {"x": partition},
            world=world,
            autocast=Autocast(world.device, None),
            num_eval_steps=4,
            timeout_in_s=timeout_in_s,
            log_every_n=1000,
        )
        recorded: list[Measurement] = []
        found[f"{name} raised"] = _outcome(lambda: evaluator.evaluate(wrapped, 3, ["x"], lambda: stop, recorded.append))
        found[name] = [(m.metrics, m.timing["timed_out"]) for m in recorded]

    evaluated("whole", _batches(world, 3))
    evaluated("bounded", _batches(world, 9))
    found["training"] = (wrapped.module.training, model.norm.training)
    found["buffers"] = model.running_mean.clone()
    evaluated("bad on 1", _batches(world, 3, bad_on=1))
    evaluated("bug on 1", _batches(world, 3, bad_on=1, error=ZeroDivisionError))
    evaluated("timed out on 1", _batches(world, 3), timeout_in_s=1e9 if world.rank == 0 else -1.0)
    evaluated("stopped on 1", _batches(world, 3), stop=world.rank == 1)
    evaluated("whole again", _batches(world, 3))

    # Metrics where one rank has no rows at all.
    metrics = MultiTaskMetrics(["a", "b"], world.device)
    if world.rank == 0:
        with torch.inference_mode():
            metrics.update(model.eval()(toy_batch(ROWS))[1])
    found["rows on 0 only"] = metrics.compute()
    return found


def _agree(world: World, consensus: RankConsensus, found: dict[str, Any]) -> None:
    flags = [(RankFlag.STOP, RankFlag.NONE), (RankFlag.BAD_DATA, RankFlag.TIME_UP), (RankFlag.NONE, RankFlag.NONE)]
    words = []
    for pair in flags:
        consensus.begin(pair[world.rank])
        words.append(consensus.result())
    consensus.begin(RankFlag.STOP if world.rank == 0 else RankFlag.NONE)
    consensus.begin(RankFlag.NONE if world.rank == 0 else RankFlag.BAD_DATA)
    words += [consensus.result(), consensus.result()]
    found["words"] = words

    def mistake(on: set[int]) -> None:
        if world.rank in on:
            raise BadRowError(f"of rank {world.rank}")

    found["no error"] = _outcome(lambda: consensus.on_all_ranks(lambda: mistake(set())))
    found["error of 1"] = _outcome(lambda: consensus.on_all_ranks(lambda: mistake({1})))
    found["errors of both"] = _outcome(lambda: consensus.on_all_ranks(lambda: mistake({0, 1})))
    found["raised together"] = _outcome(
        lambda: consensus.raise_on_all_ranks(UserError("mine") if world.rank == 1 else None)
    )
    found["from main"] = consensus.broadcast_from_rank_zero(lambda: {"rank": world.rank})
    found["error from main"] = _outcome(lambda: consensus.broadcast_from_rank_zero(lambda: mistake({world.rank})))
    # Nothing of the above has left a word or a collective behind.
    consensus.begin(RankFlag.NONE)
    words.append(consensus.result())


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_ranks(worker)


def alone(rows: list[ToyBatch]) -> dict[str, Any]:
    """What one process computes of all rows with rank 0's buffers."""
    model = ToyModel(batch_norm=True).eval()
    model.running_mean.zero_()
    metrics = MultiTaskMetrics(["a", "b"], torch.device("cpu"))
    with torch.inference_mode():
        for batch in rows:
            metrics.update(model(batch)[1])
    return metrics.compute()


@pytest.mark.parametrize(("name", "count"), [("whole", 3), ("bounded", 4), ("whole again", 3)])
def test_metrics_are_those_of_all_rows_with_the_model_of_rank_0(ranks, name, count):
    expected = alone([toy_batch(ROWS, seed=index) for index in range(count)])
    for found in ranks:
        assert found[f"{name} raised"] is None
        ((metrics, timed_out),) = found[name]
        # A prediction whose last bit differs may fall into the next bin.
        assert metrics == pytest.approx(expected, rel=1e-6, abs=1e-5)
        assert not timed_out
    assert ranks[0][name] == ranks[1][name]


def test_a_rank_without_rows_knows_the_metrics_too(ranks):
    assert ranks[0]["rows on 0 only"] == ranks[1]["rows on 0 only"]
    assert ranks[1]["rows on 0 only"] == pytest.approx(alone([toy_batch(ROWS)]), rel=1e-6, abs=1e-5)


def test_buffers_of_rank_1_follow_rank_0_and_the_mode_is_restored(ranks):
    assert [found["buffers"].tolist() for found in ranks] == [[0.0] * 5] * 2
    assert [found["training"] for found in ranks] == [(True, True)] * 2


def test_bad_data_on_one_rank_is_the_same_error_on_all(ranks):
    for found in ranks:
        assert found["bad on 1 raised"] == (BadRowError, "part-1.parquet: row 5")
        assert found["bad on 1"] == []


def test_a_bug_in_the_reader_of_one_rank_is_told_to_all(ranks):
    told = "part-1.parquet: row 5"
    main, other = (found["bug on 1 raised"] for found in ranks)
    assert other == (ZeroDivisionError, told)
    assert main == (RankFailedError, f"rank 1 failed; its output has the traceback: ZeroDivisionError: {told}")


def test_the_clock_of_one_rank_ends_the_evaluation_of_all(ranks):
    for found in ranks:
        ((metrics, timed_out),) = found["timed out on 1"]
        assert timed_out
        assert metrics["examples"] == 0


def test_a_signal_to_one_rank_stops_the_evaluation_of_all(ranks):
    for found in ranks:
        assert found["stopped on 1 raised"] == (StoppedError, "")
        assert found["stopped on 1"] == []


def test_the_control_word_joins_the_flags_of_the_ranks(ranks):
    joined = [
        RankFlag.STOP,
        RankFlag.BAD_DATA | RankFlag.TIME_UP,
        RankFlag.NONE,
        RankFlag.BAD_DATA,  # nested: the later word first
        RankFlag.STOP,
        RankFlag.NONE,
    ]
    assert [found["words"] for found in ranks] == [joined] * 2


def test_the_error_of_the_lowest_rank_is_raised_on_all(ranks):
    for found in ranks:
        assert found["no error"] is None
        assert found["error of 1"] == (BadRowError, "of rank 1")
        assert found["errors of both"] == (BadRowError, "of rank 0")
        assert found["raised together"] == (UserError, "mine")


def test_all_have_what_rank_0_reads_or_its_error(ranks):
    for found in ranks:
        assert found["from main"] == {"rank": 0}
        assert found["error from main"] == (BadRowError, "of rank 0")


def test_errors_can_be_sent():
    assert str(pickle.loads(pickle.dumps(BadRowError("x")))) == "x"
