"""Checks that a run measures the metrics by which its configuration compares steps."""

from common.errors import ConfigError
from core.config.training import MetricChoice
from core.run.components import Components


def check_metric_choices(components: Components) -> None:
    """Check the partitions and metrics in training.checkpoint_keep_best and training.early_stopping. Collective.

    Raises:
      ConfigError: a partition does not exist, or it has no such metric. The message lists the known ones.
    """
    training = components.config.training
    choices: dict[str, MetricChoice | None] = {
        "training.checkpoint_keep_best": training.checkpoint_keep_best,
        "training.early_stopping": training.early_stopping,
    }
    for key_path, choice in choices.items():
        if choice is not None:
            _check(key_path, choice, components)


def _check(key_path: str, choice: MetricChoice, components: Components) -> None:
    sets = components.evaluation_sets
    if choice.partition not in sets:
        raise ConfigError(
            f"{key_path}.partition is {choice.partition!r}, but the evaluated partitions are: "
            f"{', '.join(sets) or 'none'}"
        )
    names = sets[choice.partition].metric_names(components.world.device)
    if choice.metric not in names:
        raise ConfigError(
            f"{key_path}.metric is {choice.metric!r}, but the metrics of {choice.partition} are: {', '.join(names)}"
        )
