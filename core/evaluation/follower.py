"""The evaluator beside a training run: evaluates each checkpoint of a save_dir as it appears, and trains nothing.

What is done is what stands in metrics-evaluator.jsonl: a line is the mark of its partition at its step. A kill at any
moment loses at most the partition at hand, and nothing is recorded twice.
"""

import contextlib
import dataclasses
import functools
import logging
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from common.checkpointing.manifest import DamagedCheckpointError, NoCheckpointError
from common.checkpointing.reader import CheckpointReader, open_on_all_ranks
from common.distributed.consensus import RankConsensus, RankFlag
from common.distributed.world import World
from common.errors import UserError
from common.process.stop_signals import StopSignals
from common.reader.reader import BatchReader
from common.tracking.measurement import Measurement, Tracker
from common.tracking.trackers import Trackers, build_trackers
from core.autocast import configured_autocast
from core.config.training import JobConfig
from core.evaluation.checkpoint_search import CheckpointSearch, FoundCheckpoint
from core.evaluation.completed import CompletedEvaluations
from core.evaluation.evaluator import EvaluationSet, Evaluator, StoppedError
from core.evaluation.poller import Poller
from core.run.directory import EVALUATE, FollowerDirectory, check_same_run
from core.run.lost_rank import report_lost_rank
from core.run.state import SavedState, find_last_step, load_model, run_identity
from core.run.watchdog import Watchdog

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FollowerOutcome:
    """How the evaluator ended."""

    stopped_by: signal.Signals | None
    """The signal that ended it early; None: the last step was reached, or no checkpoint came in time."""
    timed_out: bool
    """No checkpoint came in time."""
    directory: FollowerDirectory


def only_evaluate(
    config: JobConfig,
    model: nn.Module,
    train_reader: BatchReader[Any],
    partitions: Mapping[str, EvaluationSet],
    world: World,
    *,
    trackers: Mapping[str, Callable[[], Tracker]] | None = None,
) -> FollowerOutcome:
    """Evaluates every checkpoint of the run in training.save_dir, in the order of their steps, until the last step's.

    It may begin before the run, beside it or after it, and waits at most training.eval_timeout_in_s for each next
    checkpoint; save_dir is the run's to make. Partitions that an earlier call has evaluated are left out, whatever it
    has measured on them. A checkpoint that has been rotated away is skipped, a damaged one is a warning. SIGTERM and
    SIGINT end it, dropping the partition at hand. Collective.

    Args:
      config: the one that the run is trained with.
      model: a core.loop.step.Model on world.device, to load weights into.
      train_reader: of the training data; nothing is read, but its length tells the last step.
      partitions: what to evaluate on, by name.
      world: this process's place and device.
      trackers: of measurements, beside metrics-evaluator.jsonl and W&B: what makes them, by name; called on rank 0.

    Raises:
      UserError: on all ranks, where save_dir or the data is not as it must be, the checkpoints are another run's, or
        none could be evaluated in time.
    """
    training = config.training
    directory = FollowerDirectory(training.save_dir)
    consensus = RankConsensus(world.timeout)
    identity = run_identity(config, train_reader)

    with contextlib.ExitStack() as stack:
        watchdog = stack.enter_context(Watchdog(world.rank, config.runtime.hang_dump_after_in_s))
        stop = stack.enter_context(StopSignals(config.runtime.grace_period_in_s, watchdog.situation))
        stack.enter_context(report_lost_rank(world, watchdog.situation, directory.checkpoints))
        train_reader.check_trainable()
        if not partitions:
            raise UserError("there is nothing to evaluate on: the configuration has no validation data")
        marks = CompletedEvaluations(directory.metrics)
        search = CheckpointSearch(directory.checkpoints)
        evaluator = Evaluator(
            partitions,
            world=world,
            autocast=configured_autocast(config.runtime, world.device),
            consensus=consensus,
            num_eval_steps=training.num_eval_steps,
            timeout_in_s=training.eval_timeout_in_s,
            log_every_n=training.eval_log_every_n,
            beat=watchdog.beat,
        )
        run_trackers: Trackers | None = None
        last_step: int | None = None
        step = 0
        has_found = False

        def look() -> tuple[FoundCheckpoint, list[str]] | None:
            """The next checkpoint, and the partitions that it was not evaluated on."""
            directory.check_held()
            found = search.find()
            if found is None:
                return None
            return found, [name for name in partitions if not marks.has(found.step, name)]

        def begin(state: SavedState) -> None:
            """With the first checkpoint: only now it is known which run this is."""
            nonlocal run_trackers
            check_same_run(directory.path, state.identity, identity, EVALUATE, config.identity_hints)
            is_main = world.is_rank_zero
            run_trackers = _build_trackers(config, directory, state.tracker_run_id) if is_main else Trackers()
            stack.callback(run_trackers.finish)
            for name, build in (trackers or {}).items() if is_main else ():
                run_trackers.add(name, build)

        def record(measurement: Measurement) -> None:
            assert run_trackers is not None
            consensus.on_rank_zero(lambda: marks.set(measurement))
            run_trackers.log(measurement)

        def evaluate(path: Path, names: list[str]) -> None:
            nonlocal last_step
            watchdog.beat(f"reading {path}")
            state = consensus.broadcast_from_rank_zero(lambda: _read_state(path))
            if run_trackers is None:
                consensus.on_all_ranks(lambda: begin(state))
            last_step = find_last_step(training, train_reader, state.progress)
            if names:
                # Held to the end, so that a checkpoint that turns out to be the best is still there.
                with open_on_all_ranks(path, consensus, world) as checkpoint:
                    consensus.on_all_ranks(lambda: load_model(model, checkpoint))
                    evaluator.evaluate(model, state.progress.step, names, lambda: stop.received is not None, record)

        def stopped() -> FollowerOutcome:
            stopped_by = next(received for received in consensus.gather(stop.received) if received is not None)
            logger.info("stopped by %s; the same command goes on", stopped_by.name)
            return FollowerOutcome(stopped_by, False, directory)

        def pause(found: str) -> FollowerOutcome | None:
            """Waits for the next look, telling what was found; how the evaluation ends, if it does."""
            watchdog.beat("waiting for a checkpoint after step", step)
            # All ranks leave together; each sleeps by itself, so that none waits long in a collective.
            consensus.begin(
                (RankFlag.STOP if stop.received is not None else RankFlag.NONE)
                | (RankFlag.TIME_UP if wait.is_over else RankFlag.NONE)
            )
            word = consensus.result()
            if RankFlag.STOP in word:
                return stopped()
            if RankFlag.TIME_UP in word:
                consensus.on_rank_zero(functools.partial(_tell_time_up, config, directory, marks, step))
                return FollowerOutcome(None, True, directory)
            wait.sleep(", ".join(filter(None, [f"a checkpoint after step {step} in {directory.checkpoints}", found])))
            return None

        wait = Poller(training.eval_timeout_in_s)
        # A path that is mistaken is left as it is.
        while not consensus.broadcast_from_rank_zero(lambda: directory.is_there):
            if (outcome := pause("which does not exist; is training.save_dir that of the run?")) is not None:
                return outcome
        if world.is_rank_zero:
            stack.callback(directory.release)
        holder = consensus.broadcast_from_rank_zero(directory.claim)
        consensus.on_all_ranks(lambda: directory.check_shared(holder))
        consensus.on_rank_zero(marks.open)
        stack.callback(marks.close)
        consensus.on_rank_zero(lambda: marks.tell(list(partitions)))

        while True:
            looked = consensus.broadcast_from_rank_zero(look)
            if looked is not None:
                found, names = looked
                is_damaged = False
                try:
                    evaluate(found.path, names)
                except StoppedError:
                    return stopped()
                except NoCheckpointError:  # another process may still see it: looked for again after a pause
                    logger.info("%s was removed before it was evaluated", found.path)
                    looked = None
                except DamagedCheckpointError as error:
                    logger.warning("step %d is not evaluated: %s", found.step, error)
                    is_damaged = True
            if looked is not None:
                step, has_found = max(step, found.step), True
                search.done(found, is_damaged=is_damaged)
                wait = Poller(training.eval_timeout_in_s)
                continue
            if last_step is not None and step >= last_step:
                logger.info(
                    "finished: %d was the last step; raise training.num_train_steps or num_epochs to go on", step
                )
                return FollowerOutcome(None, False, directory)
            if (outcome := pause("" if has_found else "where there is none yet")) is not None:
                return outcome


def _read_state(path: Path) -> SavedState:
    with CheckpointReader(path) as checkpoint:
        return SavedState.of(checkpoint)


def _tell_time_up(config: JobConfig, directory: FollowerDirectory, marks: CompletedEvaluations, step: int) -> None:
    """A warning: a trainer that died is no mistake of the evaluator's. An error where there was nothing to evaluate."""
    limit = f"training.eval_timeout_in_s ({config.training.eval_timeout_in_s:g} s)"
    if not marks.any():
        place = f"{directory.checkpoints}{'' if directory.is_there else ' (no such directory)'}"
        raise UserError(
            f"training.save_dir {directory.path}: nothing could be evaluated: no checkpoint that is complete and "
            f"undamaged came in {place} within {limit}; is the trainer running, with the same save_dir?"
        )
    logger.warning(
        "no checkpoint after step %d came in %s within %s, and it is not the last one; has the trainer died? "
        "The same command goes on",
        step,
        directory.checkpoints,
        limit,
    )


def _build_trackers(config: JobConfig, directory: FollowerDirectory, group: str | None) -> Trackers:
    """Return W&B, in the group of the trainer's run."""
    values = config.model_dump(mode="json")
    return build_trackers(directory.path, config.runtime.wandb, values, job_type="evaluate", group=group)
