"""Chooses the checkpoint of a run to use: the newest one, or the best one by the metric that the run configures."""

import json
from collections.abc import Sequence
from pathlib import Path

import pydantic

from common.checkpointing.directory import complete_steps, find_checkpoints
from common.checkpointing.reader import read_state
from common.errors import UserError
from common.tracking import run_files
from common.tracking.measurement import Measurement
from common.tracking.metrics_file import read_metrics
from core.checkpoints.best import BestSteps
from core.config.training import TrainingConfig
from core.run.early_stopping import BestEvaluation, EarlyStopping


def choose_checkpoint(path: Path, *, best: bool) -> Path:
    """Return the checkpoint that a user means.

    Args:
      path: a checkpoint, a directory of checkpoints, or the save_dir of a run.
      best: choose the best checkpoint by early_stopping or else by checkpoint_keep_best, not the newest one.

    Raises:
      UserError: there is no complete checkpoint; or, with `best`, the run configures no metric to compare, no
        evaluation has a value of it, or the best checkpoint no longer exists.
    """
    checkpoints = find_checkpoints(path)
    if not best:
        return checkpoints[-1]
    root = checkpoints[-1].absolute().parent
    if checkpoints[-1] == path:
        raise UserError(f"--best: {path} is one checkpoint. Give the save_dir of the run, {root.parent}")
    training = _training_config(checkpoints[-1])
    if training is None or (training.early_stopping is None and training.checkpoint_keep_best is None):
        raise UserError(
            f"--best: the run of {path} configures neither training.early_stopping nor training.checkpoint_keep_best, "
            "which say what is best. Omit --best for its newest checkpoint, or give a checkpoint"
        )
    files = [root.parent / name for name in (run_files.METRICS, run_files.FOLLOWER_METRICS)]
    found = next(filter(None, (find_best(training, file, root) for file in files)), None)
    if found is None:
        raise UserError(
            f"--best: no evaluation in {' or '.join(map(str, files))} has a value of the metric that the run compares. "
            "Omit --best for its newest checkpoint, or give a checkpoint"
        )
    if found.checkpoint is None:
        raise UserError(
            f"--best: the checkpoint of the best evaluation no longer exists: {found}. Existing checkpoints: "
            f"{', '.join(checkpoint.name for checkpoint in checkpoints)}"
        )
    return found.checkpoint


def find_best(training: TrainingConfig, metrics: Path, checkpoints: Path) -> BestEvaluation | None:
    """Return the best evaluation in a metrics file by early_stopping or else by checkpoint_keep_best.

    Args:
      training: names the metric; without one, the result is None.
      metrics: the metrics file.
      checkpoints: directory of the checkpoints. checkpoint_keep_best compares only steps that have one.
    """
    measured = evaluations(metrics)
    steps = complete_steps(checkpoints)
    if training.early_stopping is not None:
        early_stopping = EarlyStopping(training.early_stopping, {})
        for measurement in measured:
            early_stopping.add(measurement)
        return early_stopping.best([checkpoints / str(step) for step in steps])
    if (choice := training.checkpoint_keep_best) is None:
        return None
    for step in BestSteps([metrics], choice.partition, choice.metric, choice.mode, top_k=1)(steps):
        value = value_after(measured, step, choice.partition, choice.metric)
        assert value is not None
        return BestEvaluation(step, choice.partition, choice.metric, value, checkpoints / str(step))
    return None


def evaluations(metrics: Path) -> list[Measurement]:
    """Return the evaluations in a metrics file, by step."""
    return sorted((m for m in read_metrics(metrics) if m.mode == "evaluate"), key=lambda each: each.step)


def value_after(measured: Sequence[Measurement], step: int, partition: str, metric: str) -> float | None:
    """Return the newest value of a metric after a step, or None if it is not available."""
    values = [m.metrics.get(metric) for m in measured if m.step == step and m.partition == partition]
    return values[-1] if values else None


def _training_config(checkpoint: Path) -> TrainingConfig | None:
    """Return the part `training` of the configuration that a checkpoint was saved with; None if it has none."""
    try:
        # Strict validation accepts lists for tuples only from JSON text.
        return TrainingConfig.model_validate_json(json.dumps(read_state(checkpoint)["config"]["training"]))
    except (KeyError, pydantic.ValidationError):  # another version saved it
        return None
