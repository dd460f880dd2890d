"""Configuration of the Heavy Ranker's model."""

from typing import Literal, Self

import pydantic

from common.modules.config import BatchNormConfig, LayerNormConfig, MaskNetConfig, MlpConfig
from core.config.base_config import BaseConfig, NotSupportedYet


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


class Log1pAbsConfig(BaseConfig):
    """sign(x) * log1p(|x|)."""


class ClipLog1pAbsConfig(BaseConfig):
    """x clamped, then sign(x) * log1p(|x|)."""

    clip_magnitude: pydantic.NonNegativeFloat = pydantic.Field(
        3e38, description="Continuous features are clamped to this magnitude, before the logarithm."
    )


class FeaturizationConfig(BaseConfig):
    """How continuous and binary features become the model's input."""

    log1p_abs_config: Log1pAbsConfig | None = pydantic.Field(
        None, json_schema_extra={"one_of": "featurization"}, description="Logarithm alone."
    )
    clip_log1p_abs_config: ClipLog1pAbsConfig | None = pydantic.Field(
        None, json_schema_extra={"one_of": "featurization"}, description="Logarithm of clamped values."
    )
    z_score_log_config: NotSupportedYet = pydantic.Field(
        None, json_schema_extra={"one_of": "featurization"}, description="Normalised by statistics from a file."
    )
    double_norm_log_config: DoubleNormLogConfig | None = pydantic.Field(
        None, json_schema_extra={"one_of": "featurization"}, description="Logarithm and two normalisations."
    )
    feature_names_to_concat: list[Literal["binary"]] = pydantic.Field(
        ["binary"], description="Features that stand beside the continuous ones, before a layer norm."
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
    dcn_config: NotSupportedYet = pydantic.Field(
        None, json_schema_extra={"one_of": "architecture"}, description="A Deep & Cross network."
    )
    dlrm_config: NotSupportedYet = pydantic.Field(
        None, json_schema_extra={"one_of": "architecture"}, description="A DLRM."
    )
    affine_map: AffineMap | None = pydantic.Field(None, description="On a tower's logit; null: none.")
    pos_weight: pydantic.PositiveFloat = pydantic.Field(1.0, description="Factor of the positives' loss, of a tower.")


class SmallEmbeddingTable(BaseConfig):
    """A table of embeddings that is looked up with one of the discrete features."""

    name: str = pydantic.Field(min_length=1, description="Name of the table; its weights in a checkpoint bear it.")
    num_embeddings: pydantic.PositiveInt = pydantic.Field(
        description="Rows of the table: the discrete feature is an id from 0 to num_embeddings - 1."
    )
    embedding_dim: pydantic.PositiveInt = pydantic.Field(description="Width of an embedding.")
    index: pydantic.NonNegativeInt = pydantic.Field(description="Position of the feature among the discrete ones.")


class SmallEmbeddingsConfig(BaseConfig):
    """Tables that every process holds whole, trained with the backbone."""

    tables: list[SmallEmbeddingTable] = pydantic.Field(min_length=1, description="The tables.")

    @pydantic.field_validator("tables")
    @classmethod
    def _names_differ(cls, tables: list[SmallEmbeddingTable]) -> list[SmallEmbeddingTable]:
        names = [table.name.replace(".", "/") for table in tables]
        if twice := sorted({table.name for table in tables if names.count(table.name.replace(".", "/")) > 1}):
            raise ValueError(f"two tables are named {', '.join(twice)} (or differ in '.' and '/' alone)")
        return tables


class StratifierConfig(BaseConfig):
    """A stratum: the examples in which a discrete feature has a certain value."""

    name: str = pydantic.Field(min_length=1, description="Of the stratum, in names of metrics; without a slash.")
    index: pydantic.NonNegativeInt = pydantic.Field(description="Position of the feature among the discrete ones.")
    value: int = pydantic.Field(description="Value of the feature.")

    @pydantic.field_validator("name")
    @classmethod
    def _is_one_part_of_a_name(cls, name: str) -> str:
        if "/" in name:
            raise ValueError("a name without a slash is expected: slashes separate the parts of a metric's name")
        return name


class ModelConfig(BaseConfig):
    """The Heavy Ranker: features, a backbone, a tower per task."""

    tasks: dict[str, TaskModel] = pydantic.Field(
        min_length=1, description="A tower per task, by the name of its label; each ends with one output."
    )
    featurization_config: FeaturizationConfig = pydantic.Field(description="Continuous and binary features.")
    large_embeddings: NotSupportedYet = pydantic.Field(None, description="Embeddings in tables sharded over processes.")
    position_debias_config: NotSupportedYet = pydantic.Field(
        None, description="An embedding of the position that a tweet was shown at."
    )
    small_embeddings: SmallEmbeddingsConfig | None = pydantic.Field(
        None, description="Embeddings of discrete features; null: discrete features are not used."
    )
    multi_task_type: Literal["share_none", "share_all", "share_partial"] = pydantic.Field(
        "share_none",
        description="share_none: towers stand on the features, without a backbone; share_all: on the backbone's "
        "output; share_partial: on both, side by side.",
    )
    backbone: TaskModel | None = pydantic.Field(
        None, description="What towers share; null with share_none, and with it alone."
    )

    score_weights: dict[str, float] | None = pydantic.Field(
        None,
        min_length=1,
        description="Weights of the tasks' calibrated probabilities in the score that ranks candidates, those left out "
        "0; null: no score.",
    )
    stratifiers: list[StratifierConfig] | None = pydantic.Field(
        None, description="Strata of the examples that metrics are computed of, too; null: none. No part of training."
    )

    @pydantic.field_validator("stratifiers")
    @classmethod
    def _strata_differ(cls, stratifiers: list[StratifierConfig] | None) -> list[StratifierConfig] | None:
        names = [stratifier.name for stratifier in stratifiers or ()]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two strata are named {', '.join(twice)}; give each a name of its own")
        return stratifiers

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
    def _backbone_has_no_logit(cls, backbone: TaskModel | None) -> TaskModel | None:
        if backbone is not None and (backbone.affine_map is not None or backbone.pos_weight != 1.0):
            raise ValueError(
                "affine_map and pos_weight belong to the towers, which have a logit and a loss; leave them out of the "
                "backbone"
            )
        return backbone

    @pydantic.model_validator(mode="after")
    def _scores_what_it_predicts(self) -> Self:
        if unknown := [task for task in self.score_weights or () if task not in self.tasks]:
            raise ValueError(f"score_weights has {', '.join(unknown)} (not in tasks)")
        return self

    @pydantic.model_validator(mode="after")
    def _has_a_backbone_where_it_is_shared(self) -> Self:
        if self.multi_task_type == "share_none" and self.backbone is not None:
            raise ValueError(
                "multi_task_type share_none (the default) has no backbone, but backbone is given; choose share_all or "
                "share_partial, or set backbone to null"
            )
        if self.multi_task_type != "share_none" and self.backbone is None:
            raise ValueError(
                f"multi_task_type {self.multi_task_type} needs a backbone, which is missing; give one, or choose "
                "share_none"
            )
        return self
