"""Predicts files with a trained ranker: opens both, deals units to the ranks, and reports what was made."""

import dataclasses
import datetime
import itertools
import logging
from collections.abc import Sequence
from typing import Any

from common.distributed.consensus import RankConsensus, RankFlag
from common.distributed.world import World, joined_world
from common.numerics import set_deterministic, set_precision
from common.process.environment import strangers_can_join
from common.process.progress import Progress
from common.process.standard_streams import print_report
from common.reader.files import Files, matching_files, unique_files
from core.autocast import Autocast, configured_autocast
from core.checkpoints.chosen import choose_checkpoint
from core.config.training import RuntimeConfig
from core.run.agreement import check_agreement, library_versions
from projects.home.recap.predict.columns import CarriedColumns, OutputColumns
from projects.home.recap.predict.directory import PredictionDirectory
from projects.home.recap.predict.options import Options
from projects.home.recap.predict.output import UnitFiles, UnitOutput
from projects.home.recap.predict.predictor import UnitPredictor
from projects.home.recap.predict.top_k_output import TopKOutput, check_top_k, chosen_top_k
from projects.home.recap.predict.units import Unit, split_into_units
from projects.home.recap.saved import load_saved_ranker

logger = logging.getLogger(__name__)

# Longest time that a rank waits for the unit of another one. A unit can be a row group of any size.
_LONGEST_UNIT = datetime.timedelta(hours=6)


def predict(options: Options) -> None:
    """Predict files, or continue to do so, and report what was made. Collective.

    Raises:
      UserError: the checkpoint, the input or the directory of the results cannot be used. All ranks raise it.
    """
    saved = load_saved_ranker(choose_checkpoint(options.checkpoint, best=options.best))
    table = saved.open_table(find_inputs(options.inputs))
    outputs = OutputColumns(saved.ranker.tasks, has_score=saved.ranker.score is not None)
    carried = CarriedColumns(table, options.columns, outputs, options.group_by)
    top_k = chosen_top_k(options, saved.ranker.tasks, has_score=saved.ranker.score is not None)
    if top_k is not None:
        check_top_k(top_k, carried)
    units = split_into_units(table, options.rows_per_file)
    directory = PredictionDirectory(options.out)
    runtime = saved.config.runtime
    set_precision(runtime.enable_tensorfloat32 and not options.float32)
    set_deterministic(runtime.deterministic)
    identity = {"the program": "projects.home.recap.predict", "--out": str(directory.path)}
    with joined_world(runtime.process_group_timeout_in_s, identity=identity if strangers_can_join() else {}) as world:
        sources: dict[str, dict[str, Any]] = {
            "checkpoint": {"path": str(saved.checkpoint), "step": saved.step, "digest": saved.digest},
            "inputs": dict(table.files),
            "options": {
                "columns": list(options.columns),
                "batch_size": options.batch_size,
                "rows_per_file": options.rows_per_file,
                "precision": "float32" if options.float32 else "as trained",
                "device": world.device.type,
                "top_k": None if top_k is None else dataclasses.asdict(top_k),
            },
        }
        check_agreement(world, lambda: [sources, library_versions()])
        if not world.consensus.broadcast_from_rank_zero(lambda: directory.begin(sources)):
            world.consensus.on_all_ranks(lambda: directory.check_shared(sources))
            saved.ranker.to(world.device)
            predictor = UnitPredictor(
                saved,
                table,
                carried,
                outputs,
                device=world.device,
                autocast=_autocast(runtime, options, world),
                batch_size=options.batch_size,
            )
            files = UnitFiles(directory.predictions, len(units))
            best = None if top_k is None else TopKOutput(directory, top_k, units)
            _predict_units(predictor, units, [files] if best is None else [files, best], directory, world)
            results: dict[str, Any] = {"rows": table.num_rows, "files": len(units)}
            if best is not None:
                best.merge(RankConsensus(world.rank, world.size, _LONGEST_UNIT), world.rank, world.size)
                results["top_k"] = world.consensus.broadcast_from_rank_zero(best.results)
            world.consensus.on_rank_zero(lambda: directory.complete(sources, results))
        if world.is_rank_zero:
            print_report(f"\npredictions    {directory.predictions}\n")
            if top_k is not None:
                print_report(f"top {top_k.k:<10} {directory.top_k}\n")


def find_inputs(inputs: Sequence[str]) -> Files:
    """Find the files of all inputs, each once, in the order of the inputs; those of one input are sorted by path.

    Raises:
      DataError: an input has no files.
    """
    found = [matching_files(each) for each in inputs]
    description = ", ".join(inputs)
    return Files(tuple(unique_files([path for files in found for path in files.paths], description)), description)


def _autocast(runtime: RuntimeConfig, options: Options, world: World) -> Autocast:
    return Autocast(world.device, None) if options.float32 else configured_autocast(runtime, world.device)


def _predict_units(
    predictor: UnitPredictor,
    units: Sequence[Unit],
    outputs: Sequence[UnitOutput],
    directory: PredictionDirectory,
    world: World,
) -> None:
    """Predict the units that have no results, in rounds of one unit per rank. Collective.

    A rank begins its next unit before it knows whether the others have finished theirs.
    """
    pending = world.consensus.broadcast_from_rank_zero(
        lambda: [unit.index for unit in units if not all(output.is_finished(unit) for output in outputs)]
    )
    own = [units[index] for index in pending[world.rank :: world.size]]
    consensus = RankConsensus(world.rank, world.size, _LONGEST_UNIT)
    predictions = predictor.predict(own)
    error: Exception | None = None
    with Progress("predicting", sum(unit.num_rows for unit in own)) as progress:
        for index in range(0, len(pending), world.size):
            try:
                for unit, table in itertools.islice(predictions, 1):
                    for output in outputs:
                        output.write(unit, table)
                    progress.add(unit.num_rows)
            except OSError as raised:
                error = directory.not_writable(raised)
            except Exception as raised:
                error = raised
            if index > 0:
                _check(consensus, error)
            consensus.begin(RankFlag.NONE if error is None else RankFlag.BAD_DATA)
            if error is not None:
                break
        if pending:
            _check(consensus, error)


def _check(consensus: RankConsensus, error: Exception | None) -> None:
    """Raise the error of the lowest rank that has one, on all ranks. Collective."""
    if RankFlag.BAD_DATA in consensus.result():
        consensus.raise_on_all_ranks(error)
