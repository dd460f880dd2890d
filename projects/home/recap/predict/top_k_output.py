"""Writes the best rows of each group: what --top_k asks for, the files of the units, and those of the merged result."""

import logging
from collections.abc import Sequence
from pathlib import Path

from common.distributed.world import World
from common.errors import UserError
from common.process.progress import Progress
from common.reader.parquet_file import read_footer
from projects.home.recap.predict.columns import SCORE, CarriedColumns, calibrated_column
from projects.home.recap.predict.directory import PredictionDirectory
from projects.home.recap.predict.options import Options
from projects.home.recap.predict.output import UnitResult, write_table
from projects.home.recap.predict.top_k import RANK, TopK, best_of_unit, check_group_by
from projects.home.recap.predict.top_k_files import count_rows, merge_partition, num_partitions, write_best
from projects.home.recap.predict.units import Unit

logger = logging.getLogger(__name__)


def chosen_top_k(options: Options, tasks: Sequence[str], *, has_score: bool) -> TopK | None:
    """Return what --top_k, --group_by and --rank_by ask for; None without --top_k.

    Raises:
      UserError: it is not clear what ranks the rows, or --rank_by names no task.
    """
    if options.top_k is None:
        return None
    if options.rank_by is not None:
        if options.rank_by not in tasks:
            raise UserError(f"--rank_by {options.rank_by}: the model has no such task. Its tasks: {', '.join(tasks)}")
        rank_by = calibrated_column(options.rank_by)
    elif has_score:
        rank_by = SCORE
    elif len(tasks) == 1:
        rank_by = calibrated_column(tasks[0])
    else:
        raise UserError(
            f"--top_k: the model has {len(tasks)} tasks, and no score weights that combine them into a score. Choose "
            f"the task that ranks rows with --rank_by. Tasks: {', '.join(tasks)}"
        )
    return TopK(options.top_k, rank_by, options.group_by)


def check_top_k(top_k: TopK, carried: CarriedColumns) -> None:
    """Check the columns that are carried through.

    Raises:
      UserError: the values of the column of groups cannot be groups, or a column has the name of the column of ranks.
    """
    if RANK in carried.names:
        raise UserError(
            f"--top_k writes a column of its own named {RANK}. Rename this column in the input, or leave it out"
        )
    if top_k.group_by is not None:
        try:
            check_group_by(carried.schema, top_k.group_by)
        except ValueError as error:
            raise UserError(f"--inputs: {error}") from error


class TopKOutput:
    """The best rows of each group: a file for each unit, then top_k/part-*.parquet. It is a UnitOutput."""

    def __init__(self, directory: PredictionDirectory, top_k: TopK, units: Sequence[Unit]) -> None:
        """Describe the output; nothing is created yet.

        Args:
          directory: where to write.
          top_k: what to select.
          units: all units, in the order of the input.
        """
        self.directory = directory.top_k
        self._top_k = top_k
        self._out = directory
        self._paths = [self._path(unit) for unit in units]

    def is_finished(self, unit: Unit) -> bool:
        """Return whether the file of a unit exists; see UnitOutput."""
        return self._path(unit).exists()

    def write(self, result: UnitResult) -> None:
        """Write the file of a unit; see UnitOutput.

        Raises:
          DataError: a value of the column of groups is a number that is not a whole one, or does not fit int64.
        """
        unit = result.unit
        location = f"{unit.path}: rows {unit.first_row} to {unit.first_row + unit.num_rows - 1} of the input"
        write_best(self._path(unit), *best_of_unit(result.table, self._top_k, location))

    def merge(self, world: World) -> None:
        """Merge the files of all units, which must be complete. Continues if it was killed. Collective.

        Raises:
          UserError: the files cannot be written.
        """
        world.consensus.on_rank_zero(self._prepare)
        partitions = num_partitions(self._paths, self._top_k)
        world.consensus.on_all_ranks(lambda: self._merge(range(world.rank, partitions, world.size), partitions))

    def results(self) -> dict[str, int]:
        """Return the numbers of rows and files of the merged result."""
        files = sorted(self.directory.glob("part-*.parquet"))
        return {"rows": sum(read_footer(path).num_rows for path in files), "files": len(files)}

    def _path(self, unit: Unit) -> Path:
        return self._out.unfinished / f"unit-{unit.index:05d}.arrow"

    def _prepare(self) -> None:
        self.directory.mkdir(exist_ok=True)
        for path in self.directory.glob(".part-*"):  # of a killed process
            path.unlink(missing_ok=True)

    def _merge(self, own: range, partitions: int) -> None:
        """Write the files of partitions that do not exist yet."""
        digits = max(5, len(str(partitions - 1)))
        paths = {each: self.directory / f"part-{each:0{digits}}.parquet" for each in own}
        missing = [each for each, path in paths.items() if not path.exists()]
        rows = sum(map(count_rows, self._paths)) // partitions
        with Progress("merging the best of", len(missing) * rows) as progress:
            for each in missing:
                table = merge_partition(self._paths, each, partitions, self._top_k)
                try:
                    write_table(paths[each], table)
                except OSError as error:
                    raise self._out.not_writable(error) from error
                progress.add(rows)
