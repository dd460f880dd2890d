"""Finds the configuration of the run that wrote a checkpoint."""

from pathlib import Path

from common.checkpointing.reader import CheckpointReader
from common.errors import ConfigError
from core.config import load_config_from_yaml
from core.run.directory import RunDirectory
from projects.twhin.config import TwhinConfig
from projects.twhin.model.saved import table_sizes


def read_run_config(checkpoint: Path) -> TwhinConfig:
    """Return the configuration from the config.yaml of the run that wrote a checkpoint.

    Raises:
      ConfigError: there is no config.yaml, or it is not a TwHIN configuration.
      CheckpointError: so it is, and the checkpoint cannot be read.
    """
    # `checkpoints` in the save_dir can be a link to another disk, and `checkpoint` a link to a checkpoint.
    paths = [RunDirectory(str(path.parent.parent)).config for path in (checkpoint.absolute(), checkpoint.resolve())]
    try:
        return load_config_from_yaml(TwhinConfig, next((path for path in paths if path.exists()), paths[0]))
    except ConfigError as error:
        with CheckpointReader(checkpoint) as reader:
            if not table_sizes(reader):
                raise ConfigError(
                    f"{checkpoint}: not a checkpoint of TwHIN, because it has no embedding tables"
                ) from error
        raise ConfigError(
            f"{checkpoint}: cannot read a TwHIN configuration from the run's save_dir, two directories above: {error}. "
            "Give the path of the checkpoint in the save_dir"
        ) from error
