"""Which checkpoints of a run are best, as training.checkpoint_keep_best asks."""

from collections.abc import Mapping

from common.checkpointing.best import BestSteps
from common.device import World
from core.config.base_config import ConfigError
from core.config.training import CheckpointKeepBestConfig
from core.evaluation import Partition
from core.run_directory import EvaluatorDirectory, RunDirectory


def best_checkpoints(
    config: CheckpointKeepBestConfig | None, save_dir: str, partitions: Mapping[str, Partition], world: World
) -> BestSteps | None:
    """The best of the checkpoints by what the run and its evaluator have measured. Collective.

    Args:
      config: None: none is.
      save_dir: of the run.
      partitions: that are evaluated, by name.
      world: this process's place and device.

    Raises:
      ConfigError: there is no such partition, or its evaluations don't have the metric.
    """
    if config is None:
        return None
    place = "training.checkpoint_keep_best"
    if config.partition not in partitions:
        raise ConfigError(
            f"{place}.partition: {config.partition!r} given; evaluated are: {', '.join(partitions) or 'none'}"
        )
    # Of no examples, the values say nothing, but all names are there.
    names = partitions[config.partition].make_metrics(world.device).compute()
    if config.metric not in names:
        raise ConfigError(
            f"{place}.metric: {config.metric!r} given; evaluations of {config.partition} have: {', '.join(names)}"
        )
    files = [RunDirectory(save_dir).metrics, EvaluatorDirectory(save_dir).metrics]
    return BestSteps(files, config.partition, config.metric, config.mode, config.top_k)
