"""Configuration of the modules in this folder."""

from typing import Literal

import pydantic

from core.config.base_config import BaseConfig


class BatchNormConfig(BaseConfig):
    """Batch normalisation (arXiv 1502.03167)."""

    affine: bool = pydantic.Field(True, description="Learn a scale and a shift.")
    momentum: float = pydantic.Field(0.1, gt=0, le=1, description="Weight of a new batch in the running statistics.")


class LayerNormConfig(BaseConfig):
    """Layer normalisation (arXiv 1607.06450)."""

    epsilon: pydantic.NonNegativeFloat = pydantic.Field(
        0.001, description="Added to the variance; 0 is safe: a constant row becomes zeros."
    )
    axis: Literal[-1] = pydantic.Field(-1, description="The axis to normalise: the last.")
    center: bool = pydantic.Field(True, description="Learn a shift.")
    scale: bool = pydantic.Field(True, description="Learn a scale.")


class DropoutConfig(BaseConfig):
    """Dropout."""

    rate: float = pydantic.Field(0.1, gt=0, lt=1, description="Share of activations that are set to zero.")


class MlpConfig(BaseConfig):
    """A multi-layer perceptron."""

    layer_sizes: list[pydantic.PositiveInt] = pydantic.Field(
        min_length=1, description="Outputs of each layer, the last layer's last."
    )
    batch_norm: BatchNormConfig | None = pydantic.Field(None, description="Before each activation; null: none.")
    dropout: DropoutConfig | None = pydantic.Field(None, description="After each activation; null: none.")
    final_layer_activation: bool = pydantic.Field(
        False, description="Whether the last layer has batch norm, activation and dropout too."
    )


class MaskBlockConfig(BaseConfig):
    """A block of a MaskNet."""

    output_size: pydantic.PositiveInt = pydantic.Field(description="Outputs of the block.")
    reduction_factor: pydantic.PositiveFloat | None = pydantic.Field(
        None,
        json_schema_extra={"one_of": "aggregation_size"},
        description="Width of the mask's hidden layer as a multiple of the mask's input.",
    )
    aggregation_size: pydantic.PositiveInt | None = pydantic.Field(
        None,
        json_schema_extra={"one_of": "aggregation_size"},
        description="Width of the mask's hidden layer.",
    )
    input_layer_norm: bool = pydantic.Field(description="Normalise the block's input first.")


class MaskNetConfig(BaseConfig):
    """A MaskNet (arXiv 2102.07619)."""

    mask_blocks: list[MaskBlockConfig] = pydantic.Field(min_length=1, description="The blocks.")
    mlp: MlpConfig | None = pydantic.Field(None, description="On the blocks' output; null: none.")
    use_parallel: bool = pydantic.Field(
        False,
        description="Blocks side by side on the same input, outputs concatenated; false: one after the other.",
    )
