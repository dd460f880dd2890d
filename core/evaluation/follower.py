"""Follows a run: evaluates each checkpoint in its save_dir as it appears, without training.

The lines of metrics-evaluator.jsonl record the completed evaluations. If the follower is killed, it loses at most the
current partition, and it never records an evaluation twice.
"""

import dataclasses
import functools
import logging
import signal
from collections.abc import Callable, Mapping
from typing import Any

from common.checkpointing.manifest import DamagedCheckpointError, NoCheckpointError
from common.checkpointing.reader import CheckpointReader, open_on_all_ranks
from common.distributed.consensus import RankFlag
from common.errors import UserError
from common.tracking.measurement import Measurement
from common.tracking.trackers import build_trackers
from core.autocast import configured_autocast
from core.evaluation.checkpoint_search import CheckpointSearch, FoundCheckpoint
from core.evaluation.completed import CompletedEvaluations
from core.evaluation.evaluator import Evaluator, StoppedError
from core.evaluation.poller import Poller
from core.evaluation.stopped_run import StoppedRun
from core.run.components import Components
from core.run.directory import FollowerDirectory, RunDirectory
from core.run.identity import ADVICE_TO_FOLLOWER, check_same_run, run_identity
from core.run.session import Session
from core.run.state import TrainingState, find_last_step
from core.run.tensors import load_averaged_model

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FollowerOutcome:
    """Describes how the follower ended."""

    stopped_by: signal.Signals | None
    """The signal that ended it early; None if it reached the last step, or no checkpoint appeared in time."""
    timed_out: bool
    """True if no checkpoint appeared in time."""
    directory: FollowerDirectory


class Follower:
    """Evaluates the checkpoints of a run in the order of their steps. All ranks make the same calls."""

    def __init__(self, components: Components, session: Session, directory: FollowerDirectory) -> None:
        """Initialize without communication.

        Args:
          components: components of the run.
          session: session that guards the follower.
          directory: directory of the run.
        """
        self._components = components
        self._consensus = components.world.consensus
        self._session = session
        self._directory = directory
        self._completed = CompletedEvaluations(directory.metrics)
        self._search = CheckpointSearch(directory.checkpoints)
        training = components.config.training
        self._stopped_run = StoppedRun(training.early_stopping, RunDirectory(training.save_dir).metrics)
        self._evaluator = Evaluator.configured(
            components.config,
            components.evaluation_sets,
            components.world,
            configured_autocast(components.config.runtime, components.world.device),
            session.watchdog.beat,
        )
        self._step = 0
        """The highest step found so far."""
        self._last_step: int | None = None
        """The run's last step; None before the first checkpoint."""
        self._early_stopping: Mapping[str, Any] = {}
        """The state of early stopping in the newest checkpoint."""
        self._has_found = False
        self._is_tracking = False
        self._restart_wait()

    def wait_for_run(self) -> FollowerOutcome | None:
        """Wait until the run has created its directory. Collective.

        The follower never creates it, because the path may be mistyped.

        Returns:
          How the follower ended, if the directory did not appear in time or a signal stopped the wait; None otherwise.
        """
        while not self._consensus.broadcast_from_rank_zero(lambda: self._directory.exists):
            outcome = self._pause("no such directory; is this the training.save_dir of the run?")
            if outcome is not None:
                return outcome
        return None

    def follow(self) -> FollowerOutcome:
        """Evaluate each checkpoint as it appears, up to that of the last step. Collective.

        Raises:
          UserError: the checkpoints belong to another run, or none could be evaluated in time.
        """
        self._session.at_end(self._completed.close)
        self._consensus.on_rank_zero(self._completed.open)
        self._consensus.on_rank_zero(lambda: self._completed.log(list(self._components.evaluation_sets)))
        while True:
            try:
                has_evaluated = self._evaluate_next()
            except StoppedError:
                return self._stopped()
            if has_evaluated:
                continue
            if self._last_step is not None and self._step >= self._last_step:
                logger.info("finished: step %d was the last step of the run", self._step)
                return FollowerOutcome(None, False, self._directory)
            if self._run_has_stopped_early():
                logger.info("finished: the run was stopped early after step %d", self._step)
                return FollowerOutcome(None, False, self._directory)
            outcome = self._pause("" if self._has_found else "none yet")
            if outcome is not None:
                return outcome

    def _evaluate_next(self) -> bool:
        """Evaluate the next checkpoint. Return whether there was one."""
        next_evaluations = self._consensus.broadcast_from_rank_zero(self._find_next)
        if next_evaluations is None:
            return False
        found, partitions = next_evaluations
        is_damaged = False
        try:
            self._evaluate(found, partitions)
        except NoCheckpointError:  # another rank may still see it, so look again after a pause
            logger.info("%s was removed before it was evaluated", found.path)
            return False
        except DamagedCheckpointError as error:
            logger.warning("step %d was not evaluated: %s", found.step, error)
            is_damaged = True
        self._step, self._has_found = max(self._step, found.step), True
        self._search.done(found, is_damaged=is_damaged)
        self._restart_wait()
        return True

    def _find_next(self) -> tuple[FoundCheckpoint, list[str]] | None:
        """Return the next checkpoint and the partitions to evaluate it on. Called on rank 0."""
        self._directory.check_held()
        found = self._search.find()
        if found is None:
            return None
        sets = self._components.evaluation_sets
        return found, [partition for partition in sets if (found.step, partition) not in self._completed]

    def _evaluate(self, found: FoundCheckpoint, partitions: list[str]) -> None:
        self._session.watchdog.beat(f"reading {found.path}")
        state, world_size = self._consensus.broadcast_from_rank_zero(lambda: self._read_state(found))
        components = self._components
        # The run may have more or fewer processes than the follower.
        reader = self._consensus.on_all_ranks(lambda: components.train_reader_on(world_size))
        as_trained = components.config.as_trained_on(world_size)
        self._begin_tracking(state, lambda: run_identity(as_trained, reader))
        self._last_step = find_last_step(components.config.training, reader, state)
        if found.step >= self._step:
            self._early_stopping = state.early_stopping
        if partitions:
            # Keep it open until the end, so that a checkpoint that turns out to be the best is not deleted.
            with open_on_all_ranks(found.path, components.world) as checkpoint:
                self._consensus.on_all_ranks(lambda: load_averaged_model(components.model, checkpoint))
                self._evaluator.evaluate(
                    components.model, state.step, partitions, lambda: self._session.is_stop_requested, self._record
                )

    def _run_has_stopped_early(self) -> bool:
        """Return whether the trainer has ended the run at the newest checkpoint. Collective."""
        return self._consensus.broadcast_from_rank_zero(
            lambda: self._stopped_run.stops_by(self._step, self._early_stopping)
        )

    def _read_state(self, found: FoundCheckpoint) -> tuple[TrainingState, int]:
        """Return the state of the run, and the number of processes that it was trained on."""
        with CheckpointReader(found.path) as checkpoint:
            world_size = checkpoint.provenance.get("world_size", self._components.world.size)
            return TrainingState.from_checkpoint(checkpoint), world_size

    def _begin_tracking(self, state: TrainingState, find_identity: Callable[[], Mapping[str, Any]]) -> None:
        """Check the run and open the trackers at the first checkpoint, which identifies the run."""
        if self._is_tracking:
            return
        config = self._components.config
        self._consensus.on_all_ranks(
            lambda: check_same_run(self._directory.path, state.identity, find_identity(), ADVICE_TO_FOLLOWER)
        )
        build = functools.partial(
            build_trackers,
            self._directory.path,
            config.runtime.wandb,
            config.model_dump(mode="json"),
            job_type="evaluate",
            group=state.tracker_run_id,
        )
        self._session.open_trackers(build, self._components.trackers)
        self._is_tracking = True

    def _record(self, measurement: Measurement) -> None:
        self._consensus.on_rank_zero(lambda: self._add(measurement))
        self._session.trackers.log(measurement)

    def _add(self, measurement: Measurement) -> None:
        """Append a measurement to the metrics file. Called on rank 0."""
        self._directory.check_not_taken()
        self._completed.add(measurement)

    def _pause(self, remark: str) -> FollowerOutcome | None:
        """Wait until the next check, and log `remark` about the directory.

        Returns:
          How the follower ended, if a signal stopped it or the wait timed out; None to check again.
        """
        self._session.watchdog.beat("waiting for a checkpoint after step", self._step)
        # All ranks leave together. Each sleeps on its own, so that none waits long in a collective.
        flags = RankFlag.STOP if self._session.is_stop_requested else RankFlag.NONE
        self._consensus.begin(flags | (RankFlag.TIME_UP if self._wait.is_over else RankFlag.NONE))
        flags = self._consensus.result()
        if RankFlag.STOP in flags:
            return self._stopped()
        if RankFlag.TIME_UP in flags:
            self._consensus.on_rank_zero(self._report_timeout)
            return FollowerOutcome(None, True, self._directory)
        awaited = f"a checkpoint after step {self._step} in {self._directory.checkpoints}"
        self._wait.sleep(f"{awaited} ({remark})" if remark else awaited)
        return None

    def _restart_wait(self) -> None:
        self._wait = Poller(self._components.config.training.eval_timeout_in_s)

    def _stopped(self) -> FollowerOutcome:
        stopped_by = self._session.agree_on_stop_signal()
        logger.info("stopped by %s; run the same command again to continue", stopped_by.name)
        return FollowerOutcome(stopped_by, False, self._directory)

    def _report_timeout(self) -> None:
        """Warn that the trainer may be dead, or raise UserError if nothing has been evaluated at all."""
        limit = f"training.eval_timeout_in_s ({self._components.config.training.eval_timeout_in_s:g} s)"
        if not self._completed:
            where = f"{self._directory.checkpoints}{'' if self._directory.exists else ' (no such directory)'}"
            raise UserError(
                f"training.save_dir {self._directory.path}: nothing could be evaluated: no complete and undamaged "
                f"checkpoint appeared in {where} within {limit}; is the trainer running, with the same save_dir?"
            )
        logger.warning(
            "no checkpoint after step %d appeared in %s within %s, and it is not the last one; has the trainer died? "
            "Run the same command again to continue",
            self._step,
            self._directory.checkpoints,
            limit,
        )
