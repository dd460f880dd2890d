"""Configuration of learning rates."""

import itertools

import pydantic

from core.config.base_config import BaseConfig


class PiecewiseConstant(BaseConfig):
    """values[i] until step boundaries[i], the last value from then on."""

    learning_rate_boundaries: list[pydantic.PositiveInt] = pydantic.Field(
        description="Steps after which the next value holds, ascending."
    )
    learning_rate_values: list[pydantic.NonNegativeFloat] = pydantic.Field(
        description="Learning rates, one more than boundaries."
    )

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

    learning_rate: pydantic.NonNegativeFloat = pydantic.Field(description="Learning rate after the ramp.")
    num_ramp_steps: pydantic.PositiveInt = pydantic.Field(description="Steps of the ramp.")


class LinearRampToCosine(BaseConfig):
    """A linear warm-up, then half a cosine down to a final learning rate (SGDR, arXiv 1608.03983, without restarts)."""

    learning_rate: pydantic.NonNegativeFloat = pydantic.Field(description="Learning rate after the ramp.")
    final_learning_rate: pydantic.NonNegativeFloat = pydantic.Field(description="Learning rate at the end.")
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

    constant: pydantic.NonNegativeFloat | None = pydantic.Field(
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
