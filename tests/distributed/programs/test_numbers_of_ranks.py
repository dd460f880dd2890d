"""A run that resumes with other numbers of ranks restores its state and reads the same rows.

Its evaluation set has one row, so all ranks but one evaluate without rows.
"""

import contextlib
import io
import itertools
import os
import runpy
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist

from common.batch import Batch
from common.checkpointing.reader import read_state, read_tensors
from common.checkpointing.writer import write_checkpoint
from common.tracking.metrics_file import read_metrics
from core.loop.step import TrainStep
from core.run.tensors import training_tensors
from tests.support.programs import RECAP, TWHIN
from tests.support.ranks import free_port, run_ranks
from tests.support.runs import small_run, small_twhin_run

pytestmark = pytest.mark.faults

MAX_RANKS = 3


class Phase(NamedTuple):
    """One launch of the program."""

    ranks: int
    """Number of ranks."""
    steps: int
    """Last step."""
    run: str
    """Name of the save_dir."""
    port: int


# One run on 3, 2, 1, 2 and 3 ranks, and one on a single rank for comparison. An epoch has 20 batches of rows or 8 of
# edges. The first phase needs all processes, because TorchRec sets up some communication once per process.
PHASES = [(3, 4, "run"), (2, 8, "run"), (1, 12, "run"), (2, 16, "run"), (3, 24, "run"), (1, 24, "alone")]


def rows_of(batch: Any) -> list[bytes]:
    """Return bytes that identify each row of a batch."""
    if hasattr(batch, "continuous"):
        return [row.numpy().tobytes() for row in torch.cat([batch.continuous, batch.labels], dim=1)]
    return [row.numpy().tobytes() for row in torch.stack([batch.lhs, batch.rel, batch.rhs], dim=1)]


def run_phases(rank: int, root: Path, module: str, data: Path, phases: list[Phase]) -> list[dict[int, list[bytes]]]:
    """Run the real program in all phases. Save the restored state of each phase below `root`/restored.

    Returns:
      for each phase, the rows of this rank by step.
    """
    found: list[dict[int, list[bytes]]] = []

    class RecordingStep(TrainStep):
        """Saves the state before the first step and records the rows of each step."""

        def __init__(self, model: Any, optimizer: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(model, optimizer, *args, **kwargs)
            world = kwargs["world"]
            group = dist.new_group(backend="gloo") if world.size > 1 else None
            write_checkpoint(root / "restored", len(found), training_tensors(model, optimizer), {}, group)

        def __call__(self, micro_batches: Sequence[Batch], step: int) -> tuple[torch.Tensor, torch.Tensor]:
            found[-1][step] = [row for batch in micro_batches for row in rows_of(batch)]
            return super().__call__(micro_batches, step)

    arguments, source = (small_run, "inputs") if module == RECAP else (small_twhin_run, "data_root")
    for phase in phases:
        found.append({})
        if rank >= phase.ranks:
            continue
        os.environ.update(WORLD_SIZE=str(phase.ranks), MASTER_PORT=str(phase.port))
        options = ["training.num_epochs=3", "training.checkpoint_max_to_keep=9"]
        options.append(f"training.num_train_steps={phase.steps}")
        options.append(f"validation_data.validation.{source}={root}/one-row")
        with (
            mock.patch("core.loop.trainer.TrainStep", RecordingStep),
            mock.patch("sys.argv", [module, *arguments(data, root / phase.run, *options)]),
            contextlib.redirect_stdout(io.StringIO()),
            pytest.raises(SystemExit) as ended,
        ):
            runpy.run_module(module, run_name="__main__")
        assert ended.value.code == 0
    return found


@pytest.mark.parametrize("module", [RECAP, TWHIN])
def test_a_run_resumes_with_other_numbers_of_ranks(
    recap_data: Path, twhin_data: Path, tmp_path: Path, module: str
) -> None:
    phases = [Phase(*phase, free_port()) for phase in PHASES]
    data = recap_data if module == RECAP else twhin_data
    (tmp_path / "one-row").mkdir()
    rows = pq.read_table(next((data / "validation").glob("*.parquet")))
    pq.write_table(rows.slice(0, 1), tmp_path / "one-row/rows.parquet")
    ranks = run_ranks(run_phases, tmp_path, module, data, phases, world_size=MAX_RANKS, joined=False, timeout_in_s=240)

    # A resume restores the saved state bit for bit before its first step.
    for number, (before, phase) in enumerate(itertools.pairwise(phases[:5]), start=2):
        saved = read_tensors(tmp_path / "run/checkpoints" / str(before.steps))
        restored = read_tensors(tmp_path / "restored" / str(number))
        assert restored.keys() == saved.keys()
        assert any(name.startswith(("optimizer.", "table_optimizer.")) for name in saved)
        assert all(torch.equal(tensor, restored[name]) for name, tensor in saved.items()), phase

    # Each step reads the same rows as on a single rank.
    alone = ranks[0][5]
    for number, phase in enumerate(phases[:5]):
        steps = range(phases[number - 1].steps + 1 if number > 0 else 1, phase.steps + 1)
        for step in steps:
            rows = Counter(row for rank in ranks[: phase.ranks] for row in rank[number][step])
            assert rows == Counter(alone[step]), (phase, step)
            assert rows.total() == (96 if module == RECAP else 600)
    positions = [read_state(tmp_path / run / "checkpoints/24")["progress"]["position"] for run in ("run", "alone")]
    assert positions[0] == positions[1]

    evaluations = [m for m in read_metrics(tmp_path / "run/metrics.jsonl") if m.mode == "evaluate"]
    assert [(m.step, m.metrics["examples"]) for m in evaluations] == [(step, 1) for step in range(4, 25, 4)]
