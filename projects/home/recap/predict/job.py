"""Opens what predictions are computed from: the ranker, the input, its labels, and the columns to carry through."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from common.distributed.world import World
from common.reader.files import DataError, Files, matching_files, unique_files
from common.reader.parquet import ParquetTable
from core.autocast import Autocast, configured_autocast
from core.checkpoints.chosen import choose_checkpoint
from core.run.agreement import library_versions
from projects.home.recap.predict.columns import CarriedColumns, OutputColumns
from projects.home.recap.predict.directory import PredictionDirectory
from projects.home.recap.predict.labels import LabeledInput, find_labels
from projects.home.recap.predict.manifest import read_manifest
from projects.home.recap.predict.options import Options
from projects.home.recap.predict.predictor import UnitPredictor, check_memory
from projects.home.recap.predict.top_k import TopK
from projects.home.recap.predict.top_k_output import check_top_k, chosen_top_k
from projects.home.recap.predict.units import Unit, split_into_units
from projects.home.recap.saved import SavedRanker, load_saved_ranker

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Job:
    """Holds what predictions are computed from, the same on all ranks.

    Attributes:
      saved: the ranker, on the CPU.
      table: the input.
      units: the units of work.
      carried: the columns to carry through.
      outputs: the columns that the ranker computes.
      labels: the labels of the input; None if it has none, or without metrics.
      top_k: the best rows to select; None to select none.
    """

    saved: SavedRanker
    table: ParquetTable
    units: Sequence[Unit]
    carried: CarriedColumns
    outputs: OutputColumns
    labels: LabeledInput | None
    top_k: TopK | None

    def sources(self, options: Options, world: World) -> dict[str, dict[str, Any]]:
        """Return JSON values that results depend on, by section and key."""
        saved, runtime = self.saved, self.saved.config.runtime
        precision = runtime.amp_dtype if runtime.enable_amp and not options.float32 else "float32"
        return {
            "checkpoint": {"path": str(saved.checkpoint.absolute()), "step": saved.step, "digest": saved.digest},
            "inputs": dict(self.table.files),
            "options": {
                "columns": list(options.columns),
                "batch_size": options.batch_size,
                "rows_per_file": options.rows_per_file,
                "precision": precision,
                "tensorfloat32": runtime.enable_tensorfloat32 and not options.float32,
                "metrics": self.labels is not None,
                "device": world.device.type,
                "top_k": None if self.top_k is None else dataclasses.asdict(self.top_k),
            },
            "versions": library_versions(),
        }

    def predictor(self, options: Options, device: torch.device, threads: int) -> UnitPredictor:
        """Move the ranker to a device, and return the predictor of units. It runs `threads` batches at a time."""
        self.saved.ranker.to(device)
        runtime = self.saved.config.runtime
        autocast = Autocast(device, None) if options.float32 else configured_autocast(runtime, device)
        return UnitPredictor(
            self.saved,
            self.table,
            self.carried,
            self.outputs,
            self.labels,
            autocast=autocast,
            batch_size=options.batch_size,
            threads=threads,
        )


def open_job(options: Options) -> Job:
    """Load the ranker and open the input.

    Raises:
      UserError: one of them cannot be used.
    """
    saved = load_saved_ranker(_chosen_checkpoint(options))
    files = find_inputs(options.inputs, PredictionDirectory(options.out).path)
    table = saved.open_table(files)
    labels = find_labels(saved, table.common_names, table.num_rows) if options.metrics else None
    if labels is not None:
        table = saved.open_table(files, labels.columns, labels.encoders, labels.prepare)
    check_memory(table)
    has_score = saved.ranker.score is not None
    outputs = OutputColumns(saved.ranker.tasks, has_score=has_score)
    carried = CarriedColumns(table, options.columns, outputs, options.group_by)
    top_k = chosen_top_k(options, saved.ranker.tasks, has_score=has_score)
    if top_k is not None:
        check_top_k(top_k, carried)
    return Job(saved, table, split_into_units(table, options.rows_per_file), carried, outputs, labels, top_k)


def _chosen_checkpoint(options: Options) -> Path:
    """Return the checkpoint that the options mean, or that of the same run with which the predictions were begun.

    A run that still trains has a newer checkpoint when the same command is repeated.
    """
    chosen = choose_checkpoint(options.checkpoint, best=options.best)
    found = read_manifest(PredictionDirectory(options.out).path)
    if found is None or found["complete"] or chosen == options.checkpoint:
        return chosen
    begun = Path(found["checkpoint"]["path"])
    if begun == chosen.absolute() or begun.parent != chosen.absolute().parent or not begun.is_dir():
        return chosen
    logger.info("continuing with %s, with which the predictions in --out were begun, not with %s", begun, chosen.name)
    return begun


def find_inputs(inputs: Sequence[str], out: Path) -> Files:
    """Find the files of all inputs, each once, in the order of the inputs; those of one input are sorted by path.

    Args:
      inputs: glob patterns, files and directories.
      out: directory of the results, whose files a pattern may match. They are skipped.

    Raises:
      DataError: an input has no files.
    """
    found = [matching_files(each) for each in inputs]
    description = ", ".join(inputs)
    paths = [path for files in found for path in files.paths if out not in path.resolve().parents]
    if not paths:
        raise DataError(f"{description}: all matching files are results in --out {out}")
    return Files(tuple(unique_files(paths, description)), description)
