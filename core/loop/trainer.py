"""Runs training from a state to the last step: steps, logs, checkpoints and evaluations, in order."""

import contextlib
import dataclasses
import functools
import logging
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.checkpointing.retention import CheckpointRetention
from common.device_copies import DeviceCopies
from common.distributed.consensus import RankFlag
from common.distributed.world import World
from common.reader.reader import PositionedBatch
from common.tracking.measurement import Measurement
from core.autocast import configured_autocast
from core.checkpoints.saver import Saver
from core.loop.divergence import DivergenceReporter
from core.loop.evaluations import TrainerEvaluations
from core.loop.feed import StepFeed
from core.loop.progress import ProgressReport
from core.loop.schedule_lengths import warn_of_cut_schedules
from core.loop.skipped_steps import SkippedStepCounter
from core.loop.step import TrainStep
from core.loop.window import Stopwatch, TrainWindow
from core.models.modes import start_training
from core.run.components import TrainingComponents
from core.run.directory import RunDirectory
from core.run.early_stopping import BestEvaluation, EarlyStopping
from core.run.nonfinite import NonfiniteStateError
from core.run.session import Session
from core.run.state import TrainingState, find_last_step

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Describes how training ended."""

    step: int
    stopped_by: signal.Signals | None
    """The signal that ended it early; None if it finished."""
    is_saved: bool
    """True if a checkpoint holds the final state. If not, the log says why."""
    checkpoint: Path | None
    """The newest checkpoint."""
    directory: RunDirectory
    best: BestEvaluation | None = None
    """The best evaluation by training.early_stopping; None without it."""

    @property
    def exit_status(self) -> int:
        """Exit status of the program: 0, including after a signal; 1 if the final state is not saved."""
        return 0 if self.is_saved else 1


class Trainer:
    """Trains a run. All ranks make the same calls."""

    def __init__(
        self,
        components: TrainingComponents,
        session: Session,
        directory: RunDirectory,
        retention: CheckpointRetention,
        state: TrainingState,
    ) -> None:
        """Initialize without communication.

        Args:
          components: components of the run. The model is replicated.
          session: session that guards the run.
          directory: directory of the run.
          retention: decides which checkpoints are kept.
          state: state from which training continues. The trainer advances it.
        """
        config, world = components.config, components.world
        self._components = components
        self._training = config.training
        self._session = session
        self._directory = directory
        self._retention = retention
        self._state = state
        self._last_step = find_last_step(config.training, components.train_reader, state)
        autocast = configured_autocast(config.runtime, world.device)
        self._train_step = TrainStep(
            components.model,
            components.optimizer,
            components.learning_rates,
            world=world,
            autocast=autocast,
            max_grad_norm=config.training.max_grad_norm,
            seed=config.runtime.seed,
        )
        if state.scaler:  # empty without float16
            self._train_step.scaler.load_state_dict(state.scaler)
        self._early_stopping = EarlyStopping(config.training.early_stopping, state.early_stopping)
        self._evaluations = TrainerEvaluations(
            components, session, directory, self._early_stopping, autocast, self._last_step
        )
        self._saver = Saver(retention, components.model, components.optimizer, world, state.step, session.trackers.sync)
        session.at_end(self._saver.close)
        retention.protect(self._early_stopping.best_steps)
        list_checkpoints = functools.partial(_list_checkpoints, self._saver, retention, world)
        self._divergence = DivergenceReporter(
            components.model, components.optimizer, self._train_step, world.consensus, list_checkpoints
        )
        self._window = TrainWindow(world, state.window)
        self._stopwatch = Stopwatch()
        self._skipped = SkippedStepCounter(
            world.device, config.training.max_nonfinite_steps, state.step, state.skipped_in_a_row
        )
        self._report = ProgressReport(world, state.step, self._last_step)
        session.at_end(self._report.close)
        self._copies = DeviceCopies(world.device)

    def fit(self) -> Outcome:
        """Train to the last step, or until early stopping or a stop signal ends the run. Collective.

        Returns:
          How training ended.

        Raises:
          UserError: the data is invalid, or training has diverged.
        """
        if not self._evaluations.catch_up(self._state.step):
            return self._finish(is_stopped=True)
        if self._is_finished:
            logger.info("finished: %s to continue", self._why_finished())
            return self._outcome(None, is_saved=True)
        warn_of_cut_schedules(self._components.config, self._last_step)
        is_stopped = False
        with self._open_feed() as feed:
            while not self._is_finished and not is_stopped:
                is_stopped = not self._advance(feed)
        return self._finish(is_stopped=is_stopped)

    @property
    def _is_finished(self) -> bool:
        """True if the run has no further step."""
        return self._state.step == self._last_step or self._early_stopping.is_over

    def _advance(self, feed: StepFeed) -> bool:
        """Train one step, then do everything that is due after it. Return False if a rank was asked to stop."""
        self._session.watchdog.beat("step", self._state.step + 1)
        micro_batches = feed.next()
        if micro_batches is None:
            return False
        self._step(micro_batches)
        step = self._state.step
        is_last = step == self._last_step
        if step % self._training.train_log_every_n == 0 or is_last:
            self._log()
        self._abort_if_diverged(micro_batches)
        if self._retention.is_due(step) or is_last:
            with self._stopwatch.pause():
                self._save()
        if self._evaluations.is_due(step):
            with self._stopwatch.pause():
                return self._evaluations.evaluate(step)
        return True

    def _step(self, micro_batches: Sequence[PositionedBatch[Any]]) -> None:
        """Train one step, and count it."""
        batches = [self._copies.copy(item.batch) for item in micro_batches]
        loss, skipped = self._train_step(batches, self._state.step + 1)
        self._state.step += 1
        self._state.position = micro_batches[-1].position
        self._window.add(loss, skipped)
        self._skipped.add(skipped)
        self._stopwatch.stepped()
        self._report.step()

    def _log(self) -> None:
        """Log the metrics of the steps since the last log."""
        step, components = self._state.step, self._components
        rates = {f"learning_rate/{name}": rate for name, rate in components.learning_rates.at(step).items()}
        extra = components.extra_metrics() if components.extra_metrics is not None else {}
        metrics = self._window.compute_and_reset()
        metrics |= rates
        if taken := sorted(metrics.keys() & extra.keys()):
            raise ValueError(f"extra_metrics() returned {', '.join(taken)}, which are names of other train metrics")
        metrics |= extra
        examples_per_step = components.train_reader.global_batch_size * self._training.num_micro_batches
        measurement = Measurement(step, "train", None, metrics, self._stopwatch.timing(examples_per_step))
        self._report.logged(measurement)
        self._session.trackers.log(measurement)
        self._stopwatch.restart()
        self._skipped.settle()

    def _abort_if_diverged(self, micro_batches: Sequence[PositionedBatch[Any]]) -> None:
        """Raise UserError if tables are non-finite, or too many updates in a row were skipped."""
        step, reader = self._state.step, self._components.train_reader
        if self._train_step.tables_may_be_nonfinite:
            self._divergence.check_state(step, reader.describe(self._state.position))
        if self._skipped.too_many is not None:
            batches = [self._copies.copy(item.batch) for item in micro_batches]
            described = [reader.describe(item.position) for item in micro_batches]
            self._divergence.raise_too_many(self._skipped, step, batches, described)

    def _save(self) -> None:
        """Start to save the state, after checking that this run still holds save_dir.

        Raises:
          UserError: the last save found that training had diverged.
        """
        self._session.watchdog.beat("checkpoint of step", self._state.step)
        self._components.world.consensus.on_rank_zero(self._directory.check_held)
        described = self._components.train_reader.describe(self._state.position)
        self._state.window = self._window.snapshot()
        self._state.skipped_in_a_row = self._skipped.settle()
        self._state.scaler = self._train_step.scaler.state_dict()
        average = self._components.model.average
        self._state.averaged_updates = average.num_updates if average is not None else 0
        self._state.early_stopping = self._early_stopping.state()
        with self._divergence.report():
            self._saver.save(self._state, described)

    @contextlib.contextmanager
    def _open_feed(self) -> Iterator[StepFeed]:
        """Start reading, and hand out the batches of all remaining steps."""
        components, world, training = self._components, self._components.world, self._training
        logger.info(
            "training %s parameters on %s, %d process(es), steps %d to %d (limited by %s)",
            f"{components.model.num_parameters:,}",
            world.device.type,
            world.size,
            self._state.step + 1,
            self._last_step,
            self._limit_name,
        )
        batches = components.train_reader.train(
            seed=components.config.runtime.seed,
            position=self._state.position,
            num_epochs=training.num_epochs,
            pin_memory=world.device.type == "cuda",
        )
        with contextlib.closing(batches):
            start_training(components.model.module)
            yield StepFeed(
                batches,
                world.consensus,
                self._stopwatch,
                own_flags=self._own_flags,
                on_flags=self._count_skipped_steps,
                num_micro_batches=training.num_micro_batches,
                num_steps=self._last_step - self._state.step,
                prefetch_batches=components.train_reader.prefetch_batches,
            )

    def _own_flags(self) -> RankFlag:
        flags = RankFlag.STOP if self._session.is_stop_requested else RankFlag.NONE
        return flags | (RankFlag.NONFINITE if self._skipped.poll() else RankFlag.NONE)

    def _count_skipped_steps(self, flags: RankFlag) -> None:
        """Count up to the same step on all ranks if a rank knows of too many skipped updates."""
        if RankFlag.NONFINITE in flags:
            self._skipped.settle()

    def _finish(self, *, is_stopped: bool) -> Outcome:
        """Save the final state of a stopped run, wait for the last save, and rotate once more."""
        step = self._state.step
        self._session.watchdog.beat("finishing after step", step)
        stopped_by = None
        if is_stopped:
            stopped_by = self._session.agree_on_stop_signal()
            self._save()
        with self._divergence.report():
            is_saved = self._saver.wait()
        if is_saved:  # the last evaluation may have changed which checkpoints are the best
            self._components.world.consensus.on_rank_zero(lambda: self._retention.rotate(step))
        if stopped_by is not None:
            logger.info("stopped by %s after step %d; %s", stopped_by.name, step, self._session.how_to_continue)
        elif self._early_stopping.is_over:
            logger.info("%s to continue", self._why_finished())
        return self._outcome(stopped_by, is_saved=is_saved)

    def _outcome(self, stopped_by: signal.Signals | None, *, is_saved: bool) -> Outcome:
        """Describe how training ended, and log the best evaluation."""
        checkpoints = self._retention.complete()
        best = self._early_stopping.best(checkpoints)
        if best is not None:
            logger.info("the best evaluation is that of %s", best)
        latest = checkpoints[-1] if checkpoints else None
        return Outcome(self._state.step, stopped_by, is_saved, latest, self._directory, best)

    def _why_finished(self) -> str:
        """Return a clause that says why the run ended, and what the user can raise."""
        if self._early_stopping.is_over:
            return f"stopped early after step {self._state.step}: {self._early_stopping.reason}"
        return f"all {self._last_step} steps are done; raise training.{self._limit_name}"

    @property
    def _limit_name(self) -> str:
        """Name of the limit that determines the last step."""
        return "num_train_steps" if self._last_step >= self._training.num_train_steps else "num_epochs"


def _list_checkpoints(saver: Saver, retention: CheckpointRetention, world: World) -> list[Path]:
    """Wait for the save in progress, and return the complete checkpoints. Collective."""
    with contextlib.suppress(NonfiniteStateError):
        saver.wait()
    return world.consensus.broadcast_from_rank_zero(retention.complete)
