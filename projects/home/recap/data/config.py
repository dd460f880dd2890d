"""Configuration of the Heavy Ranker's data."""

import pydantic

from core.config.base_config import BaseConfig


class TaskData(BaseConfig):
    """How a task's examples were sampled before they were stored."""

    pos_downsampling_rate: float = pydantic.Field(1.0, gt=0, le=1, description="Share of the positives that was kept.")
    neg_downsampling_rate: float = pydantic.Field(1.0, gt=0, le=1, description="Share of the negatives that was kept.")


class SegDenseSchema(BaseConfig):
    """Which features the records have, and how wide they are."""

    schema_path: str = pydantic.Field(
        min_length=1,
        description='JSON: {"schema": [{"feature_name": ..., "dtype": "float_list" or "int64_list", "length": ...}]}.',
    )
    features: list[str] = pydantic.Field([], description="Features to read, by our names; empty: all of ours.")
    renamed_features: dict[str, str] = pydantic.Field(
        {}, description="Our name of a feature -> its name in the records."
    )


class TruncateAndSlice(BaseConfig):
    """Which of a feature's values are used."""

    continuous_feature_truncation: pydantic.PositiveInt | None = pydantic.Field(
        None, description="Use the first so many continuous features; null: all."
    )
    binary_feature_truncation: pydantic.PositiveInt | None = pydantic.Field(
        None, description="Use the first so many binary features; null: all."
    )


class Preprocess(BaseConfig):
    """What happens to records as they are read."""

    truncate_and_slice: TruncateAndSlice | None = pydantic.Field(None, description="null: use all values.")


class RecapDataConfig(BaseConfig):
    """A set of Parquet files and how batches are made of them."""

    inputs: str = pydantic.Field(min_length=1, description="Glob pattern, file, or directory of Parquet files.")
    global_batch_size: pydantic.PositiveInt = pydantic.Field(
        description="Examples per batch over all ranks; a multiple of lanes."
    )
    lanes: pydantic.PositiveInt = pydantic.Field(
        8,
        description="Parallel streams that the rows are dealt over; a multiple of the number of processes. The order "
        "of examples depends on it, and not on the number of processes.",
    )
    seg_dense_schema: SegDenseSchema = pydantic.Field(description="The features.")
    tasks: dict[str, TaskData] = pydantic.Field(
        min_length=1, description="Labels in the data; those that the model has no tower for are not read."
    )
    preprocess: Preprocess | None = pydantic.Field(None, description="null: records are used as they are.")
    weight_column: str | None = pydantic.Field(
        None, min_length=1, description="Column of example weights, for loss and metrics; null: every example counts 1."
    )
    reference_probability_prefix: str | None = pydantic.Field(
        None,
        min_length=1,
        description="The columns <prefix><task> hold the probability that the label was drawn from; metrics then tell "
        "the share of the reachable RCE that the model has learned.",
    )
