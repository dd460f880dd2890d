"""The Heavy Ranker's optimizer: Adam, with a learning rate for the backbone and one for each tower."""

import pydantic
import torch

from common.errors import ConfigError
from common.optimizers.config import LearningRate
from common.optimizers.learning_rate import ParameterGroupScheduler
from core.config.base_config import BaseConfig
from projects.home.recap.model.heavy_ranker import HeavyRanker, tower_key


class RecapAdamConfig(BaseConfig):
    """Adam (arXiv 1412.6980)."""

    beta_1: float = pydantic.Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta_2: float = pydantic.Field(0.999, ge=0, lt=1, description="Decay of the second moment.")
    epsilon: pydantic.PositiveFloat = pydantic.Field(1e-7, description="Added to the root of the second moment.")


class MultiTaskLearningRates(BaseConfig):
    """Learning rates by part of the model."""

    tower_learning_rates: dict[str, LearningRate] = pydantic.Field(description="One per task of the model.")
    backbone_learning_rate: LearningRate | None = pydantic.Field(
        None,
        description="Of all that is not a tower: norms of features and embeddings, small embeddings, backbone; null "
        "where there is nothing of that kind.",
    )


class RecapOptimizerConfig(BaseConfig):
    """What updates the model."""

    multi_task_learning_rates: MultiTaskLearningRates | None = pydantic.Field(
        None, json_schema_extra={"one_of": "lr"}, description="A learning rate for each part of the model."
    )
    single_task_learning_rate: LearningRate | None = pydantic.Field(
        None, json_schema_extra={"one_of": "lr"}, description="One learning rate for the whole model."
    )
    adam: RecapAdamConfig | None = pydantic.Field(
        None, json_schema_extra={"one_of": "optimizer"}, description="The Adam optimizer."
    )


def build_optimizer(
    ranker: HeavyRanker, config: RecapOptimizerConfig
) -> tuple[torch.optim.Optimizer, ParameterGroupScheduler]:
    """The optimizer of a ranker that is on its device, and the learning rates of its parameter groups: "backbone" and
    each task, or "model" for a single learning rate.

    Raises:
      ConfigError: backbone_learning_rate is missing, or given where there is nothing to learn outside the towers.
    """
    groups: list[dict[str, object]] = []
    rates: list[LearningRate] = []
    if config.multi_task_learning_rates is not None:
        towers = {id(p) for p in ranker.towers.parameters()}
        shared = [p for p in ranker.parameters() if id(p) not in towers]
        backbone_rate = config.multi_task_learning_rates.backbone_learning_rate
        place = "optimizer.multi_task_learning_rates.backbone_learning_rate"
        if shared and backbone_rate is None:
            count = sum(p.numel() for p in shared)
            raise ConfigError(f"{place}: missing; the model has {count:,} parameters outside its towers")
        if not shared and backbone_rate is not None:
            raise ConfigError(f"{place}: given, but the model has no parameters outside its towers; set it to null")
        if backbone_rate is not None:
            groups.append({"params": shared, "name": "backbone"})
            rates.append(backbone_rate)
        for task in ranker.tasks:
            groups.append({"params": list(ranker.towers[tower_key(task)].parameters()), "name": task})
            rates.append(config.multi_task_learning_rates.tower_learning_rates[task])
    else:
        assert config.single_task_learning_rate is not None
        groups.append({"params": list(ranker.parameters()), "name": "model"})
        rates.append(config.single_task_learning_rate)
    adam = config.adam
    assert adam is not None
    optimizer = torch.optim.Adam(groups, betas=(adam.beta_1, adam.beta_2), eps=adam.epsilon, fused=True)
    return optimizer, ParameterGroupScheduler(optimizer, rates)
