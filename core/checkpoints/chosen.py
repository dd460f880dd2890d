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
    if training.early_stopping is None and training.checkpoint_keep_best is None:
        raise UserError(
            f"--best: the run of {path} configures neither training.early_stopping nor training.checkpoint_keep_best, "
            "which say what is best. Omit --best for its newest checkpoint, or give a checkpoint"
        )
    files = [root.parent / name for name in (run_files.METRICS, run_files.FOLLOWER_METRICS)]
    found = find_best(training, files, root)
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


def find_best(training: TrainingConfig, metrics: Sequence[Path], checkpoints: Path) -> BestEvaluation | None:
    """Return the best evaluation in metrics files by early_stopping or else by checkpoint_keep_best.

    Args:
      training: names the metric; without one, the result is None.
      metrics: the metrics files. early_stopping compares the evaluations in the first one, as training does;
        checkpoint_keep_best those in all of them. If several files have a step, the first one counts.
      checkpoints: directory of the checkpoints. checkpoint_keep_best compares only steps that have one.
    """
    steps = complete_steps(checkpoints)
    if training.early_stopping is not None:
        early_stopping = EarlyStopping(training.early_stopping, {})
        for measurement in evaluations(metrics[0]):
            early_stopping.add(measurement)
        return early_stopping.best([checkpoints / str(step) for step in steps])
    if (choice := training.checkpoint_keep_best) is None:
        return None
    best = BestSteps(metrics, choice.partition, choice.metric, choice.mode, top_k=1).values(steps)
    for step, value in best.items():
        return BestEvaluation(step, choice.partition, choice.metric, value, checkpoints / str(step))
    return None


def evaluations(metrics: Path) -> list[Measurement]:
    """Return the evaluations in a metrics file, by step."""
    return sorted((m for m in read_metrics(metrics) if m.mode == "evaluate"), key=lambda each: each.step)


def _training_config(checkpoint: Path) -> TrainingConfig:
    """Return the part `training` of the configuration that a checkpoint was saved with."""
    try:
        # Strict validation accepts lists for tuples only from JSON text.
        return TrainingConfig.model_validate_json(json.dumps(read_state(checkpoint)["config"]["training"]))
    except (KeyError, pydantic.ValidationError) as error:
        raise UserError(
            f"--best: another version of this program saved {checkpoint}, without a configuration that this one "
            "reads. Omit --best for the newest checkpoint, or give a checkpoint"
        ) from error
