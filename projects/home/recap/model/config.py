"""Configuration of the Heavy Ranker's model."""

from typing import Literal, Self

import pydantic

from common.modules.config import BatchNormConfig, DcnConfig, DlrmConfig, LayerNormConfig, MaskNetConfig, MlpConfig
from core.config.base_config import BaseConfig, NotSupportedYet
from core.config.names import check_printable
from core.config.numbers import Float32, Int64, NonNegativeFloat32, PositiveFloat32, Size
from core.metrics.config import check_task_names


class DoubleNormLogConfig(BaseConfig):
    """Applies sign(x) * log1p(|x|), batch norm and clamp, then layer norm over all features after concatenation."""

    batch_norm_config: BatchNormConfig | None = pydantic.Field(
        None, description="Batch norm of the continuous features; null disables it."
    )
    clip_magnitude: PositiveFloat32 = pydantic.Field(
        5.0, description="Magnitude to which continuous features are clamped, after the batch norm."
    )
    layer_norm_config: LayerNormConfig | None = pydantic.Field(
        None, description="Layer norm over all features together; null disables it."
    )


class Log1pAbsConfig(BaseConfig):
    """Applies sign(x) * log1p(|x|)."""


class ClipLog1pAbsConfig(BaseConfig):
    """Clamps x, then applies sign(x) * log1p(|x|)."""

    clip_magnitude: NonNegativeFloat32 = pydantic.Field(
        3e38, description="Magnitude to which continuous features are clamped, before the logarithm."
    )


class ZScoreLogConfig(BaseConfig):
    """Applies sign(x) * log1p(|x|), subtracts a mean and divides by a standard deviation from a file, then clamps."""

    analysis_path: str = pydantic.Field(
        min_length=1,
        description="JSON file with the statistics, which projects.home.recap.tools.log_statistics writes.",
    )
    clip_magnitude: PositiveFloat32 = pydantic.Field(
        5.0, description="Magnitude to which continuous features are clamped, at the end."
    )
    use_batch_norm: bool = pydantic.Field(False, description="Apply batch norm before the clamp.")
    schema_path: NotSupportedYet = pydantic.Field(
        None, description="Schema of the statistics. The file has the names of its features instead."
    )
    use_renorm: NotSupportedYet = pydantic.Field(None, description="Batch renormalization.")
    use_bq_stats: NotSupportedYet = pydantic.Field(None, description="Statistics in files of BigQuery.")


class FeaturizationConfig(BaseConfig):
    """Transforms the continuous and binary features into the model's input."""

    log1p_abs_config: Log1pAbsConfig | None = pydantic.Field(
        None, json_schema_extra={"one_of": "featurization"}, description="Logarithm only."
    )
    clip_log1p_abs_config: ClipLog1pAbsConfig | None = pydantic.Field(
        None, json_schema_extra={"one_of": "featurization"}, description="Logarithm of clamped values."
    )
    z_score_log_config: ZScoreLogConfig | None = pydantic.Field(
        None, json_schema_extra={"one_of": "featurization"}, description="Normalization by statistics from a file."
    )
    double_norm_log_config: DoubleNormLogConfig | None = pydantic.Field(
        None, json_schema_extra={"one_of": "featurization"}, description="Logarithm and two normalizations."
    )
    feature_names_to_concat: list[Literal["binary"]] = pydantic.Field(
        ["binary"], description="Features to concatenate to the continuous ones, before the layer norm."
    )


class AffineMap(BaseConfig):
    """A learned map of the logit, scale * logit + bias."""

    scale: Float32 = pydantic.Field(1.0, description="Initial value of the scale.")
    bias: Float32 = pydantic.Field(
        0.0, description="Initial value of the bias. The log-odds of the task's base rate speeds up training."
    )


class TaskModel(BaseConfig):
    """The architecture of the backbone or of a task's tower."""

    mlp_config: MlpConfig | None = pydantic.Field(
        None, json_schema_extra={"one_of": "architecture"}, description="A multi-layer perceptron."
    )
    mask_net_config: MaskNetConfig | None = pydantic.Field(
        None, json_schema_extra={"one_of": "architecture"}, description="A MaskNet."
    )
    dcn_config: DcnConfig | None = pydantic.Field(
        None, json_schema_extra={"one_of": "architecture"}, description="A Deep & Cross network, DCN-v2."
    )
    dlrm_config: DlrmConfig | None = pydantic.Field(
        None, json_schema_extra={"one_of": "architecture"}, description="A DLRM."
    )
    affine_map: AffineMap | None = pydantic.Field(
        None, description="Towers only: a learned map of the logit; null disables it."
    )
    pos_weight: PositiveFloat32 = pydantic.Field(1.0, description="Towers only: factor on the loss of positives.")
    loss_weight: PositiveFloat32 = pydantic.Field(1.0, description="Towers only: factor on the loss of the task.")
    label_smoothing: float = pydantic.Field(
        0.0,
        ge=0,
        lt=1,
        description="Towers only: the training loss compares with (1 - s) * label + s / 2, where s is this number "
        "(arXiv 1512.00567, section 7). Metrics use the labels themselves.",
    )

    @property
    def last_mlp(self) -> MlpConfig | None:
        """The MLP that computes the output; None if there is none at the end."""
        if self.mask_net_config is not None:
            return self.mask_net_config.mlp
        if (dcn := self.dcn_config) is not None:
            return dcn.output_mlp or (None if dcn.use_parallel else dcn.parallel_mlp)
        return self.dlrm_config.top_mlp if self.dlrm_config is not None else self.mlp_config


class SmallEmbeddingTable(BaseConfig):
    """An embedding table for one of the discrete features."""

    name: str = pydantic.Field(min_length=1, description="Name of the table, also used in checkpoints.")
    num_embeddings: int = pydantic.Field(
        gt=0, le=10**9, description="Number of rows. The discrete feature must be an id from 0 to num_embeddings - 1."
    )
    embedding_dim: Size = pydantic.Field(description="Number of values per embedding.")
    index: pydantic.NonNegativeInt = pydantic.Field(description="Position of the feature among the discrete ones.")


class SmallEmbeddingsConfig(BaseConfig):
    """Embedding tables that are small enough for every process to hold a full copy."""

    tables: list[SmallEmbeddingTable] = pydantic.Field(min_length=1, description="The embedding tables.")

    @pydantic.field_validator("tables")
    @classmethod
    def _names_differ(cls, tables: list[SmallEmbeddingTable]) -> list[SmallEmbeddingTable]:
        names = [table.name.replace(".", "/") for table in tables]
        if twice := sorted({table.name for table in tables if names.count(table.name.replace(".", "/")) > 1}):
            raise ValueError(
                f"two tables are named {', '.join(twice)} (or their names differ only in '.' and '/'). "
                "Give each table a unique name"
            )
        return tables


class PositionDebiasConfig(BaseConfig):
    """An embedding of the position at which a tweet was shown. Only training uses it (docs/heavy-ranker.md)."""

    max_position: int = pydantic.Field(
        256, gt=0, lt=2**24, description="Largest position with an embedding of its own. Later positions share it."
    )
    num_dims: Size = pydantic.Field(64, description="Number of values per embedding.")
    drop_probability: float = pydantic.Field(
        0.5, ge=0, lt=1, description="Probability of training on an example without its position."
    )
    position_feature_index: pydantic.NonNegativeInt | None = pydantic.Field(
        None,
        json_schema_extra={"one_of": "feature"},
        description="Position of the feature among the discrete ones.",
    )
    position_feature: str | None = pydantic.Field(
        None,
        min_length=1,
        json_schema_extra={"one_of": "feature"},
        description="Name of the feature, a category with num_values, in the top-level features.",
    )


class ScoreWeightsFile(BaseConfig):
    """A file of score weights."""

    score_weights: dict[str, Float32] = pydantic.Field(min_length=1, description="Weights by label.")


class StratifierConfig(BaseConfig):
    """A stratum: the examples in which a discrete feature has a given value."""

    name: str = pydantic.Field(
        min_length=1, description="Name of the stratum in metric names. Must not contain a slash."
    )
    index: pydantic.NonNegativeInt = pydantic.Field(description="Position of the feature among the discrete ones.")
    value: Int64 = pydantic.Field(description="Value of the feature in this stratum.")

    @pydantic.field_validator("name")
    @classmethod
    def _has_no_slash(cls, name: str) -> str:
        if "/" in name:
            raise ValueError("the name must not contain a slash because slashes separate the parts of a metric name")
        return check_printable(name)


class ModelConfig(BaseConfig):
    """The Heavy Ranker: features, an optional backbone and a tower per task."""

    tasks: dict[str, TaskModel] = pydantic.Field(
        min_length=1, description="The tower of each task, keyed by the name of its label. Each ends with one output."
    )
    featurization_config: FeaturizationConfig = pydantic.Field(
        description="Transformation of the continuous and binary features."
    )
    large_embeddings: NotSupportedYet = pydantic.Field(None, description="Embedding tables sharded over processes.")
    position_debias_config: PositionDebiasConfig | None = pydantic.Field(
        None, description="An embedding of the position at which a tweet was shown; null for none."
    )
    small_embeddings: SmallEmbeddingsConfig | None = pydantic.Field(
        None, description="Embeddings of discrete features; null ignores discrete features."
    )
    multi_task_type: Literal["share_none", "share_all", "share_partial"] = pydantic.Field(
        "share_none",
        description="Input of the towers. share_none: the features, without a backbone; share_all: the backbone's "
        "output; share_partial: both, concatenated.",
    )
    backbone: TaskModel | None = pydantic.Field(
        None, description="The part that towers share. Must be null for share_none; required otherwise."
    )

    score_weights: dict[str, Float32] | None = pydantic.Field(
        None,
        min_length=1,
        json_schema_extra={"at_most_one_of": "score"},
        description="Weights of the tasks' calibrated probabilities in the score that ranks candidates; a missing task "
        "has weight 0. Without weights, there is no score.",
    )
    score_weights_path: str | None = pydantic.Field(
        None,
        min_length=1,
        json_schema_extra={"at_most_one_of": "score"},
        description="YAML file with weights of labels, such as projects/home/recap/score_weights/x-2026.yaml. Labels "
        "that are not tasks are ignored.",
    )
    stratifiers: list[StratifierConfig] | None = pydantic.Field(
        None, description="Strata of examples with metrics of their own; null defines none. Does not affect training."
    )

    @pydantic.field_validator("stratifiers")
    @classmethod
    def _strata_differ(cls, stratifiers: list[StratifierConfig] | None) -> list[StratifierConfig] | None:
        names = [stratifier.name for stratifier in stratifiers or ()]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two strata are named {', '.join(twice)}. Give each stratum a unique name")
        return stratifiers

    @pydantic.field_validator("tasks")
    @classmethod
    def _towers_end_with_a_logit(cls, tasks: dict[str, TaskModel]) -> dict[str, TaskModel]:
        check_task_names(tasks)
        problems = []
        for name, task in tasks.items():
            mlp = task.last_mlp
            if mlp is None:
                problems.append(f"the tower {name} does not end with an MLP")
            elif mlp.layer_sizes[-1] != 1:
                problems.append(f"the tower {name} has layer_sizes {mlp.layer_sizes}")
            elif mlp.final_layer_activation:
                problems.append(f"the tower {name} has final_layer_activation true")
        if problems:
            raise ValueError(
                f"{', '.join(problems)}. A tower must end with an MLP whose last layer has size 1 and no activation, "
                "because its output is the logit"
            )
        return tasks

    @pydantic.field_validator("backbone")
    @classmethod
    def _backbone_has_no_logit(cls, backbone: TaskModel | None) -> TaskModel | None:
        if backbone is not None and (
            backbone.affine_map is not None
            or (backbone.pos_weight, backbone.loss_weight, backbone.label_smoothing) != (1.0, 1.0, 0.0)
        ):
            raise ValueError(
                "affine_map, pos_weight, loss_weight and label_smoothing apply only to towers, which have a logit and "
                "a loss. Remove them from the backbone"
            )
        return backbone

    @pydantic.model_validator(mode="after")
    def _score_weights_name_tasks(self) -> Self:
        if unknown := [task for task in self.score_weights or () if task not in self.tasks]:
            raise ValueError(f"score_weights has {', '.join(unknown)} (not in tasks)")
        return self

    @pydantic.model_validator(mode="after")
    def _backbone_matches_multi_task_type(self) -> Self:
        if self.multi_task_type == "share_none" and self.backbone is not None:
            raise ValueError(
                "multi_task_type is share_none (the default), which has no backbone, but backbone is set. Choose "
                "share_all or share_partial, or set backbone to null"
            )
        if self.multi_task_type != "share_none" and self.backbone is None:
            raise ValueError(
                f"multi_task_type is {self.multi_task_type}, which needs a backbone, but backbone is missing. Add one "
                "or choose share_none"
            )
        return self
