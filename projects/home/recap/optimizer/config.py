"""Configuration of the Heavy Ranker's optimizer."""

import pydantic

from common.optimizers.config import LearningRate
from core.config.base_config import BaseConfig
from core.config.numbers import DecayRate, NonNegativeFloat32, PositiveFloat32

BACKBONE = "backbone"
"""Name of the parameter group of all parameters outside the towers."""


class RecapAdamConfig(BaseConfig):
    """Hyperparameters of Adam (arXiv 1412.6980)."""

    beta_1: DecayRate = pydantic.Field(0.9, description="Decay rate of the first moment.")
    beta_2: DecayRate = pydantic.Field(0.999, description="Decay rate of the second moment.")
    epsilon: PositiveFloat32 = pydantic.Field(1e-7, description="Added to the square root of the second moment.")


class RecapAdamWConfig(RecapAdamConfig):
    """Hyperparameters of AdamW: Adam with decoupled weight decay (arXiv 1711.05101, algorithm 2)."""

    weight_decay: NonNegativeFloat32 = pydantic.Field(
        0.01,
        description="Each update also multiplies weights by 1 - learning rate * weight_decay, except parameters of "
        "fewer than two dimensions (biases, norms, affine maps) and embedding tables.",
    )


class RecapAdagradConfig(BaseConfig):
    """Hyperparameters of Adagrad (JMLR 12, 2011, p. 2121)."""

    epsilon: PositiveFloat32 = pydantic.Field(
        1e-10, description="Added to the square root of the sum of squared gradients."
    )


class MultiTaskLearningRates(BaseConfig):
    """A learning rate for each part of the model."""

    tower_learning_rates: dict[str, LearningRate] = pydantic.Field(
        description="Learning rate of each tower, keyed by task; every task of the model needs one."
    )
    backbone_learning_rate: LearningRate | None = pydantic.Field(
        None,
        description="Learning rate of all parameters outside the towers: feature and embedding norms, embedding "
        "tables and the backbone. Must be null if there are none.",
    )


class RecapOptimizerConfig(BaseConfig):
    """The optimizer and its learning rates."""

    multi_task_learning_rates: MultiTaskLearningRates | None = pydantic.Field(
        None, json_schema_extra={"one_of": "lr"}, description="A learning rate for each part of the model."
    )
    single_task_learning_rate: LearningRate | None = pydantic.Field(
        None, json_schema_extra={"one_of": "lr"}, description="One learning rate for the whole model."
    )
    adam: RecapAdamConfig | None = pydantic.Field(
        None, json_schema_extra={"one_of": "optimizer"}, description="The Adam optimizer."
    )
    adamw: RecapAdamWConfig | None = pydantic.Field(
        None, json_schema_extra={"one_of": "optimizer"}, description="The AdamW optimizer: Adam with weight decay."
    )
    adagrad: RecapAdagradConfig | None = pydantic.Field(
        None, json_schema_extra={"one_of": "optimizer"}, description="The Adagrad optimizer."
    )
