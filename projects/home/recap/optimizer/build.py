"""Builds the Heavy Ranker's optimizer: Adam, with one learning rate for the backbone and one for each tower."""

import torch

from common.errors import ConfigError
from common.modules.keys import module_key
from common.optimizers.config import LearningRate
from common.optimizers.learning_rate import ParameterGroupScheduler
from projects.home.recap.model.heavy_ranker import HeavyRanker
from projects.home.recap.optimizer.config import BACKBONE, RecapOptimizerConfig


def build_optimizer(
    ranker: HeavyRanker, config: RecapOptimizerConfig
) -> tuple[torch.optim.Optimizer, ParameterGroupScheduler]:
    """Build the optimizer and the learning rate scheduler of its parameter groups.

    The groups are named "backbone" and by task, or "model" if there is a single learning rate.

    Args:
      ranker: the model, already on its device.
      config: the optimizer's configuration.

    Raises:
      ConfigError: backbone_learning_rate is missing, or is set although all parameters belong to the towers.
    """
    groups: list[dict[str, object]] = []
    rates: list[LearningRate] = []
    if config.multi_task_learning_rates is not None:
        towers = {id(p) for p in ranker.towers.parameters()}
        shared = [p for p in ranker.parameters() if id(p) not in towers]
        backbone_rate = config.multi_task_learning_rates.backbone_learning_rate
        key_path = "optimizer.multi_task_learning_rates.backbone_learning_rate"
        if shared and backbone_rate is None:
            count = sum(p.numel() for p in shared)
            raise ConfigError(f"{key_path} is missing, but the model has {count:,} parameters outside its towers")
        if not shared and backbone_rate is not None:
            raise ConfigError(f"{key_path} is set, but the model has no parameters outside its towers. Set it to null")
        if backbone_rate is not None:
            groups.append({"params": shared, "name": BACKBONE})
            rates.append(backbone_rate)
        for task in ranker.tasks:
            groups.append({"params": list(ranker.towers[module_key(task)].parameters()), "name": task})
            rates.append(config.multi_task_learning_rates.tower_learning_rates[task])
    else:
        assert config.single_task_learning_rate is not None
        groups.append({"params": list(ranker.parameters()), "name": "model"})
        rates.append(config.single_task_learning_rate)
    adam = config.adam
    assert adam is not None
    optimizer = torch.optim.Adam(groups, betas=(adam.beta_1, adam.beta_2), eps=adam.epsilon, fused=True)
    return optimizer, ParameterGroupScheduler(optimizer, rates)
