"""The score that ranks candidates."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from common.errors import ConfigError
from common.process.paths import user_path
from core.config import load_config_from_yaml
from projects.home.recap.model.config import ModelConfig, ScoreWeightsFile


def configured_score_weights(config: ModelConfig) -> Mapping[str, float] | None:
    """Return the score weights by task, or None if there is no score.

    Raises:
      ConfigError: score_weights_path cannot be read, or has no weight of a task.
    """
    if config.score_weights_path is None:
        return config.score_weights
    weights = load_config_from_yaml(ScoreWeightsFile, user_path(config.score_weights_path)).score_weights
    if not weights.keys() & config.tasks.keys():
        raise ConfigError(
            f"model.score_weights_path: {config.score_weights_path} has no weight of a task. It has weights of "
            f"{', '.join(weights)}, and the tasks are {', '.join(config.tasks)}. Copy the file, and change its names"
        )
    return {task: weight for task, weight in weights.items() if task in config.tasks}


class WeightedScore(nn.Module):
    """Computes the sum of weight * probability over tasks in float64: the expected value of showing a candidate."""

    def __init__(self, tasks: Sequence[str], weights: Mapping[str, float]) -> None:
        """Store the weights.

        Args:
          tasks: names of the tasks, in the order of the probabilities' columns.
          weights: weight by task; a missing task has weight 0.
        """
        super().__init__()
        values = torch.tensor([weights.get(task, 0.0) for task in tasks])
        self.register_buffer("weights", values, persistent=False)
        self.weights: torch.Tensor

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the scores, float64 [batch], given the logits of the probabilities, [batch, tasks].

        In float32, candidates would have equal scores from a logit of 17, where probabilities round to 1.
        """
        return (torch.sigmoid(logits.double()) * self.weights).sum(dim=1)
