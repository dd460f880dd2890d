"""One bounded, timed pass over evaluation sets.

All ranks read the same number of batches and stop at the same one, whoever's clock says so.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from common.device_copies import DeviceCopies
from common.distributed.consensus import RankConsensus, RankFlag
from common.distributed.world import World
from common.reader.prefetch import next_or_error
from common.reader.reader import BatchReader, PositionedBatch
from common.tracking.measurement import Measurement
from core.autocast import Autocast
from core.metrics.interface import Metrics
from core.models.dense import share_buffers, unwrap
from core.models.sharded import ShardedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationSet:
    """An evaluation set and the metrics to compute on it."""

    reader: BatchReader[Any]
    make_metrics: Callable[[torch.device], Metrics]


class StoppedError(Exception):
    """A signal asked to stop; what was evaluated of the partition is dropped."""


class Evaluator:
    """Evaluates a model on named partitions."""

    def __init__(
        self,
        partitions: Mapping[str, EvaluationSet],
        *,
        world: World,
        autocast: Autocast,
        consensus: RankConsensus,
        num_eval_steps: int,
        timeout_in_s: float,
        log_every_n: int,
        beat: Callable[[str, int], None] = lambda *_: None,
    ) -> None:
        """Args:
        partitions: by name, evaluated in this order.
        world: this process's place and device.
        autocast: of the forward passes.
        consensus: agrees when to stop.
        num_eval_steps: batches of a partition; negative: all.
        timeout_in_s: longest duration of one evaluation, all partitions together.
        log_every_n: batches between lines of progress.
        beat: is told each batch that begins, as core.run.watchdog.Watchdog's is.
        """
        self.partitions = partitions
        self._world = world
        self._autocast = autocast
        self._consensus = consensus
        self._num_eval_steps = num_eval_steps
        self._timeout_in_s = timeout_in_s
        self._log_every_n = log_every_n
        self._beat = beat

    def evaluate(
        self,
        model: nn.Module,
        step: int,
        names: list[str],
        stop_requested: Callable[[], bool],
        record: Callable[[Measurement], None],
    ) -> None:
        """Evaluates the named partitions and records a measurement of each as soon as it is done. Collective.

        Args:
          model: a Model, wrapped or not; in the mode in which it was, afterwards.
          step: that the model has done.
          names: of the partitions.
          stop_requested: whether this rank was asked to stop.
          record: takes the measurement.

        Raises:
          StoppedError: a rank was asked to stop; on all ranks.
          UserError: the data is bad; on all ranks.
          Exception: this rank's reader failed; a RankFailedError on the other ranks.
        """
        deadline = time.monotonic() + self._timeout_in_s
        share_buffers(model)
        module = unwrap(model)
        was_training = module.training
        module.eval()
        # TorchRec's lookups don't know inference mode.
        without_gradients = torch.no_grad if isinstance(model, ShardedModel) else torch.inference_mode
        try:
            for name in names:
                with without_gradients():
                    measurement = self._evaluate_one(module, step, name, deadline, stop_requested)
                record(measurement)
        finally:
            module.train(was_training)

    def _evaluate_one(
        self, model: nn.Module, step: int, name: str, deadline: float, stop_requested: Callable[[], bool]
    ) -> Measurement:
        partition = self.partitions[name]
        metrics = partition.make_metrics(self._world.device)
        limit = self._num_eval_steps if self._num_eval_steps >= 0 else None
        started = time.monotonic()
        described = f"evaluation of {name} at step {step}, batch"
        done = 0
        self._beat(described, 0)

        def fetch() -> PositionedBatch[Any] | Exception | None:
            """The next batch, and this rank's part of the word about whether to go on with it."""
            item = None if done == limit else next_or_error(batches)
            flags = RankFlag.BAD_DATA if isinstance(item, Exception) else RankFlag.NONE
            flags |= RankFlag.STOP if stop_requested() else RankFlag.NONE
            flags |= RankFlag.TIME_UP if time.monotonic() > deadline else RankFlag.NONE
            self._consensus.begin(flags)
            return item

        pin = self._world.device.type == "cuda"
        copies = DeviceCopies(self._world.device)
        with contextlib.closing(partition.reader.evaluate(pin_memory=pin)) as batches:
            upcoming = fetch()
            while True:
                word = self._consensus.result()
                if RankFlag.BAD_DATA in word:
                    self._consensus.raise_on_all_ranks(upcoming if isinstance(upcoming, Exception) else None)
                if RankFlag.STOP in word:
                    raise StoppedError
                if not isinstance(upcoming, PositionedBatch) or RankFlag.TIME_UP in word:
                    break
                batch = copies.copy(upcoming.batch)
                done += 1
                self._beat(described, done)
                upcoming = fetch()  # the word travels while the model computes
                with self._autocast():
                    _, outputs = model(batch)
                metrics.update(outputs)
                if done % self._log_every_n == 0:
                    logger.info("evaluating %s at step %d: %d batches", name, step, done)
        timed_out = upcoming is not None
        seconds = time.monotonic() - started
        values = metrics.compute()
        logger.info(
            "evaluated %s at step %d: %s examples in %.1f s%s%s",
            name,
            step,
            f"{values.get('examples', 0):,}",
            seconds,
            f", stopped by eval_timeout_in_s after {done} batches" if timed_out else "",
            "".join(f", {key} {value:.5g}" for key in metrics.headline if (value := values.get(key)) is not None),
        )
        timing = {"seconds": seconds, "timed_out": timed_out}
        return Measurement(step, "evaluate", name, values, timing)
