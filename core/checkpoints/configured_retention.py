"""Configures which checkpoints of a run are kept."""

from common.checkpointing.retention import CheckpointRetention
from core.checkpoints.best import BestSteps
from core.config.training import TrainingConfig
from core.run.directory import FollowerDirectory, RunDirectory


def configured_retention(training: TrainingConfig, directory: RunDirectory) -> CheckpointRetention:
    """Return the checkpoint retention that training.checkpoint_* configures."""
    best = None
    if (choice := training.checkpoint_keep_best) is not None:
        files = [directory.metrics, FollowerDirectory(training.save_dir).metrics]
        best = BestSteps(files, choice.partition, choice.metric, choice.mode, choice.top_k)
    return CheckpointRetention(
        directory.checkpoints,
        training.checkpoint_every_n,
        training.checkpoint_max_to_keep,
        training.checkpoint_keep_every_n,
        best,
        directory.may_write,
    )
