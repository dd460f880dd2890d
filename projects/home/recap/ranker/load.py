"""Opens what a program predicts with: a checkpoint, or an export."""

import os
from typing import Any, Protocol

import pyarrow as pa
import torch

from common.errors import UserError
from common.process.paths import user_path
from core.checkpoints.chosen import choose_checkpoint
from projects.home.recap.ranker.checkpoint import CheckpointRanker
from projects.home.recap.ranker.exported import ExportRanker, is_export
from projects.home.recap.saved import load_saved_ranker


class Ranker(Protocol):
    """Predicts rows in memory. Several threads may call it at the same time."""

    @property
    def columns(self) -> list[str]:
        """Names of the columns that it needs."""

    def __call__(self, columns: Any) -> pa.Table:
        """Return the predictions for columns, a row for each of their rows; see CheckpointRanker."""


def load(path: str | os.PathLike[str], *, best: bool, device: str) -> Ranker:
    """Open a checkpoint or an export; see projects.home.recap.load_ranker()."""
    chosen, on = user_path(os.fspath(path)), _device(device)
    if not is_export(chosen):
        return CheckpointRanker(load_saved_ranker(choose_checkpoint(chosen, best=best), on), on)
    if best:
        raise UserError(f"best=True: {chosen} is an export of one checkpoint. Give the save_dir of a run")
    if on.type != "cpu":
        raise UserError(f"device {device!r}: {chosen} is an export, which runs on the CPU here. Give a checkpoint")
    return ExportRanker(chosen)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        problem = str(error).partition("\n")[0]
        raise UserError(f"device {name!r}: {problem}") from error
    return device
