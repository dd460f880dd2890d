"""Configures which checkpoints of a run are kept."""

from common.checkpointing.retention import CheckpointRetention
from core.checkpoints.best import best_checkpoints
from core.run.components import Components
from core.run.directory import RunDirectory


def configured_retention(components: Components, directory: RunDirectory) -> CheckpointRetention:
    """Return the checkpoint retention that training.checkpoint_* configures. Collective.

    Raises:
      ConfigError: training.checkpoint_keep_best names a partition or a metric that the run does not evaluate.
    """
    training, sets = components.config.training, components.evaluation_sets
    best = best_checkpoints(
        training.checkpoint_keep_best,
        training.save_dir,
        sets.keys(),
        lambda partition: sets[partition].metric_names(components.world.device),
    )
    return CheckpointRetention(
        directory.checkpoints,
        training.checkpoint_every_n,
        training.checkpoint_max_to_keep,
        training.checkpoint_keep_every_n,
        best,
        directory.may_write,
    )
