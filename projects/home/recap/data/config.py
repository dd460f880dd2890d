"""Configuration of the Heavy Ranker's data."""

from typing import Annotated, Literal, Self

import pydantic

from common.reader.dated_folders import DAY, HOUR
from core.config.base_config import BaseConfig, NotSupportedYet, WithoutEffect


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
    mask_mantissa_features: NotSupportedYet = pydantic.Field(
        None, description="Features whose values lose the last bits of their mantissa."
    )


class TruncateAndSlice(BaseConfig):
    """Which of a feature's values are used."""

    continuous_feature_truncation: pydantic.PositiveInt | None = pydantic.Field(
        None, description="Use the first so many continuous features; null: all."
    )
    binary_feature_truncation: pydantic.PositiveInt | None = pydantic.Field(
        None, description="Use the first so many binary features; null: all."
    )
    continuous_feature_mask_path: str | None = pydantic.Field(
        None,
        min_length=1,
        description=".npy file of booleans, or of 0 and 1: one for each continuous feature that truncation leaves, "
        "whether it is used; null: all of them.",
    )
    binary_feature_mask_path: str | None = pydantic.Field(
        None, min_length=1, description="The same for the binary features."
    )


class DownCast(BaseConfig):
    """Narrower types of features, from the reader to the device; the model computes in its own."""

    features: dict[str, Literal["bfloat16", "bool", "float32", "float16", "uint8"]] | None = pydantic.Field(
        None, description="Our name of a feature -> the type that it travels in; null: none."
    )


class RectifyLabels(BaseConfig):
    """Labels become 0 whose engagement, or whose impression, came too late after serving."""

    label_rectification_window_in_hours: pydantic.PositiveFloat = pydantic.Field(
        3.0, description="What is later than this after serving, or just as late, came too late."
    )
    served_timestamp_field: str = pydantic.Field(min_length=1, description="Column: when it was served, in ms.")
    impressed_timestamp_field: str = pydantic.Field(min_length=1, description="Column: when it was seen, in ms.")
    label_to_engaged_timestamp_field: dict[str, Annotated[str, pydantic.Field(min_length=1)]] = pydantic.Field(
        min_length=1, description="Label, a key of tasks -> column: when the engagement came, in ms."
    )


class ExtractFeaturesRow(BaseConfig):
    """One value of a feature, by a name of its own."""

    name: str = pydantic.Field(min_length=1, description="Its name; may stand wherever a column is named.")
    source_tensor: str = pydantic.Field(description="Our name of the feature that it is taken from.")
    index: pydantic.NonNegativeInt = pydantic.Field(description="Its position there, as stored, counted from 0.")


class ExtractFeatures(BaseConfig):
    """Single values of features, used as columns and brought in batches."""

    extract_feature_table: list[ExtractFeaturesRow] = pydantic.Field([], description="The values to extract.")

    @pydantic.field_validator("extract_feature_table")
    @classmethod
    def _each_name_once(cls, table: list[ExtractFeaturesRow]) -> list[ExtractFeaturesRow]:
        names = [row.name for row in table]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two rows are named {', '.join(twice)}; give each a name of its own")
        return table


class DownsampleNegatives(BaseConfig):
    """Of the rows read for a batch, keep the positives and some of the negatives, weighted for those that went."""

    batch_multiplier: pydantic.PositiveInt = pydantic.Field(
        description="Rows read for each row of a batch; 1 keeps them all."
    )
    engagements_list: list[str] = pydantic.Field(
        [], description="A row is positive if one of these labels, keys of tasks, is 1; empty: any of tasks."
    )
    num_engagements: pydantic.PositiveInt = pydantic.Field(description="How many tasks there are, for a check.")


class Preprocess(BaseConfig):
    """What happens to records as they are read."""

    truncate_and_slice: TruncateAndSlice | None = pydantic.Field(None, description="null: use all values.")
    downcast: DownCast | None = pydantic.Field(None, description="Narrower types of features; null: none.")
    rectify_labels: RectifyLabels | None = pydantic.Field(
        None, description="Take labels back that came too late after serving; null: take them as they are."
    )
    extract_features: ExtractFeatures | None = pydantic.Field(
        None, description="Single values of features, by names of their own; null: none."
    )
    downsample_negatives: DownsampleNegatives | None = pydantic.Field(
        None, description="Drop a share of the negatives of a batch; null: keep all rows."
    )


# A century: a longer stretch is a slip, and would take its time to look for.
_MOST_DAYS = 36_525


class ExplicitDateInputs(BaseConfig):
    """The files of so many days: of all *.parquet below data_root/YYYY/MM/DD."""

    data_root: str = pydantic.Field(min_length=1, description="Directory of the folders by year.")
    end_date: str = pydantic.Field(description="The last day, YYYY-MM-DD or YYYY/MM/DD.")
    days: int = pydantic.Field(gt=0, le=_MOST_DAYS, description="How many days, end_date among them.")
    num_missing_days_tol: pydantic.NonNegativeInt = pydantic.Field(
        0, description="So many days may be without a file; beyond, nothing is read."
    )

    @pydantic.field_validator("end_date")
    @classmethod
    def _is_a_day(cls, end_date: str) -> str:
        DAY.parse(end_date)
        return end_date


class ExplicitDatetimeInputs(BaseConfig):
    """The files of so many hours: of all *.parquet below data_root/YYYY/MM/DD/HH."""

    data_root: str = pydantic.Field(min_length=1, description="Directory of the folders by year.")
    end_datetime: str = pydantic.Field(
        description="The last hour, YYYY-MM-DDTHH, YYYY-MM-DD HH or YYYY/MM/DD/HH; minutes may follow, :00."
    )
    hours: int = pydantic.Field(gt=0, le=24 * _MOST_DAYS, description="How many hours, end_datetime's among them.")
    num_missing_hours_tol: pydantic.NonNegativeInt = pydantic.Field(
        0, description="So many hours may be without a file; beyond, nothing is read."
    )

    @pydantic.field_validator("end_datetime")
    @classmethod
    def _is_an_hour(cls, end_datetime: str) -> str:
        HOUR.parse(end_datetime)
        return end_datetime


class DatasetConfig(BaseConfig):
    """Where the files of a data set are, and how many examples make a batch."""

    inputs: str | None = pydantic.Field(
        None,
        min_length=1,
        description="Glob pattern, file, or directory of Parquet files.",
        json_schema_extra={"one_of": "date_inputs_format"},
    )
    explicit_datetime_inputs: ExplicitDatetimeInputs | None = pydantic.Field(
        None, description="Files of so many hours up to one.", json_schema_extra={"one_of": "date_inputs_format"}
    )
    explicit_date_inputs: ExplicitDateInputs | None = pydantic.Field(
        None, description="Files of so many days up to one.", json_schema_extra={"one_of": "date_inputs_format"}
    )
    global_batch_size: pydantic.PositiveInt = pydantic.Field(
        le=2**24, description="Examples per batch over all ranks; a multiple of lanes."
    )
    lanes: pydantic.PositiveInt = pydantic.Field(
        8,
        description="Parallel streams that the rows are dealt over; a multiple of the number of processes. The order "
        "of examples depends on it, and not on the number of processes.",
    )
    num_files_to_keep: pydantic.PositiveInt | None = pydantic.Field(
        None, description="Read at most so many files, the first by their paths; null: all."
    )
    prefetch_batches: pydantic.PositiveInt = pydantic.Field(
        8, description="Batches that a process makes ahead of the step that takes them."
    )
    decode_threads: pydantic.PositiveInt = pydantic.Field(
        2, description="Threads of a process that decode row groups before they are needed."
    )
    shuffle_window: pydantic.PositiveInt | None = pydantic.Field(
        None,
        le=2**40,
        description="Of training: rows of a lane that are shuffled together, at least; whole row groups. A lane holds "
        "two windows decoded. null: a row group.",
    )
    cache: bool = pydantic.Field(
        False,
        description="Keep decoded examples in memory, in each process, so that later epochs and evaluations decode "
        "nothing; refused where they don't fit.",
    )
    ignore_data_errors: NotSupportedYet = pydantic.Field(None, description="Go on after a record that can't be read.")
    repeat_files: WithoutEffect[bool] = pydantic.Field(
        True, description="training.num_epochs says how often files are read; an evaluation reads them once."
    )
    file_batch_size: WithoutEffect[pydantic.PositiveInt] = pydantic.Field(
        16, description="Of tf.data: files to read together; lanes say how many streams there are."
    )
    examples_shuffle_buffer_size: WithoutEffect[int] = pydantic.Field(
        1024, description="Of tf.data: an epoch of training is shuffled as a whole, an evaluation not at all."
    )
    map_num_parallel_calls: WithoutEffect[pydantic.PositiveInt] = pydantic.Field(
        None, description="Of tf.data: threads that parse records; decode_threads here."
    )
    interleave_num_parallel_calls: WithoutEffect[pydantic.PositiveInt] = pydantic.Field(
        None, description="Of tf.data: threads that read files."
    )
    data_service_dispatcher: WithoutEffect[str] = pydantic.Field(
        None, description="Of tf.data: address of a data service."
    )
    dataset_service_compression: WithoutEffect[Literal["AUTO"]] = pydantic.Field(
        None, description="Of tf.data: compression between data service and trainer."
    )


class RecapDataConfig(DatasetConfig):
    """A set of Parquet files and how batches of the Heavy Ranker are made of them."""

    seg_dense_schema: SegDenseSchema = pydantic.Field(description="The features.")
    tasks: dict[str, TaskData] = pydantic.Field(
        min_length=1,
        description="Labels in the data; those that the model has no tower for are not read, but for "
        "preprocess.downsample_negatives.",
    )
    weigh_loss_by_sampling_rates: bool = pydantic.Field(
        False,
        description="Of train_data: weigh examples in the loss by 1/rate, so that the model learns the probabilities "
        "before sampling; false: it learns those of the data as stored, and its calibrated_probabilities take sampling "
        "back. Evaluations always weigh examples so.",
    )
    evaluation_tasks: list[str] = pydantic.Field(
        [], description="Tasks that a partition of validation_data is evaluated on; empty: all of the model's."
    )
    preprocess: Preprocess | None = pydantic.Field(None, description="null: records are used as they are.")
    sampler: NotSupportedYet = pydantic.Field(None, description="Choose among examples as they are read.")
    weight_column: str | None = pydantic.Field(
        None, min_length=1, description="Column of example weights, for loss and metrics; null: every example counts 1."
    )
    reference_probability_prefix: str | None = pydantic.Field(
        None,
        min_length=1,
        description="The columns <prefix><task> hold the probability that the label was drawn from; metrics then tell "
        "the share of the reachable RCE that the model has learned.",
    )

    @pydantic.model_validator(mode="after")
    def _preprocess_fits(self) -> Self:
        """Labels that preprocessing names are keys of tasks, and a lane has room for both classes."""
        preprocess = self.preprocess or Preprocess()
        problems = []
        if (rectify := preprocess.rectify_labels) is not None:
            labels = list(rectify.label_to_engaged_timestamp_field)
            problems += self._not_in_tasks("rectify_labels.label_to_engaged_timestamp_field", labels)
        if (downsample := preprocess.downsample_negatives) is not None:
            place = "downsample_negatives"
            problems += self._not_in_tasks(f"{place}.engagements_list", downsample.engagements_list)
            if self.global_batch_size < 2 * self.lanes:
                problems.append(
                    f"preprocess.{place} needs at least two rows of every lane in a batch, for a positive and a "
                    f"negative, but global_batch_size is {self.global_batch_size} and lanes {self.lanes}; raise the "
                    "one or lower the other"
                )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _not_in_tasks(self, place: str, labels: list[str]) -> list[str]:
        unknown = [label for label in labels if label not in self.tasks]
        return [f"preprocess.{place} has {', '.join(unknown)} (not in tasks)"] if unknown else []
