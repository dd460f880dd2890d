"""Holds the options of the command line."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """Holds what a user asks the program to do.

    Attributes:
      checkpoint: save_dir of a run, or a checkpoint.
      best: use the best checkpoint, not the newest one.
      inputs: Parquet files: glob patterns, files or directories.
      out: directory of the results.
      columns: columns of the input to carry through.
      batch_size: rows of each forward pass.
      rows_per_file: maximum number of rows of a file of the results; a larger row group has a file of its own.
      float32: compute in float32 even if the run was trained with autocast or TF32.
      top_k: number of rows of each group to select; None selects none.
      group_by: column of the input whose values are groups; None for one group of all rows.
      rank_by: task whose calibrated probability ranks rows; None for the score, or for the only task.
      metrics: compute metrics if the input has labels.
    """

    checkpoint: Path
    best: bool
    inputs: tuple[str, ...]
    out: Path
    columns: tuple[str, ...] = ()
    batch_size: int = 1024
    rows_per_file: int = 65_536
    float32: bool = False
    top_k: int | None = None
    group_by: str | None = None
    rank_by: str | None = None
    metrics: bool = True
