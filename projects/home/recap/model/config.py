"""Configuration of the Heavy Ranker's model."""

from typing import Literal

import pydantic

from common.modules.config import BatchNormConfig, LayerNormConfig, MaskNetConfig, MlpConfig
from core.config.base_config import BaseConfig


class DoubleNormLogConfig(BaseConfig):
    """sign(x) * log1p(|x|), batch norm, clamp; then layer norm over these and the features concatenated to them."""

    batch_norm_config: BatchNormConfig | None = pydantic.Field(
        None, description="Of the continuous features; null: none."
    )
    clip_magnitude: pydantic.PositiveFloat = pydantic.Field(
        5.0, description="Continuous features are clamped to this magnitude."
    )
    layer_norm_config: LayerNormConfig | None = pydantic.Field(
        None, description="Of all features together; null: none."
    )


class FeaturizationConfig(BaseConfig):
    """How continuous and binary features become the model's input."""

    double_norm_log_config: DoubleNormLogConfig | None = pydantic.Field(
        None, json_schema_extra={"one_of": "featurization"}, description="Logarithm and two normalisations."
    )
    feature_names_to_concat: list[Literal["binary"]] = pydantic.Field(
        ["binary"], description="Features that join the continuous ones before the layer norm."
    )


class AffineMap(BaseConfig):
    """scale * logit + bias, both learned from these values on."""

    scale: float = pydantic.Field(1.0, description="Initial scale.")
    bias: float = pydantic.Field(
        0.0, description="Initial bias; the log-odds of the task's base rate spares the tower learning it."
    )


class TaskModel(BaseConfig):
    """A backbone, or a task's tower."""

    mlp_config: MlpConfig | None = pydantic.Field(
        None, json_schema_extra={"one_of": "architecture"}, description="A multi-layer perceptron."
    )
    mask_net_config: MaskNetConfig | None = pydantic.Field(
        None, json_schema_extra={"one_of": "architecture"}, description="A MaskNet."
    )
    affine_map: AffineMap | None = pydantic.Field(None, description="On a tower's logit; null: none.")
    pos_weight: pydantic.PositiveFloat = pydantic.Field(1.0, description="Factor of the positives' loss, of a tower.")


class ModelConfig(BaseConfig):
    """The Heavy Ranker: features, a backbone, a tower per task."""

    tasks: dict[str, TaskModel] = pydantic.Field(
        min_length=1, description="A tower per task, by the name of its label; each ends with one output."
    )
    featurization_config: FeaturizationConfig = pydantic.Field(description="Continuous and binary features.")
    multi_task_type: Literal["share_none", "share_all", "share_partial"] = pydantic.Field(
        "share_none", description="share_all: every tower stands on the backbone alone."
    )
    backbone: TaskModel = pydantic.Field(description="What all towers stand on.")

    @pydantic.field_validator("multi_task_type")
    @classmethod
    def _is_supported(cls, multi_task_type: str) -> str:
        if multi_task_type != "share_all":
            raise ValueError(f"{multi_task_type} is not supported yet; give share_all")
        return multi_task_type

    @pydantic.field_validator("tasks")
    @classmethod
    def _towers_end_with_a_logit(cls, tasks: dict[str, TaskModel]) -> dict[str, TaskModel]:
        problems = []
        for name, task in tasks.items():
            mlp = task.mlp_config or (task.mask_net_config.mlp if task.mask_net_config is not None else None)
            if mlp is None:
                problems.append(f"the tower {name} has no MLP at its end")
            elif mlp.layer_sizes[-1] != 1:
                problems.append(f"the tower {name} has layer_sizes {mlp.layer_sizes}")
            elif mlp.final_layer_activation:
                problems.append(f"the tower {name} has final_layer_activation true")
        if problems:
            raise ValueError(
                f"{', '.join(problems)}; a tower ends with an MLP whose last layer has size 1 and no activation: "
                "its output is the logit"
            )
        return tasks

    @pydantic.field_validator("backbone")
    @classmethod
    def _backbone_has_no_logit(cls, backbone: TaskModel) -> TaskModel:
        if backbone.affine_map is not None or backbone.pos_weight != 1.0:
            raise ValueError(
                "affine_map and pos_weight belong to the towers, which have a logit and a loss; leave them out of the "
                "backbone"
            )
        return backbone
