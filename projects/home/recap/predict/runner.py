"""Predicts files with a trained ranker: opens both, deals units to the ranks, and reports the results."""

import contextlib
import dataclasses
import datetime
import itertools
import logging
import time
from collections.abc import Callable
from typing import Any

import torch

from common.distributed.consensus import RankFlag
from common.distributed.world import World, joined_world
from common.numerics import set_deterministic, set_precision
from common.process.environment import strangers_can_join
from common.process.progress import Progress
from common.process.standard_streams import print_report
from common.tracking.metrics_file import finite_or_none
from core.run.agreement import check_agreement
from core.run.lost_rank import report_lost_rank
from projects.home.recap.predict.directory import PredictionDirectory
from projects.home.recap.predict.job import Job, open_job
from projects.home.recap.predict.options import Options
from projects.home.recap.predict.output import UnitFiles, UnitOutput
from projects.home.recap.predict.report import report
from projects.home.recap.predict.top_k_output import TopKOutput
from projects.home.recap.predict.unit_metrics import UnitMetrics

logger = logging.getLogger(__name__)

# Longest time that a rank waits for the unit of another one. A unit can be a row group of any size.
_LONGEST_UNIT = datetime.timedelta(hours=6)


def predict(options: Options) -> None:
    """Predict files, or continue to do so, and report the results. Collective.

    Raises:
      UserError: the checkpoint, the input or the directory of the results cannot be used. All ranks raise it.
    """
    # Each operation uses one thread: the bits of matrix products and sums can depend on the number of threads.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    job = open_job(options)
    runtime = job.saved.config.runtime
    set_precision(runtime.enable_tensorfloat32 and not options.float32)
    set_deterministic(runtime.deterministic)
    with contextlib.closing(PredictionDirectory(options.out)) as directory:
        best = None if job.top_k is None else TopKOutput(directory, job.top_k, job.units)
        identity = {"the program": "projects.home.recap.predict", "--out": str(directory.path)}
        group = joined_world(runtime.process_group_timeout_in_s, identity=identity if strangers_can_join() else {})
        with group as world, report_lost_rank(world, lambda: "predicting", None):
            sources = job.sources(options, world)
            check_agreement(world, lambda: [sources])
            is_complete = world.consensus.broadcast_from_rank_zero(lambda: directory.begin(sources, job.table.modified))
            world.consensus.on_all_ranks(lambda: directory.check_shared(sources))
            if is_complete:
                logger.info("the predictions in %s are complete already; nothing is computed", directory.path)
            else:
                patient = dataclasses.replace(world, timeout=_LONGEST_UNIT)
                _predict_units(job, options, directory, best, patient, threads)
                if best is not None:
                    best.merge(patient)
        # Metrics are computed in one process, so that their last bits do not depend on the number of ranks either.
        if world.is_rank_zero:
            if not is_complete:
                directory.complete(sources, _results(job, directory, best))
            print_report(report(directory))


def _predict_units(
    job: Job, options: Options, directory: PredictionDirectory, best: TopKOutput | None, world: World, threads: int
) -> None:
    """Predict the units that have no results. Collective."""
    outputs: list[UnitOutput] = [UnitFiles(directory.predictions, len(job.units))]
    if job.labels is not None:
        outputs.insert(0, UnitMetrics(directory.unfinished))
    if best is not None:
        outputs.append(best)
    pending = world.consensus.broadcast_from_rank_zero(
        lambda: [unit.index for unit in job.units if not all(output.is_finished(unit) for output in outputs)]
    )
    if finished := len(job.units) - len(pending):
        logger.info("%s of %s units are finished already", f"{finished:,}", f"{len(job.units):,}")
    if not pending:
        return
    own = [job.units[index] for index in pending[world.rank :: world.size]]
    results = job.predictor(options, world.device, threads).predict(own)
    share = "" if world.size == 1 else f" (rank 0 of {world.size})"
    num_rows = sum(unit.num_rows for unit in own)
    started = time.monotonic()
    with Progress(f"predicting{share}", num_rows) as progress:

        def next_unit() -> None:
            for result in itertools.islice(results, 1):
                for output in outputs:
                    try:
                        output.write(result)
                    except OSError as error:
                        raise directory.not_writable(error) from error
                progress.add(result.unit.num_rows)

        _in_rounds(next_unit, -(-len(pending) // world.size), world)
    seconds = time.monotonic() - started
    logger.info(
        "predicted %s rows%s in %.1f s, %s rows/s", f"{num_rows:,}", share, seconds, f"{num_rows / seconds:,.0f}"
    )


def _in_rounds(next_unit: Callable[[], None], rounds: int, world: World) -> None:
    """Call `next_unit` in at least one round, until a rank fails. Collective.

    A rank begins its next unit before it knows whether the others have finished theirs.

    Raises:
      Exception: as RankConsensus.raise_on_all_ranks().
    """
    consensus = world.consensus
    error: Exception | None = None

    def check() -> None:
        if RankFlag.BAD_DATA in consensus.result():
            consensus.raise_on_all_ranks(error)

    for index in range(rounds):
        try:
            next_unit()
        except Exception as raised:
            error = raised
        if index > 0:
            check()
        consensus.begin(RankFlag.NONE if error is None else RankFlag.BAD_DATA)
        if error is not None:
            break
    check()


def _results(job: Job, directory: PredictionDirectory, best: TopKOutput | None) -> dict[str, Any]:
    """Return what the manifest says about the results."""
    results: dict[str, Any] = {
        "rows": job.table.num_rows,
        "files": len(job.units),
        "columns": job.carried.description() + job.outputs.description(),
    }
    if best is not None:
        results["top_k"] = best.results()
    if job.labels is not None:
        metrics = job.labels.make_metrics(torch.device("cpu"))
        UnitMetrics(directory.unfinished).add_to(metrics, job.units)
        results["metrics"] = {name: finite_or_none(value) for name, value in metrics.compute().items()}
    return results
