"""Configures optimizers and learning rates."""

import itertools

import pydantic

from core.config.base_config import BaseConfig
from core.config.numbers import DecayRate, NonNegativeFloat32, PositiveFloat32

Rate = NonNegativeFloat32  # optimizer kernels store learning rates as float32


class PiecewiseConstant(BaseConfig):
    """A step function: values[i] up to and including step boundaries[i], then the last value."""

    learning_rate_boundaries: list[pydantic.PositiveInt] = pydantic.Field(
        description="Steps after which the next value applies, in ascending order."
    )
    learning_rate_values: list[Rate] = pydantic.Field(description="Learning rates, one more than there are boundaries.")

    @pydantic.model_validator(mode="after")
    def _lengths_fit(self) -> "PiecewiseConstant":
        boundaries, values = self.learning_rate_boundaries, self.learning_rate_values
        if len(values) != len(boundaries) + 1:
            raise ValueError(
                f"{len(boundaries)} learning_rate_boundaries need {len(boundaries) + 1} learning_rate_values, "
                f"but there are {len(values)}"
            )
        if any(later <= earlier for earlier, later in itertools.pairwise(boundaries)):
            raise ValueError(f"learning_rate_boundaries must be in ascending order, but are {boundaries}")
        return self


class LinearRampToConstant(BaseConfig):
    """A linear warm-up, then a constant rate."""

    learning_rate: Rate = pydantic.Field(description="Learning rate after the ramp.")
    num_ramp_steps: pydantic.PositiveInt = pydantic.Field(description="Number of steps of the ramp.")


class LinearRampToCosine(BaseConfig):
    """A linear warm-up, then a half cosine down to a final rate (SGDR without restarts, arXiv 1608.03983)."""

    learning_rate: Rate = pydantic.Field(description="Learning rate after the ramp.")
    final_learning_rate: Rate = pydantic.Field(description="Learning rate at the end of the cosine.")
    num_ramp_steps: pydantic.PositiveInt = pydantic.Field(description="Number of steps of the ramp.")
    final_num_steps: pydantic.PositiveInt = pydantic.Field(
        description="Step at which the final learning rate is reached. Must be greater than num_ramp_steps."
    )

    @pydantic.model_validator(mode="after")
    def _ends_after_the_ramp(self) -> "LinearRampToCosine":
        if self.final_num_steps <= self.num_ramp_steps:
            raise ValueError(
                f"final_num_steps is {self.final_num_steps}, but must be greater than num_ramp_steps "
                f"({self.num_ramp_steps})"
            )
        return self


class LearningRate(BaseConfig):
    """A learning rate as a function of the step. Set exactly one of the four fields."""

    constant: Rate | None = pydantic.Field(
        None, json_schema_extra={"one_of": "lr"}, description="Use the same rate at every step."
    )
    linear_ramp_to_cosine: LinearRampToCosine | None = pydantic.Field(
        None, json_schema_extra={"one_of": "lr"}, description="Linear warm-up, then cosine decay."
    )
    linear_ramp_to_constant: LinearRampToConstant | None = pydantic.Field(
        None, json_schema_extra={"one_of": "lr"}, description="Linear warm-up, then a constant rate."
    )
    piecewise_constant: PiecewiseConstant | None = pydantic.Field(
        None, json_schema_extra={"one_of": "lr"}, description="Constant rates between given steps."
    )


class OptimizerAlgorithmConfig(BaseConfig):
    """Base of the configurations of optimizers."""

    lr: Rate | None = pydantic.Field(
        None, description="Constant learning rate. The key learning_rate, next to the optimizer, overrides it."
    )


class AdamConfig(OptimizerAlgorithmConfig):
    """Adam (arXiv 1412.6980)."""

    betas: list[DecayRate] = pydantic.Field(
        [0.9, 0.999], min_length=2, max_length=2, description="Decay rates of the first and second moments."
    )
    eps: PositiveFloat32 = pydantic.Field(1e-7, description="Added to the square root of the second moment.")


class SgdConfig(OptimizerAlgorithmConfig):
    """Stochastic gradient descent."""

    momentum: DecayRate = pydantic.Field(
        0.0, description="Momentum factor: fraction of the previous update that is added to the next."
    )


class AdagradConfig(OptimizerAlgorithmConfig):
    """Adagrad (JMLR 12, 2011, p. 2121)."""

    eps: PositiveFloat32 = pydantic.Field(
        1e-10,
        description="Added to the square root of the sum of squared gradients. It must not be 0, because 0 / 0 is NaN.",
    )


class OptimizerConfig(BaseConfig):
    """An optimizer and its learning rate. Set exactly one of the optimizers."""

    learning_rate: LearningRate | None = pydantic.Field(
        None, description="Learning rate as a function of the step; null uses the lr of the optimizer."
    )
    adam: AdamConfig | None = pydantic.Field(None, json_schema_extra={"one_of": "optimizer"}, description="Use Adam.")
    sgd: SgdConfig | None = pydantic.Field(
        None, json_schema_extra={"one_of": "optimizer"}, description="Use stochastic gradient descent."
    )
    adagrad: AdagradConfig | None = pydantic.Field(
        None, json_schema_extra={"one_of": "optimizer"}, description="Use Adagrad."
    )
    row_wise_adagrad: AdagradConfig | None = pydantic.Field(
        None,
        json_schema_extra={"one_of": "optimizer"},
        description="Use row-wise Adagrad, which keeps one sum per row (of the row's mean squared gradient). Only for "
        "embedding tables.",
    )

    @property
    def algorithm(self) -> OptimizerAlgorithmConfig:
        """The optimizer that is set."""
        chosen = self.adam or self.sgd or self.adagrad or self.row_wise_adagrad
        assert chosen is not None
        return chosen

    @property
    def rate(self) -> LearningRate:
        """The learning rate: learning_rate, or the lr of the optimizer if that is null."""
        return self.learning_rate or LearningRate(constant=self.algorithm.lr)

    @pydantic.model_validator(mode="after")
    def _has_a_rate(self) -> "OptimizerConfig":
        if self.learning_rate is None and self.algorithm.lr is None:
            raise ValueError("no learning rate is set. Set learning_rate, or lr in the optimizer")
        return self
