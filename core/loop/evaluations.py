"""Evaluates the model of a run when it is due, and counts the results for early stopping.

core/evaluation/evaluator.py makes one evaluation, and core/run/early_stopping.py decides.
"""

import logging
from collections.abc import Sequence

from common.tracking.measurement import Measurement
from common.tracking.metrics_file import read_metrics
from core.autocast import Autocast
from core.evaluation.evaluator import Evaluator, StoppedError
from core.run.components import TrainingComponents
from core.run.directory import RunDirectory
from core.run.early_stopping import EarlyStopping
from core.run.session import Session

logger = logging.getLogger(__name__)


class TrainerEvaluations:
    """The evaluations of a run in its training process. All ranks make the same calls."""

    def __init__(
        self,
        components: TrainingComponents,
        session: Session,
        directory: RunDirectory,
        early_stopping: EarlyStopping,
        autocast: Autocast,
        last_step: int,
    ) -> None:
        """Initialize without communication.

        Args:
          components: components of the run.
          session: session that guards the run.
          directory: directory of the run.
          early_stopping: receives the measurements.
          autocast: autocast of the forward passes.
          last_step: the run's last step, which is always evaluated.
        """
        self._model = components.model
        self._partitions = list(components.evaluation_sets)
        self._consensus = components.world.consensus
        self._training = components.config.training
        self._session = session
        self._metrics = directory.metrics
        self._early_stopping = early_stopping
        self._last_step = last_step
        self._evaluator = Evaluator.configured(
            components.config, components.evaluation_sets, components.world, autocast, session.watchdog.beat
        )

    def is_due(self, step: int) -> bool:
        """Return whether the model is evaluated after `step`."""
        every_n = self._training.eval_every_n
        if every_n == 0:
            return False
        return step % (every_n or self._training.checkpoint_every_n) == 0 or step == self._last_step

    def evaluate(self, step: int) -> bool:
        """Evaluate the model on all partitions. Return False if a rank was asked to stop. Collective."""
        return self._evaluate(step, self._partitions)

    def catch_up(self, step: int) -> bool:
        """Count the evaluation of the step that a resume continues from, or run it if the earlier run missed it.

        Returns:
          False if a rank was asked to stop.
        """
        if step == 0:
            return True
        if self._early_stopping.notice:
            logger.info("%s", self._early_stopping.notice)
        done = self._consensus.broadcast_from_rank_zero(lambda: self._evaluations_at(step))
        for measurement in done:
            self._early_stopping.add(measurement)
        if not self.is_due(step):
            return True
        evaluated = {measurement.partition for measurement in done}
        return self._evaluate(step, [partition for partition in self._partitions if partition not in evaluated])

    def _evaluations_at(self, step: int) -> list[Measurement]:
        return [m for m in read_metrics(self._metrics) if m.mode == "evaluate" and m.step == step]

    def _evaluate(self, step: int, partitions: Sequence[str]) -> bool:
        try:
            self._evaluator.evaluate(
                self._model, step, partitions, lambda: self._session.is_stop_requested, self._record
            )
        except StoppedError:
            return False
        return True

    def _record(self, measurement: Measurement) -> None:
        self._session.trackers.log(measurement)
        # The metrics of a project may differ between ranks, but the ranks must stop together.
        self._early_stopping.add(self._consensus.broadcast_from_rank_zero(lambda: measurement))
