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
from projects.home.recap.model.config import SmallEmbeddingsConfig

TASKS = ("engagement.like", "engagement.reply", "engagement.share")
NUM_ROWS = 50
WIDTHS = Widths(continuous=6, binary=4, discrete=2, embedding=3)
COLUMNS = [
    *recap_columns(WIDTHS, TASKS, ids=True),
    TableColumn("weight", "float64"),
    *(TableColumn(f"teacher.{task}", "float32") for task in TASKS),
]


def made_rows(num_rows: int = NUM_ROWS) -> dict[str, np.ndarray[Any, Any]]:
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
    return made_rows()


@pytest.fixture
def folder(tmp_path: Path, rows: dict[str, np.ndarray[Any, Any]]) -> Path:
    """Two files of row groups of seven rows."""
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
    """All rows as one batch, without the rows that fill up; an evaluation over one lane reads them as stored."""
    one = data.model_copy(update={"lanes": 1, "global_batch_size": 64})
    [placed] = opened(one, tasks).reader(0, 1).evaluate()
    assert placed.batch.batch_size == 64
    return placed.batch


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
def test_the_same_batches_by_date(folder, choice, evaluation):
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


def test_a_missing_day_names_the_data_set(folder):
    dates = {"data_root": str(folder), "end_date": "2023-01-31", "days": 2}
    with pytest.raises(DataError, match=r"^train_data\.explicit_date_inputs: 2 of 2 days have no "):
        opened(config(folder, inputs=None, explicit_date_inputs=dates))


def test_rows_that_fill_up_weigh_nothing(folder):
    batch = in_stored_order(
        config(folder, weight_column="weight", tasks={task: {"neg_downsampling_rate": 0.1} for task in TASKS})
    )
    assert not batch.weights[NUM_ROWS:].any()
    assert not batch.labels[NUM_ROWS:].any()


def test_labels_in_the_order_asked_for(folder, rows):
    tasks = [TASKS[2], TASKS[0]]
    batch = in_stored_order(config(folder, reference_probability_prefix="teacher."), tasks)
    assert batch.tasks == tuple(tasks)
    assert torch.equal(batch.labels[:NUM_ROWS], stacked(rows, tasks=tasks))
    assert batch.reference_probabilities is not None
    assert torch.equal(batch.reference_probabilities[:NUM_ROWS], stacked(rows, "teacher.", tasks))


def test_labels_that_are_not_asked_for_are_not_read(folder):
    for part in folder.glob("*.parquet"):
        pq.write_table(with_lists(pq.read_table(part)).drop_columns([TASKS[1]]), part)
    assert in_stored_order(config(folder), [TASKS[0]]).labels.shape == (64, 1)


def test_subset_and_truncation(folder, rows):
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


def test_renamed_features(folder, rows):
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


def test_weight_column(folder, rows):
    batch = in_stored_order(config(folder, weight_column="weight"))
    expected = torch.from_numpy(rows["weight"]).float()[:, None].expand(-1, 3)
    assert torch.equal(batch.weights[:NUM_ROWS], expected)


def sampled(tmp_path: Path) -> tuple[dict[str, float], RecapDataConfig]:
    """Data of which every n-th positive and every m-th negative of a task was kept, and the rates before that."""
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
            writer.write(made_rows(len(kept)) | {task: kept})
    write_schema_json(tmp_path / "schema.json", COLUMNS)
    tasks = {
        task: dict(zip(("pos_downsampling_rate", "neg_downsampling_rate"), r, strict=True)) for task, r in rates.items()
    }
    return base_rates, config(tmp_path, tasks=tasks)


@pytest.mark.parametrize("task", TASKS[:2])
@pytest.mark.parametrize("ranks", [1, 4])
def test_evaluation_sees_the_data_before_sampling(tmp_path, task, ranks):
    base_rates, data = sampled(tmp_path)
    dataset = opened(data.model_copy(update={"inputs": str(tmp_path / task)}), [task])
    batches = [placed.batch for rank in range(ranks) for placed in dataset.reader(rank, ranks).evaluate()]
    weights = sum(batch.weights.double().sum() for batch in batches)
    positives = sum((batch.weights.double() * batch.labels).sum() for batch in batches)
    assert float(weights) == 4000, "each stored row stands for those that were dropped with it"
    assert float(positives / weights) == base_rates[task]


def test_training_sees_the_data_as_sampled(tmp_path):
    _, data = sampled(tmp_path)
    data = data.model_copy(update={"inputs": str(tmp_path / TASKS[0])})
    for placed in opened(data, TASKS[:1], evaluation=False).reader(0, 1).train(seed=0):
        assert torch.equal(placed.batch.weights, torch.ones(16, 1))


@pytest.mark.parametrize("weighs", [True, False])
def test_sampling_is_corrected_once(tmp_path, weighs):
    """By the weights of training batches or by the model's calibration, whichever is asked for."""
    _, data = sampled(tmp_path)
    data = data.model_copy(update={"inputs": str(tmp_path / TASKS[0]), "weigh_loss_by_sampling_rates": weighs})
    dataset = opened(data, TASKS[:2], evaluation=False)
    assert dataset.calibration_rates == dict(
        zip(TASKS[:2], [(1.0, 1.0)] * 2 if weighs else [(1.0, 0.25), (0.5, 0.125)], strict=True)
    )
    for placed in dataset.reader(0, 1).train(seed=0):
        labels, weights = placed.batch.labels, placed.batch.weights
        expected = torch.where(labels == 1, torch.tensor([1.0, 2.0]), torch.tensor([4.0, 8.0]))
        assert torch.equal(weights, expected if weighs else torch.ones_like(weights))


def test_rates_and_weight_column_multiply(folder, rows):
    rates = {"pos_downsampling_rate": 0.5, "neg_downsampling_rate": 0.25}
    data = config(folder, weight_column="weight", tasks={TASKS[0]: rates, TASKS[1]: {}, TASKS[2]: {}})
    batch = in_stored_order(data)
    factors = np.ones((NUM_ROWS, 3))
    factors[:, 0] = np.where(rows[TASKS[0]] == 1, 2, 4)
    assert batch.weights[:NUM_ROWS].tolist() == (rows["weight"][:, None] * factors).tolist()


# Reference probabilities.


def test_reference_probabilities_are_read_for_evaluation_alone(folder, rows):
    data = config(folder, reference_probability_prefix="teacher.")
    reference = in_stored_order(data).reference_probabilities
    assert reference is not None
    assert torch.equal(reference[:NUM_ROWS], stacked(rows, "teacher."))
    for placed in opened(data, evaluation=False).reader(0, 1).train(seed=0):
        assert placed.batch.reference_probabilities is None
    assert opened(data).has_reference
    assert not opened(config(folder)).has_reference


# Mistakes.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_column": "wait"}, "no column 'wait'"),
        ({"reference_probability_prefix": "student."}, f"no column 'student.{TASKS[0]}'"),
        ({"weight_column": "continuous"}, "column 'continuous': found .*, expected one value per row"),
    ],
)
def test_columns_that_are_not_there(folder, changes, message):
    with pytest.raises(DataError, match=rf"part-0\.parquet: {message}"):
        opened(config(folder, **changes))


def test_a_task_without_a_column(folder):
    data = config(folder, tasks={"engagement.love": {}})
    with pytest.raises(DataError, match=r"part-0\.parquet: no column 'engagement\.love'"):
        opened(data, ["engagement.love"])


def test_labels_must_be_integers(folder):
    with pytest.raises(DataError, match="column 'weight': found double, expected integers"):
        opened(config(folder, tasks={"weight": {}}), ["weight"])


def test_width_of_the_schema_is_not_that_of_the_files(folder):
    path = folder / "schema.json"
    path.write_text(path.read_text().replace('"length": 6', '"length": 7'))
    with pytest.raises(
        DataError, match=r"part-0\.parquet: column 'continuous': found binary vectors of 6 values, expected 7"
    ):
        opened(config(folder))


@pytest.mark.parametrize(
    ("column", "bad", "problem"),
    [
        (TASKS[1], 2, "found 2, a label must be 0 or 1"),
        ("weight", -1.0, "found -1.0, a weight must be at least 0"),
        (f"teacher.{TASKS[2]}", 1.5, "found 1.5, a probability must be between 0 and 1"),
    ],
)
def test_bad_values_are_told_with_their_place(folder, rows, column, bad, problem):
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
    assert str(caught.value).startswith(
        f"{part}: row group 2, row 3 (both counted from 0): column '{column}': {problem}"
    )


def tables(*tables: tuple[str, int, int]) -> SmallEmbeddingsConfig:
    """(name, num_embeddings, index) of each."""
    return SmallEmbeddingsConfig.model_validate(
        {"tables": [{"name": n, "num_embeddings": size, "embedding_dim": 2, "index": i} for n, size, i in tables]}
    )


@pytest.mark.parametrize(
    ("features", "index", "found"),
    [([], 2, "has 2 discrete features"), (["user_embedding"], 0, "reads no discrete features")],
)
def test_a_table_for_a_feature_that_is_not_there(folder, features, index, found):
    data = config(folder, seg_dense_schema={"schema_path": str(folder / "schema.json"), "features": features})
    with pytest.raises(ConfigError) as caught:
        RecapDataset.open(data, TASKS, "train_data", evaluation=False, small_embeddings=tables(("country", 3, index)))
    assert str(caught.value) == (
        f"model.small_embeddings.tables: the table country has index {index}, but train_data {found}; see "
        "train_data.seg_dense_schema"
    )


def test_an_id_beyond_the_smallest_table_of_its_feature(folder, rows):
    largest = int(rows["discrete"][:, 1].max())

    def read(num_embeddings: int) -> None:
        both = tables(("large", 2**62, 1), ("small", num_embeddings, 1))
        for evaluation in (True, False):
            dataset = RecapDataset.open(config(folder), TASKS, "v", evaluation=evaluation, small_embeddings=both)
            list(dataset.reader(0, 1).evaluate())

    read(largest + 1)
    with pytest.raises(
        DataError, match=rf"column 'discrete': found {largest} at position 1, ids must be between 0 and {largest - 1}"
    ):
        read(largest)


def test_check_same_features(folder):
    train = opened(config(folder))
    opened(config(folder)).check_same_features(train, "validation_data.v")
    truncation = {"truncate_and_slice": {"continuous_feature_truncation": 2}}
    other = opened(config(folder, preprocess=truncation))
    with pytest.raises(
        ConfigError,
        match=r"^validation_data\.v: its features are continuous\[2\], .*those of train_data continuous\[6\], ",
    ):
        other.check_same_features(train, "validation_data.v")


def test_check_batching(folder):
    check_batching(config(folder), "train_data", 2)
    with pytest.raises(ConfigError, match=r"^train_data: lanes 4 is not a multiple of the world size 3"):
        check_batching(config(folder), "train_data", 3)
