"""The training loop: trains a model, logs, saves, evaluates, and goes on where an earlier run of it stopped.

How a step is made is in train_step.py, how an evaluation in evaluation.py, what a resume needs in training_state.py.
"""

import contextlib
import dataclasses
import logging
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.checkpointing.directory import find_checkpoints
from common.checkpointing.reader import CheckpointReader, open_on_all_ranks
from common.checkpointing.retention import CheckpointRetention
from common.device_copies import DeviceCopies
from common.distributed.consensus import RankConsensus
from common.distributed.world import World
from common.optimizers.learning_rate import LearningRateSchedule
from common.process.paths import user_path
from common.process.stop_signals import StopSignals
from common.reader.reader import BatchReader
from common.tracking.measurement import Measurement, Tracker
from common.tracking.metrics_file import read_metrics
from common.tracking.trackers import Trackers, build_trackers
from core.autocast import configured_autocast
from core.checkpoints.best import best_checkpoints
from core.checkpoints.saver import Saver, environment
from core.config.training import JobConfig
from core.evaluation.evaluator import EvaluationSet, Evaluator, StoppedError
from core.loop.divergence import DivergenceReporter
from core.loop.feed import StepFeed
from core.loop.progress import ProgressReport
from core.loop.skipped_steps import SkippedStepCounter
from core.loop.step import TrainStep
from core.loop.window import Stopwatch, TrainWindow
from core.models.dense import num_parameters, parallelize
from core.run.directory import RunDirectory, check_same_run
from core.run.lost_rank import report_lost_rank
from core.run.state import Progress, SavedState, find_last_step, load_model, load_optimizer, run_identity
from core.run.watchdog import Watchdog

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How training ended."""

    step: int
    stopped_by: signal.Signals | None
    """The signal that ended it early; None: it is finished."""
    is_saved: bool
    """Whether the state at the end is in a checkpoint; else the log says why not."""
    checkpoint: Path | None
    """The newest checkpoint."""
    directory: RunDirectory

    @property
    def exit_status(self) -> int:
        """Of the program: 0, also where a signal ended it; 1 where the end is not saved."""
        return 0 if self.is_saved else 1


def train(
    config: JobConfig,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    learning_rates: LearningRateSchedule,
    train_reader: BatchReader[Any],
    partitions: Mapping[str, EvaluationSet],
    world: World,
    *,
    trackers: Mapping[str, Callable[[], Tracker]] | None = None,
    start: Callable[[], None] | None = None,
    extra_metrics: Callable[[], Mapping[str, float]] | None = None,
    overwrite_save_dir: bool = False,
) -> Outcome:
    """Trains until training.num_train_steps or training.num_epochs, whichever comes first. Collective.

    The same call again continues after the newest checkpoint in training.save_dir, or finds that nothing is left to do.
    SIGTERM and SIGINT end training after the step at hand, with a checkpoint; a second one ends the process at once, as
    does the end of runtime.grace_period_in_s.

    Args:
      config: runtime, training, and what makes this run the run it is.
      model: a core.loop.step.Model with its initial weights, on world.device; equal on all ranks.
      optimizer: of the model's parameters.
      learning_rates: of the optimizer's parameter groups.
      train_reader: this rank's share of the training data.
      partitions: what to evaluate on, by name.
      world: this process's place and device.
      trackers: of measurements, beside metrics.jsonl and W&B: what makes them, by name; called on rank 0.
      start: puts into the model what a new run starts from; a resume, and a warm start, leave it out.
      extra_metrics: further train metrics, by name, read when metrics are logged; collective.
      overwrite_save_dir: start anew, deleting the run in save_dir.

    Raises:
      UserError: on all ranks, where save_dir, data or an initial checkpoint is not as it must be, or numbers went
        wrong.
      LostRankError: another rank has died or doesn't answer.
    """
    training, runtime = config.training, config.runtime
    directory = RunDirectory(training.save_dir)
    policy = CheckpointRetention(
        directory.checkpoints,
        training.checkpoint_every_n,
        training.checkpoint_max_to_keep,
        training.checkpoint_keep_every_n,
        best_checkpoints(
            training.checkpoint_keep_best,
            training.save_dir,
            partitions,
            lambda name: partitions[name].make_metrics(world.device).compute(),
        ),
    )
    consensus = RankConsensus(world.timeout)
    identity = run_identity(config, train_reader)

    with contextlib.ExitStack() as stack:
        watchdog = stack.enter_context(Watchdog(world.rank, runtime.hang_dump_after_in_s))
        stop = stack.enter_context(StopSignals(runtime.grace_period_in_s, watchdog.situation))
        stack.enter_context(report_lost_rank(world, watchdog.situation, directory.checkpoints))
        train_reader.check_trainable()

        # Where does it begin?
        if world.is_rank_zero:
            stack.callback(directory.release)
        holder = consensus.broadcast_from_rank_zero(directory.claim)
        consensus.on_all_ranks(lambda: directory.check_shared(holder))
        newest = None if overwrite_save_dir else policy.open_newest(consensus, world)
        initial: CheckpointReader | None = None
        if newest is None and training.initial_checkpoint_dir is not None:
            given = user_path(training.initial_checkpoint_dir)
            initial = open_on_all_ranks(
                consensus.broadcast_from_rank_zero(lambda: find_checkpoints(given)[-1]), consensus, world
            )
        saved: SavedState | None = None

        def load() -> None:
            nonlocal saved
            if newest is not None:
                saved = SavedState.of(newest)
                check_same_run(directory.path, saved.identity, identity, hints=config.identity_hints)
                _restore(newest, saved.progress, model, optimizer, world)
            elif initial is not None:
                load_model(model, initial)
                logger.info("warm start: weights from %s", initial.path)
            elif start is not None:
                start()

        with newest or initial or contextlib.nullcontext():
            consensus.on_all_ranks(load)
        progress = saved.progress if saved is not None else Progress.start(train_reader.lanes)
        # Nothing was changed or deleted so far.
        resolved, goes_on = config.pretty_print(), saved is not None
        consensus.on_rank_zero(lambda: directory.begin(resolved, continues=goes_on, overwrite=overwrite_save_dir))
        last_step = find_last_step(training, train_reader, progress)

        # What it takes.
        autocast = configured_autocast(runtime, world.device)
        wrapped = parallelize(model, world, deterministic=runtime.deterministic)
        train_step = TrainStep(
            wrapped,
            optimizer,
            learning_rates,
            world=world,
            autocast=autocast,
            max_grad_norm=training.max_grad_norm,
            seed=runtime.seed,
        )
        if saved is not None and saved.scaler:  # empty without float16
            train_step.scaler.load_state_dict(saved.scaler)
        evaluator = Evaluator(
            partitions,
            world=world,
            autocast=autocast,
            consensus=consensus,
            num_eval_steps=training.num_eval_steps,
            timeout_in_s=training.eval_timeout_in_s,
            log_every_n=training.eval_log_every_n,
            beat=watchdog.beat,
        )
        run_trackers = Trackers()  # rank 0 alone has run_trackers

        def add_trackers() -> None:
            nonlocal run_trackers
            run_id = saved.tracker_run_id if saved is not None else None
            values = config.model_dump(mode="json")
            run_trackers = build_trackers(directory.path, runtime.wandb, values, progress.step, run_id=run_id)
            for name, build in (trackers or {}).items():
                run_trackers.add(name, build)

        stack.callback(lambda: run_trackers.finish())
        consensus.on_rank_zero(add_trackers)
        saver = Saver(
            policy,
            identity,
            world,
            wrapped,
            optimizer,
            train_step.scaler,
            run_trackers.run_id,
            progress.step,
            run_trackers.sync,
        )
        stack.callback(saver.close)
        window, watch = TrainWindow(world, progress.window), Stopwatch()
        step, position = progress.step, progress.position
        nonfinite = SkippedStepCounter(world.device, training.max_nonfinite_steps, step, progress.nonfinite_steps)

        def evaluate(names: list[str]) -> bool:
            """Evaluates; False where a signal ended it."""
            try:
                evaluator.evaluate(wrapped, step, names, lambda: stop.received is not None, run_trackers.log)
            except StoppedError:
                return False
            return True

        def checkpoints() -> list[Path]:
            saver.wait()
            return consensus.broadcast_from_rank_zero(policy.complete)

        nonfinite_end = DivergenceReporter(wrapped, optimizer, train_step, consensus, checkpoints)

        def save() -> None:
            watchdog.beat("checkpoint of step", step)
            consensus.on_rank_zero(directory.check_held)
            nonfinite_end.check_state(step, train_reader.describe(position))
            saver.save(Progress(step, position, window.snapshot(), nonfinite.settle()))

        # An evaluation that was due when the earlier run was killed is made up.
        go_on = True
        if step > 0 and _evaluation_is_due(config, step, last_step):
            done = consensus.broadcast_from_rank_zero(lambda: _evaluated(directory.metrics, step))
            go_on = evaluate([name for name in partitions if name not in done])

        limit = "num_train_steps" if last_step >= training.num_train_steps else "num_epochs"
        if step == last_step and go_on:
            logger.info("finished: all %d steps are done; raise training.%s to go on", step, limit)
            return Outcome(step, None, True, policy.latest(), directory)
        logger.info(
            "training %s parameters on %s, %d process(es), steps %d to %d, the end of %s",
            f"{num_parameters(model):,}",
            world.device.type,
            world.size,
            step + 1,
            last_step,
            limit,
        )

        examples_per_step = train_reader.global_batch_size * training.micro_batches
        report = ProgressReport(world, step, last_step)
        stack.callback(report.close)
        batches = stack.enter_context(
            contextlib.closing(
                train_reader.train(
                    seed=runtime.seed,
                    position=position,
                    num_epochs=training.num_epochs,
                    pin_memory=world.device.type == "cuda",
                )
            )
        )
        wrapped.train()

        copies = DeviceCopies(world.device)
        feed = StepFeed(
            batches,
            consensus,
            stop,
            watch,
            nonfinite,
            micro_batches=training.micro_batches,
            num_steps=last_step - step if go_on else 0,
            prefetch_batches=train_reader.prefetch_batches,
        )
        while go_on and step < last_step:
            watchdog.beat("step", step + 1)
            placed = feed.next()
            if placed is None:
                go_on = False
                break
            micro_batches, position = [copies.copy(item.batch) for item in placed], placed[-1].position
            loss, skipped = train_step(micro_batches, step + 1)
            step += 1
            window.add(loss, skipped)
            nonfinite.add(skipped)
            watch.stepped()
            report.step()

            if step % training.train_log_every_n == 0 or step == last_step:
                rates = {f"learning_rate/{k}": rate for k, rate in learning_rates.at(step).items()}
                metrics = (
                    window.compute_and_reset() | rates | dict(extra_metrics() if extra_metrics is not None else {})
                )
                measurement = Measurement(step, "train", None, metrics, watch.timing(examples_per_step))
                if world.is_rank_zero:
                    report.logged(measurement)
                run_trackers.log(measurement)
                watch.restart()
                nonfinite.settle()
            if train_step.tables_may_be_nonfinite:
                nonfinite_end.check_state(step, train_reader.describe(position))
            if nonfinite.too_many is not None:
                places = [train_reader.describe(item.position) for item in placed]
                nonfinite_end.raise_too_many(nonfinite, step, micro_batches, places)
            if policy.is_due(step) or step == last_step:
                with watch.pause():
                    save()
            if _evaluation_is_due(config, step, last_step):
                with watch.pause():
                    go_on = evaluate(list(partitions))

        watchdog.beat("the end, after step", step)
        stopped_by = None
        if not go_on:
            stopped_by = next(received for received in consensus.gather(stop.received) if received is not None)
            save()
        is_saved = saver.wait()
        if is_saved:  # what the last evaluation has left behind the best
            consensus.on_rank_zero(lambda: policy.rotate(step))
        if stopped_by is not None:
            logger.info("stopped by %s after step %d; the same command continues", stopped_by.name, step)
        return Outcome(step, stopped_by, is_saved, policy.latest(), directory)


def _restore(
    checkpoint: CheckpointReader, progress: Progress, model: nn.Module, optimizer: torch.optim.Optimizer, world: World
) -> None:
    now = environment(world)
    for name in now:
        if (before := checkpoint.provenance.get(name)) != now[name]:
            logger.info("%s: %s before, %s now; the last bits may differ", name, before, now[name])
    load_model(model, checkpoint)
    load_optimizer(model, optimizer, checkpoint)
    logger.info("continuing after step %d from %s", progress.step, checkpoint.path)


def _evaluation_is_due(config: JobConfig, step: int, last_step: int) -> bool:
    every_n = config.training.eval_every_n
    if every_n == 0:
        return False
    return step % (every_n or config.training.checkpoint_every_n) == 0 or step == last_step


def _evaluated(metrics: Path, step: int) -> list[str | None]:
    """Partitions whose evaluation at `step` is in the metrics file."""
    return [m.partition for m in read_metrics(metrics) if m.mode == "evaluate" and m.step == step]
