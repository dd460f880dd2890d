"""Reads statistics of the logarithms of continuous features, from which z_score_log_config normalizes them.

projects/home/recap/tools/log_statistics.py writes them.
"""

from collections.abc import Sequence
from pathlib import Path

import pydantic

from common.errors import ConfigError
from common.process.paths import user_path
from core.config.base_config import BaseConfig
from core.config.numbers import Float32, NonNegativeFloat32

KEY_PATH = "model.featurization_config.z_score_log_config.analysis_path"


class LogStatistics(BaseConfig):
    """Statistics of sign(x) * log1p(|x|) over the training data, where values that are missing count as 0."""

    features: list[str] = pydantic.Field(description="Names of the continuous features, in order.")
    mean: list[Float32] = pydantic.Field(description="Mean of each.")
    std: list[NonNegativeFloat32] = pydantic.Field(description="Standard deviation of each.")

    @pydantic.model_validator(mode="after")
    def _lengths_agree(self) -> "LogStatistics":
        if not len(self.features) == len(self.mean) == len(self.std):
            raise ValueError("features, mean and std differ in length")
        return self


def read_log_statistics(path: str, continuous: int, names: Sequence[str] | None) -> LogStatistics:
    """Return the statistics of the model's continuous features, in its order.

    Args:
      path: path of the file.
      continuous: number of continuous features.
      names: their names, by which they are looked up; None if they have none, and the file must have as many.

    Raises:
      ConfigError: the file cannot be read, or has statistics of other features.
    """
    file = user_path(path)
    advice = "Compute it with python -m projects.home.recap.tools.log_statistics --config YAML"
    try:
        statistics = LogStatistics.model_validate_json(file.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"{KEY_PATH}: cannot read {file}: {error.strerror} (current directory: {Path.cwd()}). {advice}"
        ) from error
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{KEY_PATH}: {file}: {where}{': ' if where else ''}{first['msg']}. {advice}") from error
    if names is None:
        if len(statistics.features) != continuous:
            raise ConfigError(
                f"{KEY_PATH}: {file} has {len(statistics.features)} features, but the model has {continuous} "
                f"continuous ones. {advice}"
            )
        return statistics
    if statistics.features == list(names):
        return statistics
    positions = {name: position for position, name in enumerate(statistics.features)}
    if missing := [name for name in names if name not in positions]:
        raise ConfigError(f"{KEY_PATH}: {file} lacks the features {', '.join(missing)}. {advice}")
    order = [positions[name] for name in names]
    return LogStatistics(
        features=list(names),
        mean=[statistics.mean[position] for position in order],
        std=[statistics.std[position] for position in order],
    )
