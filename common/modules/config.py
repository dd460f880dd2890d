"""Configures the modules in this package."""

from typing import Literal

import pydantic

from core.config.base_config import BaseConfig
from core.config.numbers import NonNegativeFloat32, PositiveShare, Size


class BatchNormConfig(BaseConfig):
    """Batch normalization (arXiv 1502.03167)."""

    affine: bool = pydantic.Field(True, description="Learn a scale and a shift per feature.")
    momentum: PositiveShare = pydantic.Field(0.1, description="Weight of the newest batch in the running statistics.")


class LayerNormConfig(BaseConfig):
    """Layer normalization (arXiv 1607.06450)."""

    epsilon: NonNegativeFloat32 = pydantic.Field(
        0.001, description="Added to the variance. 0 is safe: a constant row becomes zeros."
    )
    axis: Literal[-1] = pydantic.Field(-1, description="Axis to normalize: only the last axis is supported.")
    center: bool = pydantic.Field(True, description="Learn a shift.")
    scale: bool = pydantic.Field(True, description="Learn a scale.")


class DropoutConfig(BaseConfig):
    """Dropout."""

    rate: float = pydantic.Field(0.1, gt=0, lt=1, description="Fraction of the activations to set to zero.")


class MlpConfig(BaseConfig):
    """A multi-layer perceptron."""

    layer_sizes: list[Size] = pydantic.Field(
        min_length=1, description="Number of outputs of each layer, from first to last."
    )
    batch_norm: BatchNormConfig | None = pydantic.Field(
        None, description="Batch normalization before each activation; null for none."
    )
    dropout: DropoutConfig | None = pydantic.Field(None, description="Dropout after each activation; null for none.")
    final_layer_activation: bool = pydantic.Field(
        False, description="Apply batch normalization, activation and dropout to the last layer too."
    )


class MaskBlockConfig(BaseConfig):
    """A block of a MaskNet."""

    output_size: Size = pydantic.Field(description="Number of outputs of the block.")
    reduction_factor: float | None = pydantic.Field(
        None,
        gt=0,
        le=10_000,
        json_schema_extra={"one_of": "aggregation_size"},
        description="Width of the mask's hidden layer, as a multiple of the width of the mask's input.",
    )
    aggregation_size: Size | None = pydantic.Field(
        None,
        json_schema_extra={"one_of": "aggregation_size"},
        description="Width of the mask's hidden layer.",
    )
    input_layer_norm: bool = pydantic.Field(description="Apply layer normalization to the input of the block.")


class MaskNetConfig(BaseConfig):
    """A MaskNet (arXiv 2102.07619)."""

    mask_blocks: list[MaskBlockConfig] = pydantic.Field(min_length=1, description="Mask blocks, in order.")
    mlp: MlpConfig | None = pydantic.Field(None, description="MLP on the output of the blocks; null for none.")
    use_parallel: bool = pydantic.Field(
        False,
        description="Apply all blocks to the same input and concatenate their outputs; false chains the blocks.",
    )


class DcnConfig(BaseConfig):
    """A Deep & Cross Network, DCN-v2 (arXiv 2008.13535)."""

    poly_degree: int = pydantic.Field(
        ge=2,
        le=100,
        description="Degree of the polynomial in the inputs that the cross layers compute; there is one layer fewer.",
    )
    projection_dim: Size | None = pydantic.Field(
        None, description="Rank of the matrices of the cross layers; null for full matrices."
    )
    parallel_mlp: MlpConfig | None = pydantic.Field(
        None, description="MLP next to the cross layers, or after them; null for none."
    )
    use_parallel: bool = pydantic.Field(
        True,
        description="Apply parallel_mlp to the input, and concatenate its output to that of the cross layers; false "
        "applies it to the output of the cross layers.",
    )
    output_mlp: MlpConfig | None = pydantic.Field(None, description="MLP on the output; null for none.")


class DlrmConfig(BaseConfig):
    """A DLRM (arXiv 1906.00091)."""

    bottom_mlp: MlpConfig = pydantic.Field(
        description="MLP on the inputs that are not embeddings. The dot products are of its output and the embeddings."
    )
    top_mlp: MlpConfig = pydantic.Field(description="MLP on the output of the bottom MLP and the dot products.")
