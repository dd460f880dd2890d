"""Evaluates a model: one bounded, timed pass over evaluation sets.

All ranks read the same number of batches and stop at the same one, no matter which rank's clock runs out.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from common.device_copies import DeviceCopies
from common.distributed.consensus import RankFlag
from common.distributed.world import World
from common.reader.prefetch import Prefetcher, next_or_error
from common.reader.reader import PositionedBatch
from common.tracking.measurement import Measurement
from core.autocast import Autocast
from core.config.training import JobConfig
from core.metrics.evaluation_set import EvaluationSet
from core.metrics.interface import Metrics
from core.models.interface import DistributedModel
from core.models.modes import evaluation_mode

logger = logging.getLogger(__name__)


class StoppedError(Exception):
    """Raised if a signal requests a stop. The results of the current partition are discarded."""


class Evaluator:
    """Evaluates a model on the evaluation sets of a run."""

    def __init__(
        self,
        evaluation_sets: Mapping[str, EvaluationSet],
        *,
        world: World,
        autocast: Autocast,
        num_eval_steps: int,
        timeout_in_s: float,
        log_every_n: int,
        beat: Callable[[str, int], None] = lambda *_: None,
    ) -> None:
        """Initialize.

        Args:
          evaluation_sets: evaluation sets, by partition.
          world: rank of this process, world size and device.
          autocast: autocast of the forward passes.
          num_eval_steps: maximum number of batches per partition; a negative number means all.
          timeout_in_s: time limit for one evaluation of all partitions together, in seconds.
          log_every_n: number of batches between two progress log lines.
          beat: called at the start of each batch (core.run.watchdog.Watchdog.beat).
        """
        self.evaluation_sets = evaluation_sets
        self._world = world
        self._autocast = autocast
        self._num_eval_steps = num_eval_steps
        self._timeout_in_s = timeout_in_s
        self._log_every_n = log_every_n
        self._beat = beat

    @classmethod
    def configured(
        cls,
        config: JobConfig,
        evaluation_sets: Mapping[str, EvaluationSet],
        world: World,
        autocast: Autocast,
        beat: Callable[[str, int], None],
    ) -> "Evaluator":
        """Return the evaluator that a configuration describes."""
        training = config.training
        return cls(
            evaluation_sets,
            world=world,
            autocast=autocast,
            num_eval_steps=training.num_eval_steps,
            timeout_in_s=training.eval_timeout_in_s,
            log_every_n=training.eval_log_every_n,
            beat=beat,
        )

    def evaluate(
        self,
        model: DistributedModel,
        step: int,
        partitions: Sequence[str],
        is_stop_requested: Callable[[], bool],
        record: Callable[[Measurement], None],
    ) -> None:
        """Evaluate a model on partitions, and record the measurement of each as soon as it is complete. Collective.

        The moving average of the weights is evaluated, if the model has one.

        Args:
          model: the model. Its weights and the mode (training or evaluation) of each submodule are restored afterwards.
          step: number of steps that the model was trained for.
          partitions: names of the evaluation sets.
          is_stop_requested: returns whether this rank was asked to stop.
          record: receives the measurements.

        Raises:
          StoppedError: a rank was asked to stop. All ranks raise it.
          UserError: the data is invalid. All ranks raise it.
          Exception: this rank's reader failed. The other ranks raise a RankFailedError.
        """
        deadline = time.monotonic() + self._timeout_in_s
        model.share_buffers()
        with evaluation_mode(model.module), model.averaged_weights():
            for partition in partitions:
                with model.without_gradients():
                    measurement = self._evaluate_one(model.module, step, partition, deadline, is_stop_requested)
                record(measurement)

    def _evaluate_one(
        self, module: nn.Module, step: int, partition: str, deadline: float, is_stop_requested: Callable[[], bool]
    ) -> Measurement:
        evaluation_set = self.evaluation_sets[partition]
        metrics = evaluation_set.make_metrics(self._world.device)
        started = time.monotonic()
        self._beat(f"evaluation of {partition} at step {step}, batch", 0)
        pin_memory = self._world.device.type == "cuda"
        copies = DeviceCopies(self._world.device)
        with contextlib.closing(evaluation_set.reader.evaluate(pin_memory=pin_memory)) as batches:
            feed = _EvaluationFeed(batches, self._world, self._num_eval_steps, deadline, is_stop_requested)
            feed.fetch()
            while (positioned := feed.next()) is not None:
                batch = copies.copy(positioned.batch)
                self._beat(f"evaluation of {partition} at step {step}, batch", feed.num_batches)
                feed.fetch()  # ranks exchange flags while the model computes
                with self._autocast():
                    _, outputs = module(batch)
                metrics.update(outputs)
                if feed.num_batches % self._log_every_n == 0:
                    logger.info("evaluating %s at step %d: %d batches", partition, step, feed.num_batches)
        seconds = time.monotonic() - started
        values = metrics.compute()
        _log_evaluation(partition, step, values, metrics, seconds, feed)
        return Measurement(step, "evaluate", partition, values, {"seconds": seconds, "timed_out": feed.is_cut_short})


class _EvaluationFeed:
    """Hands out the batches of a partition while all ranks agree to continue."""

    def __init__(
        self,
        batches: Prefetcher[PositionedBatch[Any]],
        world: World,
        num_eval_steps: int,
        deadline: float,
        is_stop_requested: Callable[[], bool],
    ) -> None:
        self.num_batches = 0
        """Number of batches handed out."""
        self._batches = batches
        self._consensus = world.consensus
        self._limit = num_eval_steps if num_eval_steps >= 0 else None
        self._deadline = deadline
        self._is_stop_requested = is_stop_requested
        self._upcoming: PositionedBatch[Any] | Exception | None = None

    @property
    def is_cut_short(self) -> bool:
        """True if the deadline ended the evaluation before its last batch."""
        return self._upcoming is not None

    def fetch(self) -> None:
        """Fetch the next batch, and send this rank's flags about it."""
        self._upcoming = None if self.num_batches == self._limit else next_or_error(self._batches)
        flags = RankFlag.BAD_DATA if isinstance(self._upcoming, Exception) else RankFlag.NONE
        flags |= RankFlag.STOP if self._is_stop_requested() else RankFlag.NONE
        flags |= RankFlag.TIME_UP if time.monotonic() > self._deadline else RankFlag.NONE
        self._consensus.begin(flags)

    def next(self) -> PositionedBatch[Any] | None:
        """Return the batch that fetch() fetched, or None on all ranks at the end or after the deadline. Collective.

        Raises:
          StoppedError, UserError, Exception: see Evaluator.evaluate().
        """
        flags = self._consensus.result()
        if RankFlag.BAD_DATA in flags:
            self._consensus.raise_on_all_ranks(self._upcoming if isinstance(self._upcoming, Exception) else None)
        if RankFlag.STOP in flags:
            raise StoppedError
        if not isinstance(self._upcoming, PositionedBatch) or RankFlag.TIME_UP in flags:
            return None
        self.num_batches += 1
        return self._upcoming


def _log_evaluation(
    partition: str,
    step: int,
    values: Mapping[str, float | int | None],
    metrics: Metrics,
    seconds: float,
    feed: _EvaluationFeed,
) -> None:
    if feed.is_cut_short and feed.num_batches == 0:
        logger.warning(
            "did not evaluate %s at step %d: training.eval_timeout_in_s ended before its first batch", partition, step
        )
        return
    cut_short = ""
    if feed.is_cut_short:
        cut_short = f", stopped by training.eval_timeout_in_s after {feed.num_batches} batches"
    logger.log(
        logging.WARNING if feed.is_cut_short else logging.INFO,
        "evaluated %s at step %d: %s examples in %.1f s%s%s",
        partition,
        step,
        f"{values.get('examples', 0):,}",
        seconds,
        cut_short,
        "".join(f", {key} {value:.5g}" for key in metrics.headline if (value := values.get(key)) is not None),
    )
