"""Configuration of optimizers and learning rates."""

import itertools
from typing import Annotated

import pydantic

from core.config.base_config import BaseConfig

# Kernels hold learning rates as float32.
Rate = Annotated[float, pydantic.Field(ge=0, le=3.4e38)]


class PiecewiseConstant(BaseConfig):
    """values[i] until step boundaries[i], the last value from then on."""

    learning_rate_boundaries: list[pydantic.PositiveInt] = pydantic.Field(
        description="Steps after which the next value holds, ascending."
    )
    learning_rate_values: list[Rate] = pydantic.Field(description="Learning rates, one more than boundaries.")

    @pydantic.model_validator(mode="after")
    def _lengths_fit(self) -> "PiecewiseConstant":
        boundaries, values = self.learning_rate_boundaries, self.learning_rate_values
        if len(values) != len(boundaries) + 1:
            raise ValueError(
                f"{len(boundaries)} learning_rate_boundaries separate {len(boundaries) + 1} learning_rate_values, "
                f"{len(values)} given"
            )
        if any(later <= earlier for earlier, later in itertools.pairwise(boundaries)):
            raise ValueError(f"learning_rate_boundaries must ascend, {boundaries} given")
        return self


class LinearRampToConstant(BaseConfig):
    """A linear warm-up, then constant."""

    learning_rate: Rate = pydantic.Field(description="Learning rate after the ramp.")
    num_ramp_steps: pydantic.PositiveInt = pydantic.Field(description="Steps of the ramp.")


class LinearRampToCosine(BaseConfig):
    """A linear warm-up, then half a cosine down to a final learning rate (SGDR, arXiv 1608.03983, without restarts)."""

    learning_rate: Rate = pydantic.Field(description="Learning rate after the ramp.")
    final_learning_rate: Rate = pydantic.Field(description="Learning rate at the end.")
    num_ramp_steps: pydantic.PositiveInt = pydantic.Field(description="Steps of the ramp.")
    final_num_steps: pydantic.PositiveInt = pydantic.Field(
        description="Step from which the final learning rate holds; beyond num_ramp_steps."
    )

    @pydantic.model_validator(mode="after")
    def _ends_after_the_ramp(self) -> "LinearRampToCosine":
        if self.final_num_steps <= self.num_ramp_steps:
            raise ValueError(
                f"final_num_steps {self.final_num_steps} must be beyond num_ramp_steps {self.num_ramp_steps}"
            )
        return self


class LearningRate(BaseConfig):
    """A learning rate as a function of the step; exactly one of the four."""

    constant: Rate | None = pydantic.Field(
        None, json_schema_extra={"one_of": "lr"}, description="The same at every step."
    )
    linear_ramp_to_cosine: LinearRampToCosine | None = pydantic.Field(
        None, json_schema_extra={"one_of": "lr"}, description="Warm-up, then a cosine."
    )
    linear_ramp_to_constant: LinearRampToConstant | None = pydantic.Field(
        None, json_schema_extra={"one_of": "lr"}, description="Warm-up, then constant."
    )
    piecewise_constant: PiecewiseConstant | None = pydantic.Field(
        None, json_schema_extra={"one_of": "lr"}, description="Steps of a staircase."
    )


class OptimizerAlgorithmConfig(BaseConfig):
    """Base of the optimizers."""

    lr: Rate | None = pydantic.Field(
        None, description="Learning rate at every step; learning_rate, beside the optimizer, overrides it."
    )


class AdamConfig(OptimizerAlgorithmConfig):
    """Adam (arXiv 1412.6980)."""

    betas: list[Annotated[float, pydantic.Field(ge=0, lt=1)]] = pydantic.Field(
        [0.9, 0.999], min_length=2, max_length=2, description="Decay of the first and of the second moment."
    )
    eps: pydantic.PositiveFloat = pydantic.Field(1e-7, description="Added to the root of the second moment.")


class SgdConfig(OptimizerAlgorithmConfig):
    """Stochastic gradient descent."""

    momentum: float = pydantic.Field(0.0, ge=0, lt=1, description="Share of the last update in the next.")


class AdagradConfig(OptimizerAlgorithmConfig):
    """Adagrad (JMLR 12, 2011, p. 2121)."""

    eps: pydantic.PositiveFloat = pydantic.Field(
        1e-10, description="Added to the root of the sum of squared gradients; 0 would divide 0 by 0."
    )


class OptimizerConfig(BaseConfig):
    """An optimizer and its learning rate; exactly one of the optimizers."""

    learning_rate: LearningRate | None = pydantic.Field(
        None, description="Learning rate as a function of the step; null: the optimizer's lr."
    )
    adam: AdamConfig | None = pydantic.Field(None, json_schema_extra={"one_of": "optimizer"}, description="Adam.")
    sgd: SgdConfig | None = pydantic.Field(
        None, json_schema_extra={"one_of": "optimizer"}, description="Stochastic gradient descent."
    )
    adagrad: AdagradConfig | None = pydantic.Field(
        None, json_schema_extra={"one_of": "optimizer"}, description="Adagrad."
    )
    row_wise_adagrad: AdagradConfig | None = pydantic.Field(
        None,
        json_schema_extra={"one_of": "optimizer"},
        description="Adagrad with one sum for a row, of the mean of its squared gradients: of embedding tables only.",
    )

    @property
    def algorithm(self) -> OptimizerAlgorithmConfig:
        """The one that is set."""
        chosen = self.adam or self.sgd or self.adagrad or self.row_wise_adagrad
        assert chosen is not None
        return chosen

    @property
    def rate(self) -> LearningRate:
        """learning_rate, or the optimizer's own."""
        return self.learning_rate or LearningRate(constant=self.algorithm.lr)

    @pydantic.model_validator(mode="after")
    def _has_a_rate(self) -> "OptimizerConfig":
        if self.learning_rate is None and self.algorithm.lr is None:
            raise ValueError("no learning rate: give learning_rate, or lr to the optimizer")
        return self
