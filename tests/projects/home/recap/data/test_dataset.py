import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from common.errors import ConfigError
from common.files.table_writer import TableColumn, TableWriter
from common.reader.files import DataError
from common.reader.vectors import with_lists
from projects.home.recap.data.batch import RecapBatch
from projects.home.recap.data.config import RecapDataConfig
from projects.home.recap.data.dataset import RecapDataset, check_batching
from projects.home.recap.data.parquet import EMBEDDINGS, IDS, Widths, recap_columns, write_schema_json

TASKS = ("engagement.like", "engagement.reply", "engagement.share")
NUM_ROWS = 50
WIDTHS = Widths(continuous=6, binary=4, discrete=2, embedding=3)
COLUMNS = [
    *recap_columns(WIDTHS, TASKS, ids=True),
    TableColumn("weight", "float64"),
    *(TableColumn(f"teacher.{task}", "float32") for task in TASKS),
]


def create_rows(num_rows: int = NUM_ROWS) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return {
        "continuous": rng.normal(size=(num_rows, 6)).astype(np.float32),
        "binary": rng.integers(0, 2, (num_rows, 4)).astype(np.uint8),
        "discrete": rng.integers(0, 2**60, (num_rows, 2)),
        "weight": rng.integers(0, 5, num_rows).astype(np.float64),
        **{name: rng.normal(size=(num_rows, 3)).astype(np.float32) for name in EMBEDDINGS},
        **{name: rng.integers(0, 2**60, num_rows) for name in IDS},
        **{task: rng.integers(0, 2, num_rows).astype(np.int8) for task in TASKS},
        **{f"teacher.{task}": rng.random(num_rows).astype(np.float32) for task in TASKS},
    }


@pytest.fixture
def rows() -> dict[str, np.ndarray[Any, Any]]:
    return create_rows()


@pytest.fixture
def folder(tmp_path: Path, rows: dict[str, np.ndarray[Any, Any]]) -> Path:
    """A data set in two files, with row groups of seven rows."""
    write_schema_json(tmp_path / "schema.json", COLUMNS)
    for index, part in enumerate((slice(0, 30), slice(30, NUM_ROWS))):
        with TableWriter(tmp_path / f"part-{index}.parquet", COLUMNS, row_group_size=7) as writer:
            writer.write({name: values[part] for name, values in rows.items()})
    return tmp_path


def config(folder: Path, **changes: Any) -> RecapDataConfig:
    given = {
        "inputs": str(folder),
        "global_batch_size": 16,
        "lanes": 4,
        "seg_dense_schema": {"schema_path": str(folder / "schema.json")},
        "tasks": {task: {} for task in TASKS},
        **changes,
    }
    return RecapDataConfig.model_validate(given)


def opened(data: RecapDataConfig, tasks: Sequence[str] = TASKS, evaluation: bool = True) -> RecapDataset:
    return RecapDataset.open(data, tasks, "train_data", evaluation=evaluation)


def in_stored_order(data: RecapDataConfig, tasks: Sequence[str] = TASKS) -> RecapBatch:
    """Return all rows as one padded batch, in stored order, from an evaluation with one lane."""
    one = data.model_copy(update={"lanes": 1, "global_batch_size": 64})
    [positioned] = opened(one, tasks).reader(0, 1).evaluate()
    assert positioned.batch.batch_size == 64
    return positioned.batch


def stacked(rows: dict[str, Any], prefix: str = "", tasks: Sequence[str] = TASKS) -> torch.Tensor:
    return torch.from_numpy(np.stack([rows[prefix + task] for task in tasks], axis=1)).float()


def test_batches_hold_what_was_written(folder, rows):
    batch = in_stored_order(config(folder))
    for name in ("continuous", "binary", "discrete", *EMBEDDINGS):
        read, written = getattr(batch, name)[:NUM_ROWS], torch.from_numpy(rows[name])
        assert read.dtype == (torch.int64 if name == "discrete" else torch.float32)
        assert torch.equal(read, written.to(read.dtype)), name
        assert getattr(batch, name).is_contiguous()
    assert batch.tasks == TASKS
    assert torch.equal(batch.labels[:NUM_ROWS], stacked(rows))
    assert torch.equal(batch.weights[:NUM_ROWS], torch.ones(NUM_ROWS, 3))
    assert batch.labels.dtype == batch.weights.dtype == torch.float32
    assert batch.reference_probabilities is None


@pytest.mark.parametrize(
    "choice",
    [
        {"explicit_date_inputs": {"end_date": "2023-01-31", "days": 2}},
        {"explicit_datetime_inputs": {"end_datetime": "2023-01-31T05", "hours": 7, "num_missing_hours_tol": 5}},
    ],
)
@pytest.mark.parametrize("evaluation", [False, True])
def test_files_selected_by_date_give_the_same_batches(folder, choice, evaluation):
    for index, hour in enumerate(("30/23", "31/05")):
        (folder / "2023/01" / hour).mkdir(parents=True)
        (folder / "2023/01" / hour / "part.parquet").symlink_to(folder / f"part-{index}.parquet")
    [[key, given]] = choice.items()
    data = config(folder, inputs=None, **{key: {"data_root": str(folder), **given}})
    by_date, by_name = (opened(either, evaluation=evaluation).reader(0, 1) for either in (data, config(folder)))
    for one, other in zip(by_date.train(seed=1), by_name.train(seed=1), strict=True):
        assert torch.equal(one.batch.continuous, other.batch.continuous)
    assert torch.equal(in_stored_order(data).continuous, in_stored_order(config(folder)).continuous)
    first = in_stored_order(data.model_copy(update={"num_files_to_keep": 1}))
    assert first.weights[:, 0].sum() == 30


def test_a_missing_day_is_reported_with_the_key_path(folder):
    dates = {"data_root": str(folder), "end_date": "2023-01-31", "days": 2}
    with pytest.raises(DataError, match=r"^train_data\.explicit_date_inputs: 2 of 2 days "):
        opened(config(folder, inputs=None, explicit_date_inputs=dates))


def test_padding_rows_have_weight_0(folder):
    batch = in_stored_order(
        config(folder, weight_column="weight", tasks={task: {"neg_downsampling_rate": 0.1} for task in TASKS})
    )
    assert not batch.weights[NUM_ROWS:].any()
    assert not batch.labels[NUM_ROWS:].any()


def test_labels_have_the_requested_order(folder, rows):
    tasks = [TASKS[2], TASKS[0]]
    batch = in_stored_order(config(folder, reference_probability_prefix="teacher."), tasks)
    assert batch.tasks == tuple(tasks)
    assert torch.equal(batch.labels[:NUM_ROWS], stacked(rows, tasks=tasks))
    assert batch.reference_probabilities is not None
    assert torch.equal(batch.reference_probabilities[:NUM_ROWS], stacked(rows, "teacher.", tasks))


def test_labels_that_are_not_requested_are_not_read(folder):
    for part in folder.glob("*.parquet"):
        pq.write_table(with_lists(pq.read_table(part)).drop_columns([TASKS[1]]), part)
    assert in_stored_order(config(folder), [TASKS[0]]).labels.shape == (64, 1)


def test_reads_a_subset_of_features_and_truncates_them(folder, rows):
    schema = {"schema_path": str(folder / "schema.json"), "features": ["user_embedding"]}
    truncation = {"truncate_and_slice": {"continuous_feature_truncation": 2, "binary_feature_truncation": 3}}
    data = config(folder, seg_dense_schema=schema, preprocess=truncation)
    batch = in_stored_order(data)
    assert torch.equal(batch.continuous[:NUM_ROWS], torch.from_numpy(rows["continuous"][:, :2]))
    assert torch.equal(batch.binary[:NUM_ROWS], torch.from_numpy(rows["binary"][:, :3]).float())
    assert batch.user_embedding is not None
    assert batch.discrete is batch.author_embedding is batch.user_eng_embedding is None
    widths = opened(data).widths
    assert (widths.continuous, widths.binary, widths.embeddings) == (2, 3, {"user_embedding": 3})


def test_reads_renamed_features(folder, rows):
    for part in folder.glob("*.parquet"):
        table = with_lists(pq.read_table(part))
        names = ["home.recap.continuous" if name == "continuous" else name for name in table.column_names]
        pq.write_table(table.rename_columns(names), part)
    schema = (folder / "schema.json").read_text().replace('"continuous"', '"home.recap.continuous"')
    (folder / "schema.json").write_text(schema)
    renamed = {"schema_path": str(folder / "schema.json"), "renamed_features": {"continuous": "home.recap.continuous"}}
    batch = in_stored_order(config(folder, seg_dense_schema=renamed))
    assert torch.equal(batch.continuous[:NUM_ROWS], torch.from_numpy(rows["continuous"]))


# Weights.


def test_reads_the_weight_column(folder, rows):
    batch = in_stored_order(config(folder, weight_column="weight"))
    expected = torch.from_numpy(rows["weight"]).float()[:, None].expand(-1, 3)
    assert torch.equal(batch.weights[:NUM_ROWS], expected)


def sampled(tmp_path: Path) -> tuple[dict[str, float], RecapDataConfig]:
    """Write down-sampled data of two tasks; return their rates of positives before sampling, and the configuration."""
    rates = {TASKS[0]: (1.0, 0.25), TASKS[1]: (0.5, 0.125)}
    base_rates = {}
    for task, (positive, negative) in rates.items():
        labels = np.random.default_rng(1).permutation(np.arange(4000) < 320).astype(np.int8)
        base_rates[task] = labels.mean()
        of_label = np.where(labels == 1, np.cumsum(labels == 1), np.cumsum(labels == 0))
        kept = labels[of_label % np.where(labels == 1, 1 / positive, 1 / negative) == 0]
        assert kept.mean() > 1.5 * labels.mean(), "sampling has changed the rate"
        (tmp_path / task).mkdir()
        with TableWriter(tmp_path / task / "part.parquet", COLUMNS, row_group_size=100) as writer:
            writer.write(create_rows(len(kept)) | {task: kept})
    write_schema_json(tmp_path / "schema.json", COLUMNS)
    tasks = {
        task: dict(zip(("pos_downsampling_rate", "neg_downsampling_rate"), r, strict=True)) for task, r in rates.items()
    }
    return base_rates, config(tmp_path, tasks=tasks)


@pytest.mark.parametrize("task", TASKS[:2])
@pytest.mark.parametrize("ranks", [1, 4])
def test_evaluation_weights_correct_for_sampling(tmp_path, task, ranks):
    base_rates, data = sampled(tmp_path)
    dataset = opened(data.model_copy(update={"inputs": str(tmp_path / task)}), [task])
    batches = [positioned.batch for rank in range(ranks) for positioned in dataset.reader(rank, ranks).evaluate()]
    weights = sum(batch.weights.double().sum() for batch in batches)
    positives = sum((batch.weights.double() * batch.labels).sum() for batch in batches)
    assert float(weights) == 4000, "each stored row also counts for the dropped rows"
    assert float(positives / weights) == base_rates[task]


def test_training_weights_do_not_correct_for_sampling_by_default(tmp_path):
    _, data = sampled(tmp_path)
    data = data.model_copy(update={"inputs": str(tmp_path / TASKS[0])})
    for positioned in opened(data, TASKS[:1], evaluation=False).reader(0, 1).train(seed=0):
        assert torch.equal(positioned.batch.weights, torch.ones(16, 1))


@pytest.mark.parametrize("weighted", [True, False])
def test_sampling_is_corrected_once(tmp_path, weighted):
    """Either the weights of training batches or the model's calibration correct for sampling, never both."""
    _, data = sampled(tmp_path)
    data = data.model_copy(update={"inputs": str(tmp_path / TASKS[0]), "weigh_loss_by_sampling_rates": weighted})
    dataset = opened(data, TASKS[:2], evaluation=False)
    assert dataset.calibration_rates == dict(
        zip(TASKS[:2], [(1.0, 1.0)] * 2 if weighted else [(1.0, 0.25), (0.5, 0.125)], strict=True)
    )
    for positioned in dataset.reader(0, 1).train(seed=0):
        labels, weights = positioned.batch.labels, positioned.batch.weights
        expected = torch.where(labels == 1, torch.tensor([1.0, 2.0]), torch.tensor([4.0, 8.0]))
        assert torch.equal(weights, expected if weighted else torch.ones_like(weights))


def test_sampling_weights_multiply_the_weight_column(folder, rows):
    rates = {"pos_downsampling_rate": 0.5, "neg_downsampling_rate": 0.25}
    data = config(folder, weight_column="weight", tasks={TASKS[0]: rates, TASKS[1]: {}, TASKS[2]: {}})
    batch = in_stored_order(data)
    factors = np.ones((NUM_ROWS, 3))
    factors[:, 0] = np.where(rows[TASKS[0]] == 1, 2, 4)
    assert batch.weights[:NUM_ROWS].tolist() == (rows["weight"][:, None] * factors).tolist()


# Reference probabilities.


def test_reference_probabilities_are_read_only_for_evaluation(folder, rows):
    data = config(folder, reference_probability_prefix="teacher.")
    reference = in_stored_order(data).reference_probabilities
    assert reference is not None
    assert torch.equal(reference[:NUM_ROWS], stacked(rows, "teacher."))
    for positioned in opened(data, evaluation=False).reader(0, 1).train(seed=0):
        assert positioned.batch.reference_probabilities is None
    assert opened(data).has_reference
    assert not opened(config(folder)).has_reference


# Errors.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_column": "wait"}, "no column 'wait'"),
        ({"reference_probability_prefix": "student."}, f"no column 'student.{TASKS[0]}'"),
        ({"weight_column": "continuous"}, "column 'continuous': .*one value"),
    ],
)
def test_a_missing_or_unsuitable_column_is_an_error(folder, changes, message):
    with pytest.raises(DataError, match=rf"part-0\.parquet: {message}"):
        opened(config(folder, **changes))


def test_a_task_without_a_column_is_an_error(folder):
    data = config(folder, tasks={"engagement.love": {}})
    with pytest.raises(DataError, match=r"part-0\.parquet: no column 'engagement\.love'"):
        opened(data, ["engagement.love"])


def test_labels_must_be_0_or_1(folder):
    dataset = opened(config(folder, tasks={"weight": {}}), ["weight"])
    with pytest.raises(DataError, match=r"column 'weight': found [\d.]+, but a label must be 0 or 1"):
        list(dataset.reader(0, 1).evaluate())


def test_a_schema_with_another_width_than_the_files_is_an_error(folder):
    path = folder / "schema.json"
    path.write_text(path.read_text().replace('"length": 6', '"length": 7'))
    with pytest.raises(
        DataError, match=r"part-0\.parquet: column 'continuous': .*binary vectors of 6 values.*(7 expected|expected 7)"
    ):
        opened(config(folder))


@pytest.mark.parametrize(
    ("column", "bad", "problem"),
    [
        (TASKS[1], 2, r"\b2\b.*label.*0 or 1"),
        ("weight", -1.0, r"-1\.0\b.*a weight"),
        (f"teacher.{TASKS[2]}", 1.5, r"\b1\.5\b.*probability.*between 0 and 1"),
    ],
)
def test_a_bad_value_is_reported_with_file_row_group_and_row(folder, rows, column, bad, problem):
    values = rows[column].copy()
    values[47] = bad  # the second file begins at 30: row group 2, row 3
    part = folder / "part-1.parquet"
    table = with_lists(pq.read_table(part))
    index = table.column_names.index(column)
    pq.write_table(table.set_column(index, column, pa.array(values[30:])), part, row_group_size=7)
    data = config(folder, weight_column="weight", reference_probability_prefix="teacher.")
    batches = opened(data).reader(0, 1).evaluate()
    with pytest.raises(DataError) as caught:
        list(batches)
    assert re.match(rf"{part}: row group 2, row 3 \(.*\): column '{column}': .*{problem}", str(caught.value))


def test_an_id_outside_its_table_is_an_error(folder, rows):
    largest = int(rows["discrete"][:, 1].max())

    def read(num_ids: int) -> None:
        for evaluation in (True, False):
            dataset = RecapDataset.open(config(folder), TASKS, "v", evaluation=evaluation, num_ids={1: num_ids})
            list(dataset.reader(0, 1).evaluate())

    read(largest + 1)
    with pytest.raises(
        DataError, match=rf"column 'discrete': .*{largest}\b.* position 1\b.* 0 (to|and) {largest - 1}\b"
    ):
        read(largest)


def test_check_same_features_rejects_other_widths(folder):
    train = opened(config(folder))
    opened(config(folder)).check_same_features(train, "validation_data.v")
    truncation = {"truncate_and_slice": {"continuous_feature_truncation": 2}}
    other = opened(config(folder, preprocess=truncation))
    with pytest.raises(
        ConfigError,
        match=r"^validation_data\.v: .*continuous\[2\], .*train_data.*continuous\[6\], ",
    ):
        other.check_same_features(train, "validation_data.v")


def test_check_batching_rejects_lanes_that_do_not_fit_the_world_size(folder):
    check_batching(config(folder), "train_data", 2)
    with pytest.raises(ConfigError, match=r"^train_data: lanes\D*4\b.*world size\D*3\b"):
        check_batching(config(folder), "train_data", 3)
