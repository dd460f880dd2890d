"""Configuration of the Heavy Ranker's data."""

from typing import Annotated, Literal, Self

import pydantic

from common.reader.periods import DAY, HOUR
from core.config.base_config import BaseConfig, NotSupportedYet, WithoutEffect
from core.config.numbers import PositiveShare


class TaskData(BaseConfig):
    """Sampling rates of a task's examples before they were stored."""

    pos_downsampling_rate: PositiveShare = pydantic.Field(1.0, description="Share of positives that were kept.")
    neg_downsampling_rate: PositiveShare = pydantic.Field(1.0, description="Share of negatives that were kept.")


class SegDenseSchema(BaseConfig):
    """The features of the records and their widths."""

    schema_path: str = pydantic.Field(
        min_length=1,
        description="Path of the schema, a JSON file: "
        '{"schema": [{"feature_name": ..., "dtype": "float_list" or "int64_list", "length": ...}]}.',
    )
    features: list[str] = pydantic.Field(
        [], description="Names of the features to read; empty reads all that the schema has."
    )
    renamed_features: dict[str, str] = pydantic.Field(
        {}, description="Maps the name of a feature to its name in the records."
    )
    mask_mantissa_features: NotSupportedYet = pydantic.Field(
        None, description="Features to round to fewer mantissa bits."
    )


class TruncateAndSlice(BaseConfig):
    """Selects the values of the continuous and binary features that are used."""

    continuous_feature_truncation: pydantic.PositiveInt | None = pydantic.Field(
        None, description="Number of leading continuous features to use; null uses all."
    )
    binary_feature_truncation: pydantic.PositiveInt | None = pydantic.Field(
        None, description="Number of leading binary features to use; null uses all."
    )
    continuous_feature_mask_path: str | None = pydantic.Field(
        None,
        min_length=1,
        description="Path of an .npy mask with one boolean (or 0 or 1) for each continuous feature left after "
        "truncation. True or 1 uses the feature. null uses all.",
    )
    binary_feature_mask_path: str | None = pydantic.Field(
        None, min_length=1, description="Path of the mask for the binary features, in the same format."
    )


class DownCast(BaseConfig):
    """Narrower types that features have between the reader and the device. The model widens them again."""

    features: dict[str, Literal["bfloat16", "bool", "float32", "float16", "uint8"]] | None = pydantic.Field(
        None, description="Maps the name of a feature to its type in batches; null keeps all types."
    )


class RectifyLabels(BaseConfig):
    """Sets a label to 0 if the impression or the engagement came too long after serving."""

    label_rectification_window_in_hours: pydantic.PositiveFloat = pydantic.Field(
        3.0, description="Window in hours. Impressions and engagements this long after serving, or longer, are late."
    )
    served_timestamp_field: str = pydantic.Field(min_length=1, description="Column with the time of serving, in ms.")
    impressed_timestamp_field: str = pydantic.Field(
        min_length=1, description="Column with the time of the impression, in ms."
    )
    label_to_engaged_timestamp_field: dict[str, Annotated[str, pydantic.Field(min_length=1)]] = pydantic.Field(
        min_length=1, description="Maps a label (a key of tasks) to the column with the time of the engagement, in ms."
    )


class ExtractFeaturesRow(BaseConfig):
    """Gives a name to one value of a feature."""

    name: str = pydantic.Field(min_length=1, description="Name of the value; any key that names a column accepts it.")
    source_tensor: str = pydantic.Field(description="Name of the feature to take the value from.")
    index: pydantic.NonNegativeInt = pydantic.Field(description="Position in the stored feature, counted from 0.")


class ExtractFeatures(BaseConfig):
    """Extracts single values of features, for use as columns and in batches."""

    extract_feature_table: list[ExtractFeaturesRow] = pydantic.Field([], description="The values to extract.")

    @pydantic.field_validator("extract_feature_table")
    @classmethod
    def _each_name_once(cls, table: list[ExtractFeaturesRow]) -> list[ExtractFeaturesRow]:
        names = [row.name for row in table]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two rows are named {', '.join(twice)}. Give each row a unique name")
        return table


class DownsampleNegatives(BaseConfig):
    """Keeps the positives and a weighted sample of the negatives among the rows read for a batch."""

    batch_multiplier: pydantic.PositiveInt = pydantic.Field(
        description="Number of rows to read for each row of a batch; 1 keeps all rows."
    )
    engagements_list: list[str] = pydantic.Field(
        [], description="Labels (keys of tasks) that make a row positive if any of them is 1; empty means all tasks."
    )
    num_engagements: pydantic.PositiveInt = pydantic.Field(description="Number of tasks; a consistency check.")


class Preprocess(BaseConfig):
    """Preprocessing of records as they are read."""

    truncate_and_slice: TruncateAndSlice | None = pydantic.Field(
        None, description="Selects values of features; null uses all."
    )
    downcast: DownCast | None = pydantic.Field(None, description="Narrower types for features; null keeps all types.")
    rectify_labels: RectifyLabels | None = pydantic.Field(
        None, description="Sets labels that came too long after serving to 0; null keeps all labels."
    )
    extract_features: ExtractFeatures | None = pydantic.Field(
        None, description="Extracts single values of features under new names; null extracts none."
    )
    downsample_negatives: DownsampleNegatives | None = pydantic.Field(
        None, description="Samples the negatives of a batch; null keeps all rows."
    )


# A century. A longer range is surely a typo and would take very long to search.
_MAX_DAYS = 36_525


class ExplicitDateInputs(BaseConfig):
    """Reads a range of days: every *.parquet below data_root/YYYY/MM/DD."""

    data_root: str = pydantic.Field(min_length=1, description="Directory that contains the folders of the years.")
    end_date: str = pydantic.Field(description="Last day, YYYY-MM-DD or YYYY/MM/DD.")
    days: int = pydantic.Field(gt=0, le=_MAX_DAYS, description="Number of days, including end_date.")
    num_missing_days_tol: pydantic.NonNegativeInt = pydantic.Field(
        0, description="Number of days that may have no file; more is an error."
    )

    @pydantic.field_validator("end_date")
    @classmethod
    def _is_a_day(cls, end_date: str) -> str:
        DAY.parse(end_date)
        return end_date


class ExplicitDatetimeInputs(BaseConfig):
    """Reads a range of hours: every *.parquet below data_root/YYYY/MM/DD/HH."""

    data_root: str = pydantic.Field(min_length=1, description="Directory that contains the folders of the years.")
    end_datetime: str = pydantic.Field(
        description="Last hour, YYYY-MM-DDTHH, YYYY-MM-DD HH or YYYY/MM/DD/HH, optionally followed by :00."
    )
    hours: int = pydantic.Field(gt=0, le=24 * _MAX_DAYS, description="Number of hours, including end_datetime.")
    num_missing_hours_tol: pydantic.NonNegativeInt = pydantic.Field(
        0, description="Number of hours that may have no file; more is an error."
    )

    @pydantic.field_validator("end_datetime")
    @classmethod
    def _is_an_hour(cls, end_datetime: str) -> str:
        HOUR.parse(end_datetime)
        return end_datetime


class DatasetConfig(BaseConfig):
    """The files of a data set and how its rows are batched."""

    inputs: str | None = pydantic.Field(
        None,
        min_length=1,
        description="Parquet files: a glob pattern, a file or a directory.",
        json_schema_extra={"one_of": "date_inputs_format"},
    )
    explicit_datetime_inputs: ExplicitDatetimeInputs | None = pydantic.Field(
        None, description="Parquet files of a range of hours.", json_schema_extra={"one_of": "date_inputs_format"}
    )
    explicit_date_inputs: ExplicitDateInputs | None = pydantic.Field(
        None, description="Parquet files of a range of days.", json_schema_extra={"one_of": "date_inputs_format"}
    )
    global_batch_size: pydantic.PositiveInt = pydantic.Field(
        le=2**24, description="Number of examples per batch over all ranks; a multiple of lanes."
    )
    lanes: pydantic.PositiveInt = pydantic.Field(
        8,
        description="Number of parallel streams that the rows are dealt to; a multiple of the number of processes. "
        "The order of examples depends on the number of lanes, not on the number of processes.",
    )
    num_files_to_keep: pydantic.PositiveInt | None = pydantic.Field(
        None, description="Maximum number of files to read, the first in path order; null reads all."
    )
    prefetch_batches: pydantic.PositiveInt = pydantic.Field(
        8, description="Number of batches that each process prepares ahead of the step that uses them."
    )
    decode_threads: pydantic.PositiveInt = pydantic.Field(
        2, description="Number of threads per process that decode row groups ahead of use."
    )
    shuffle_window: pydantic.PositiveInt | None = pydantic.Field(
        None,
        le=2**40,
        description="Training only: minimum number of rows of a lane that are shuffled together, rounded up to whole "
        "row groups. A lane holds two decoded windows in memory. null means one row group.",
    )
    cache: bool = pydantic.Field(
        False,
        description="Keep decoded examples in the memory of each process, so that later epochs and evaluations decode "
        "nothing. It is an error if they do not fit.",
    )
    ignore_data_errors: NotSupportedYet = pydantic.Field(None, description="Skip records that cannot be read.")
    repeat_files: WithoutEffect[bool] = pydantic.Field(
        True, description="From tf.data. Use training.num_epochs to repeat files; an evaluation reads them once."
    )
    file_batch_size: WithoutEffect[pydantic.PositiveInt] = pydantic.Field(
        16, description="From tf.data: number of files to read in parallel. Use lanes to set the number of streams."
    )
    examples_shuffle_buffer_size: WithoutEffect[int] = pydantic.Field(
        1024, description="From tf.data. Training shuffles the whole epoch; evaluation does not shuffle."
    )
    map_num_parallel_calls: WithoutEffect[pydantic.PositiveInt] = pydantic.Field(
        None, description="From tf.data: number of threads that parse records. Use decode_threads."
    )
    interleave_num_parallel_calls: WithoutEffect[pydantic.PositiveInt] = pydantic.Field(
        None, description="From tf.data: number of threads that read files."
    )
    data_service_dispatcher: WithoutEffect[str] = pydantic.Field(
        None, description="From tf.data: address of a data service."
    )
    dataset_service_compression: WithoutEffect[Literal["AUTO"]] = pydantic.Field(
        None, description="From tf.data: compression between data service and trainer."
    )


class RecapDataConfig(DatasetConfig):
    """A data set of the Heavy Ranker: Parquet files and how batches are built from them."""

    seg_dense_schema: SegDenseSchema | None = pydantic.Field(
        None, description="The features to read. Required without the top-level key features, and refused with it."
    )
    tasks: dict[str, TaskData] = pydantic.Field(
        min_length=1,
        description="Labels in the data. Labels for which the model has no tower are read only if "
        "preprocess.downsample_negatives uses them.",
    )
    weigh_loss_by_sampling_rates: bool = pydantic.Field(
        False,
        description="Training only: weight examples in the loss by 1/rate, so that the model learns the probabilities "
        "before sampling. If false, the model learns the probabilities of the stored data, and its "
        "calibrated_probabilities correct for sampling. Evaluations always weight examples by 1/rate.",
    )
    evaluation_tasks: list[str] = pydantic.Field(
        [], description="validation_data only: tasks to evaluate; empty evaluates all tasks of the model."
    )
    preprocess: Preprocess | None = pydantic.Field(
        None, description="Preprocessing of the records; null uses them as stored."
    )
    sampler: NotSupportedYet = pydantic.Field(None, description="Samples examples as they are read.")
    weight_column: str | None = pydantic.Field(
        None,
        min_length=1,
        description="Column of example weights for loss and metrics; null weights every example by 1.",
    )
    reference_probability_prefix: str | None = pydantic.Field(
        None,
        min_length=1,
        description="Prefix of the columns <prefix><task> that hold the probability from which the label was drawn. "
        "If set, metrics report the share of the reachable RCE that the model has learned.",
    )

    @pydantic.model_validator(mode="after")
    def _preprocess_fits(self) -> Self:
        """Check that preprocessing names keys of tasks, and that each lane has room for both classes."""
        preprocess = self.preprocess or Preprocess()
        problems = []
        if (rectify := preprocess.rectify_labels) is not None:
            labels = list(rectify.label_to_engaged_timestamp_field)
            problems += self._not_in_tasks("rectify_labels.label_to_engaged_timestamp_field", labels)
        if (downsample := preprocess.downsample_negatives) is not None:
            key = "downsample_negatives"
            problems += self._not_in_tasks(f"{key}.engagements_list", downsample.engagements_list)
            if self.global_batch_size < 2 * self.lanes:
                problems.append(
                    f"preprocess.{key} needs at least two rows per lane in a batch, one positive and one negative, "
                    f"but global_batch_size is {self.global_batch_size} and lanes is {self.lanes}. Raise "
                    "global_batch_size or lower lanes"
                )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _not_in_tasks(self, key: str, labels: list[str]) -> list[str]:
        unknown = [label for label in labels if label not in self.tasks]
        return [f"preprocess.{key} has {', '.join(unknown)} (not in tasks)"] if unknown else []
