"""Numbers that go wrong on one rank end the run on all, with one message."""

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
from core.autocast import Autocast
from core.config.training import JobConfig, TrainingConfig
from core.custom_training_loop import train
from core.loop.divergence import DivergenceReporter
from core.loop.step import TrainStep
from tests.core.loop.test_divergence import SpoiledModel, spoil_batch
from tests.distributed.ranks.test_sharded import batch_of, built
from tests.support.programs import TWHIN, finish_with_rank_logs
from tests.support.ranks import run_ranks
from tests.support.runs import small_twhin_run
from tests.support.toy import ToyBatch, ToyModel, rows_reader


def worker(world: World, folder: Path) -> dict[str, Any]:
    rows_reader(folder, world)
    return {"batch": dense(world, folder), **{kind: tables(world, kind) for kind in ("table", "dense")}}


def dense(world: World, folder: Path) -> str:
    """Rank 1 meets a bad batch from step 4 on."""

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
    """A row of a table, or a parameter beside the tables, is not finite from the second of four steps on."""
    model, optimizer, rates = built(world, "row_wise_adagrad", "row_wise")
    model.replicate()
    step = TrainStep(model, optimizer, rates, world=world, autocast=Autocast(world.device, None))
    end = DivergenceReporter(model, optimizer, step, world.consensus, lambda: [Path("checkpoints/1")])
    found: list[Any] = []
    share = 24 // world.size
    for number in range(1, 5):
        if number == 2 and kind == "dense":
            with torch.no_grad():
                model.module.get_parameter("between")[3] = math.inf
        if number == 2 and kind == "table":
            for local in model.tables()["user"].local_shards():
                begin = local.metadata.shard_offsets[0]
                # Of ranks 0 and 1; the second is looked up by no batch.
                for row in {0, 36} & set(range(begin, begin + len(local.tensor))):
                    local.tensor[row - begin, 5] = math.nan
        batch = batch_of(number, world.rank * share, (world.rank + 1) * share)
        batch.user[0] = 0
        _, skipped = step([batch], number)
        found.append((skipped.item(), step.tables_may_be_nonfinite))
    try:
        end.check_state(4, "batch 4")
    except UserError as error:
        found.append(str(error))
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    folder = tmp_path_factory.mktemp("nonfinite")
    rows_reader(folder)  # writes the rows
    return run_ranks(worker, folder), folder


def test_a_bad_batch_of_one_rank_ends_all_at_the_same_step_with_the_same_message(ranks):
    found, folder = ranks
    assert found[0]["batch"] == found[1]["batch"]
    told = found[0]["batch"].splitlines()
    # Calls 4 and 5 are of steps 2 and 3.
    assert "in 10 steps in a row (2 to 11)" in told[0]
    assert told[1] == (
        "Step 11 trained on 2 micro-batches, global batch 9 of 12 in epoch 1 (from 0), rows 33 to 36 of each of 4 "
        "lanes, to global batch 10 of 12 in epoch 1 (from 0), rows 37 to 40 of each of 4 lanes. When it is repeated, "
        "the first non-finite value is micro-batch 1's features[5, 2]: nan, on rank 1."
    )
    assert told[2].startswith(
        f"No checkpoint before it is left; {folder}/run/checkpoints/10 has the weights of step 1."
    )
    assert complete_steps(folder / "run/checkpoints") == [2, 4, 6, 8, 10], "rank 1's batch norm has not spoilt them"


def test_a_bad_row_of_a_table_is_told_with_its_rank(ranks):
    for found in ranks[0]:
        *steps, told = found["table"]
        # Tables are in doubt once: no step changes them before the next.
        assert steps == [(0.0, False), (1.0, True), (1.0, False), (1.0, False)]
        assert "after step 4 the model is non-finite (table user, row 0: nan, on rank 0). It was not saved" in told
        assert "max_grad_norm" not in told


def test_tables_that_are_finite_are_not_blamed(ranks):
    for found in ranks[0]:
        *steps, told = found["dense"]
        assert steps == [(0.0, False), (1.0, True), (1.0, False), (1.0, False)]
        assert "the model is non-finite (parameter between[3]: inf). It was not saved" in told


def test_the_program_ends_where_a_table_is_not_finite(twhin_data: Path, tmp_path: Path) -> None:
    """LearningRateSchedule beyond what float16 tables can hold, from step 9 on."""
    huge = "{learning_rate_boundaries: [9], learning_rate_values: [0.1, 1.0e+30]}"
    options = [
        "model.embeddings.tables[1].data_type=fp16",
        "model.embeddings.tables[0].data_type=fp16",
        f"model.embeddings.tables[1].optimizer={{adagrad: {{}}, learning_rate: {{piecewise_constant: {huge}}}}}",
        "training.num_train_steps=30",
        "training.num_epochs=null",
    ]
    arguments = small_twhin_run(twhin_data, tmp_path / "run", *options)
    launcher, (main, other) = finish_with_rank_logs(arguments, tmp_path / "logs", module=TWHIN)
    assert set(re.findall(r"exitcode +: (-?\d+)", launcher.stderr)) == {"2"}, main
    pattern = (
        r"error: training has diverged: after step 11 the model is non-finite \(table tweet, row \d+: (?:-?inf|nan), "
        r"on rank [01]\)\. It was not saved\.\n"
    )
    assert len(re.findall(pattern, main)) == 1, main
    assert f"The newest checkpoint before it is {tmp_path}/run/checkpoints/8. " in main
    assert "Traceback" not in main
    assert other == ""
    assert complete_steps(tmp_path / "run/checkpoints") == [4, 8]
