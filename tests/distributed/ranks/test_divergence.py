"""Non-finite values on one rank end the run on all ranks with one message."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from common.checkpointing.directory import complete_steps
from common.distributed.world import World
from common.errors import UserError
from common.optimizers.config import LearningRate
from common.optimizers.learning_rate import ParameterGroupScheduler
from common.reader.order import Position
from core.autocast import Autocast
from core.config.training import JobConfig, TrainingConfig
from core.custom_training_loop import train
from core.loop.divergence import DivergenceReporter
from core.loop.step import TrainStep
from tests.distributed.ranks.test_sharded import batch_of, build
from tests.support.programs import TWHIN, finish_with_rank_logs
from tests.support.ranks import run_ranks
from tests.support.runs import small_twhin_run
from tests.support.spoiled_model import SpoiledModel, spoil_batch
from tests.support.toy import ToyBatch, ToyModel, rows_reader

pytestmark = pytest.mark.faults


def worker(world: World, folder: Path) -> dict[str, Any]:
    rows_reader(folder, world)
    return {"batch": dense(world, folder), **{kind: tables(world, kind) for kind in ("table", "dense")}}


def dense(world: World, folder: Path) -> str:
    """Train with bad batches on rank 1 from the fourth micro-batch on. Return the error message."""

    def spoil(model: ToyModel, batch: ToyBatch) -> None:
        if world.rank == 1:
            spoil_batch(model, batch)

    model = SpoiledModel(lambda call: call >= 4, spoil, batch_norm=True)
    training = TrainingConfig(
        save_dir=str(folder / "run"),
        num_epochs=None,
        checkpoint_every_n=2,
        train_log_every_n=7,
        max_nonfinite_steps=9,
        gradient_accumulation=2,
    )
    optimizer = torch.optim.Adam([{"params": list(model.parameters()), "name": "all"}], fused=True)
    rates = ParameterGroupScheduler(optimizer, [LearningRate(constant=0.01)])
    try:
        train(JobConfig(training=training), model, optimizer, rates, rows_reader(folder, world), {}, world)
    except UserError as error:
        return str(error)
    return "finished"


def tables(world: World, kind: str) -> list[Any]:
    """Make table rows or a dense parameter non-finite before the second of four steps.

    Returns:
      for each step, whether it was skipped and whether tables may be non-finite; then the error message.
    """
    model, optimizer, rates = build(world, "row_wise_adagrad", "row_wise")
    model.replicate()
    step = TrainStep(model, optimizer, rates, world=world, autocast=Autocast(world.device, None))
    reporter = DivergenceReporter(model, optimizer, step, world.consensus, lambda: [Path("checkpoints/1")])
    found: list[Any] = []
    share = 24 // world.size
    for number in range(1, 5):
        if number == 2 and kind == "dense":
            with torch.no_grad():
                model.module.get_parameter("between")[3] = math.inf
        if number == 2 and kind == "table":
            for local in model.tables()["user"].local_shards():
                begin = local.metadata.shard_offsets[0]
                # Row 0 is on rank 0. Row 36 is on rank 1, and no batch looks it up.
                for row in {0, 36} & set(range(begin, begin + len(local.tensor))):
                    local.tensor[row - begin, 5] = math.nan
        batch = batch_of(number, world.rank * share, (world.rank + 1) * share)
        batch.user[0] = 0
        _, skipped = step([batch], number)
        found.append((skipped.item(), step.tables_may_be_nonfinite))
    try:
        reporter.check_state(4, "batch 4")
    except UserError as error:
        found.append(str(error))
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    folder = tmp_path_factory.mktemp("nonfinite")
    rows_reader(folder)  # writes the rows
    return run_ranks(worker, folder), folder


def test_bad_batches_on_one_rank_end_all_ranks_at_the_same_step_with_the_same_message(ranks):
    found, folder = ranks
    assert found[0]["batch"] == found[1]["batch"]
    steps, batches, advice = found[0]["batch"].splitlines()
    # Step 2 trains on micro-batches 3 and 4.
    assert "in 10 steps in a row (2 to 11)" in steps
    # A batch takes 4 rows of each of 4 lanes.
    first, last = (rows_reader(folder).describe(Position(1, (4 * batch,) * 4)) for batch in (9, 10))
    for fact in ("Step 11 ", "2 micro-batches", first, last, "micro-batch 1's features[5, 2]: nan, on rank 1"):
        assert fact in batches
    for fact in (f"{folder}/run/checkpoints/10 ", "step 1."):
        assert fact in advice
    assert complete_steps(folder / "run/checkpoints") == [2, 4, 6, 8, 10], "rank 1's batch norm did not affect them"


def test_a_bad_row_of_a_table_is_reported_with_its_rank(ranks):
    for found in ranks[0]:
        *steps, message = found["table"]
        # Tables are suspected only once, because no update changes them afterwards.
        assert steps == [(0.0, False), (1.0, True), (1.0, False), (1.0, False)]
        for fact in ("after step 4 ", "(table user, row 0: nan, on rank 0)", "not saved"):
            assert fact in message
        assert "max_grad_norm" not in message


def test_finite_tables_are_not_blamed(ranks):
    for found in ranks[0]:
        *steps, message = found["dense"]
        assert steps == [(0.0, False), (1.0, True), (1.0, False), (1.0, False)]
        for fact in ("after step 4 ", "(parameter between[3]: inf)", "not saved"):
            assert fact in message


def test_a_non_finite_table_ends_the_program(twhin_data: Path, tmp_path: Path) -> None:
    """The learning rate after step 9 moves float16 tables out of their range."""
    huge = "{learning_rate_boundaries: [9], learning_rate_values: [0.1, 1.0e+30]}"
    options = [
        "model.embeddings.tables[1].data_type=fp16",
        "model.embeddings.tables[0].data_type=fp16",
        f"model.embeddings.tables[1].optimizer={{adagrad: {{}}, learning_rate: {{piecewise_constant: {huge}}}}}",
        "training.num_train_steps=30",
        "training.num_epochs=null",
    ]
    arguments = small_twhin_run(twhin_data, tmp_path / "run", *options)
    launcher, (rank_0, rank_1) = finish_with_rank_logs(arguments, tmp_path / "logs", module=TWHIN)
    assert set(re.findall(r"exitcode +: (-?\d+)", launcher.stderr)) == {"2"}, rank_0
    pattern = r"error: .*after step 11 .*\(table tweet, row \d+: (?:-?inf|nan), on rank [01]\).* not saved"
    assert len(re.findall(pattern, rank_0)) == 1, rank_0
    assert f"checkpoint before it is {tmp_path}/run/checkpoints/8. " in rank_0
    assert "Traceback" not in rank_0
    assert rank_1 == ""
    assert complete_steps(tmp_path / "run/checkpoints") == [4, 8]
