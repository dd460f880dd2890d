"""Each option of `preprocess`, from files with rows made by hand to batches."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.reader.files import DataError
from common.reader.order import Position
from core.config.base_config import ConfigError
from core.losses import multi_task_cross_entropy
from projects.home.recap.data.batch import RecapBatch
from projects.home.recap.data.config import RecapDataConfig
from projects.home.recap.data.dataset import RecapDataset
from projects.home.recap.data.parquet import Column, RecapWriter, write_schema_json

HOUR = 3_600_000
SERVED = 1_700_000_000_000
TASKS = ("like", "reply")
COLUMNS = [
    Column("continuous", "float32", 5),
    Column("binary", "uint8", 3),
    Column("discrete", "int64", 4),
    Column("user_embedding", "float32", 2),
    *(Column(name, "int8") for name in (*TASKS, "share")),
    *(Column(f"{event}_ms", "int64") for event in ("served", "impressed", "liked", "replied")),
]

Rows = dict[str, np.ndarray[Any, Any]]


def numbered_rows(num_rows: int) -> Rows:
    """Rows that tell their number in continuous[0]."""
    number = np.arange(num_rows)
    times = {f"{event}_ms": np.full(num_rows, SERVED) for event in ("served", "impressed", "liked", "replied")}
    return {
        "continuous": (number[:, None] + np.array([0.0, 0.25, 0.5, 0.75, 100.0])).astype(np.float32),
        "binary": np.stack([number % 2, number % 3 == 0, number < 0], axis=1).astype(np.uint8),
        "discrete": np.stack([number % 7, number * 1000, np.full(num_rows, SERVED), -number], axis=1),
        "user_embedding": np.stack([number / 4, -number / 4], axis=1).astype(np.float32),
        "like": (number % 3 == 0).astype(np.int8),
        "reply": (number % 4 == 1).astype(np.int8),
        "share": (number % 5 == 2).astype(np.int8),
        **times,
    }


def write(folder: Path, rows: Rows, row_group_size: int = 7) -> None:
    write_schema_json(folder / "schema.json", COLUMNS[:4])
    with RecapWriter(folder / "part-0.parquet", COLUMNS, row_group_size) as writer:
        writer.write(rows)


def config(folder: Path, preprocess: dict[str, Any], **changes: Any) -> RecapDataConfig:
    given = {
        "inputs": str(folder),
        "global_batch_size": 32,
        "lanes": 1,
        "seg_dense_schema": {"schema_path": str(folder / "schema.json")},
        "tasks": {task: {} for task in (*TASKS, "share")},
        "preprocess": preprocess,
    }
    return RecapDataConfig.model_validate(given | changes)


def opened(data: RecapDataConfig, *, evaluation: bool = True) -> RecapDataset:
    return RecapDataset.open(data, TASKS, "train_data", evaluation=evaluation)


def in_stored_order(data: RecapDataConfig, num_rows: int) -> RecapBatch:
    """The rows as one batch, as an evaluation over one lane reads them, without those that fill it up."""
    [placed] = opened(data).reader(0, 1).evaluate()
    return placed.batch._map(lambda tensor: tensor[:num_rows])


# --- extract_features ---


def extract(*rows: tuple[str, str, int]) -> dict[str, Any]:
    """(name, source_tensor, index) of each."""
    table = [{"name": name, "source_tensor": source, "index": index} for name, source, index in rows]
    return {"extract_features": {"extract_feature_table": table}}


def test_extracted_values_are_in_the_batch_and_stay_in_their_vector(tmp_path):
    rows = numbered_rows(20)
    rows["discrete"][0] = [3, 9, SERVED, 5]
    write(tmp_path, rows)
    wanted = extract(
        ("kind", "discrete", 1), ("served", "discrete", 2), ("age", "continuous", 4), ("seen", "binary", 0)
    )
    batch = in_stored_order(config(tmp_path, wanted), 20)
    assert {name: values.dtype for name, values in batch.extracted.items()} == {
        "kind": torch.int64,
        "served": torch.int64,
        "age": torch.float32,
        "seen": torch.float32,
    }
    assert batch.extracted["kind"].tolist() == [9] + [1000 * row for row in range(1, 20)]
    assert batch.extracted["served"].tolist() == [SERVED] * 20
    assert batch.extracted["age"].tolist() == [100.0 + row for row in range(20)]
    assert batch.extracted["seen"].tolist() == [row % 2 for row in range(20)]
    assert batch.discrete is not None
    assert torch.equal(batch.discrete, torch.from_numpy(rows["discrete"]))
    assert torch.equal(batch.continuous, torch.from_numpy(rows["continuous"]))
    assert batch.to("meta").extracted["kind"].device.type == "meta"
    assert in_stored_order(config(tmp_path, {}), 20).extracted == {}


def test_the_index_counts_in_the_stored_vector(tmp_path):
    write(tmp_path, numbered_rows(20))
    truncated = extract(("age", "continuous", 4)) | {
        "truncate_and_slice": {"continuous_feature_truncation": 2},
        "downcast": {"features": {"continuous": "bfloat16"}},
    }
    batch = in_stored_order(config(tmp_path, truncated), 20)
    assert batch.continuous.shape == (20, 2)
    assert batch.extracted["age"].tolist() == [100.0 + row for row in range(20)]


def test_an_extracted_value_may_be_label_weight_or_reference(tmp_path):
    rows = numbered_rows(20)
    rows["continuous"][:, 3] = np.arange(20) / 20
    write(tmp_path, rows)
    wanted = extract(("seen", "binary", 0), ("age", "continuous", 4), ("p.seen", "continuous", 3))
    data = config(tmp_path, wanted, tasks={"seen": {}}, weight_column="age", reference_probability_prefix="p.")
    [placed] = RecapDataset.open(data, ["seen"], "v", evaluation=True).reader(0, 1).evaluate()
    assert placed.batch.labels[:20, 0].tolist() == [row % 2 for row in range(20)]
    assert placed.batch.weights[:20, 0].tolist() == [100.0 + row for row in range(20)]
    assert placed.batch.reference_probabilities is not None
    assert placed.batch.reference_probabilities[:20, 0].tolist() == rows["continuous"][:, 3].tolist()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("like", "discrete", 0), "the name 'like' is also a column of "),
        (("binary", "discrete", 0), "the name 'binary' is also a column of "),
        (("a", "discrete", 4), "'a' has index 4, but 'discrete' has 4 values, counted from 0"),
        (("a", "user_embeding", 0), "'a' has source_tensor 'user_embeding'; features that are read: continuous, "),
        (("a", "author_embedding", 0), "'a' has source_tensor 'author_embedding'; features that are read: "),
    ],
)
def test_extracting_what_is_not_there(tmp_path, row, message):
    write(tmp_path, numbered_rows(20))
    with pytest.raises(ConfigError) as caught:
        opened(config(tmp_path, extract(row)))
    place = "train_data.preprocess.extract_features.extract_feature_table"
    assert str(caught.value).startswith(f"{place}: {message}")


def test_an_extracted_label_must_be_0_or_1(tmp_path):
    write(tmp_path, numbered_rows(20))
    data = config(tmp_path, extract(("kind", "discrete", 0)), tasks={"kind": {}})
    with pytest.raises(DataError) as caught:
        list(RecapDataset.open(data, ["kind"], "v", evaluation=True).reader(0, 1).evaluate())
    place = f"{tmp_path}/part-0.parquet: row group 0, row 2 (both counted from 0)"
    assert str(caught.value) == f"{place}: column 'discrete', position 0: 2 found, a label is 0 or 1"


# --- rectify_labels ---

RECTIFY = {
    "served_timestamp_field": "served_ms",
    "impressed_timestamp_field": "impressed_ms",
    "label_to_engaged_timestamp_field": {"like": "liked_ms"},
}


def with_times(impressed: list[float], engaged: list[float]) -> Rows:
    """Rows with all labels 1; in hours after serving."""
    rows = numbered_rows(len(impressed)) | {task: np.ones(len(impressed), np.int8) for task in TASKS}
    rows["impressed_ms"] = SERVED + (np.array(impressed) * HOUR).astype(np.int64)
    rows["liked_ms"] = SERVED + (np.array(engaged) * HOUR).astype(np.int64)
    rows["replied_ms"] = rows["liked_ms"][::-1].copy()
    return rows


def test_late_labels_are_taken_back(tmp_path):
    rows = with_times(impressed=[1, 1, 3.5, 1, 1], engaged=[2, 3, 2, -0.5, 2])
    rows["like"][4] = 0
    write(tmp_path, rows)
    assert in_stored_order(config(tmp_path, {}), 5).labels.T.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    rectified = in_stored_order(config(tmp_path, {"rectify_labels": RECTIFY}), 5)
    assert rectified.labels.T.tolist() == [[1, 0, 0, 1, 0], [1, 1, 1, 1, 1]]
    wider = RECTIFY | {"label_rectification_window_in_hours": 3.25}
    assert in_stored_order(config(tmp_path, {"rectify_labels": wider}), 5).labels.T.tolist()[0] == [1, 1, 0, 1, 0]


def test_each_label_has_its_time(tmp_path):
    write(tmp_path, with_times(impressed=[1, 1, 3.5, 1], engaged=[2, 3, 2, -0.5]))
    both = RECTIFY | {"label_to_engaged_timestamp_field": {"like": "liked_ms", "reply": "replied_ms"}}
    assert in_stored_order(config(tmp_path, {"rectify_labels": both}), 4).labels.T.tolist() == [
        [1, 0, 0, 1],
        [1, 1, 0, 1],
    ]


def test_a_label_that_is_not_read_needs_no_time(tmp_path):
    write(tmp_path, with_times(impressed=[1, 1, 3.5, 1], engaged=[2, 3, 2, -0.5]))
    more = RECTIFY | {"label_to_engaged_timestamp_field": {"like": "liked_ms", "share": "never_written"}}
    assert in_stored_order(config(tmp_path, {"rectify_labels": more}), 4).labels.T.tolist()[0] == [1, 0, 0, 1]


def test_weights_by_sampling_rates_go_by_the_rectified_label(tmp_path):
    write(tmp_path, with_times(impressed=[1, 1], engaged=[2, 3]))
    rates = {"pos_downsampling_rate": 0.5, "neg_downsampling_rate": 0.25}
    data = config(tmp_path, {"rectify_labels": RECTIFY}, tasks={"like": rates, "reply": {}})
    assert in_stored_order(data, 2).weights.T.tolist() == [[2, 4], [1, 1]]


def test_times_may_be_extracted(tmp_path):
    rows = with_times(impressed=[1, 1, 3.5, 1], engaged=[2, 3, 2, -0.5])
    rows["discrete"][:, 3] = rows["liked_ms"]
    write(tmp_path, rows)
    fields = {
        "served_timestamp_field": "extracted_served",
        "label_to_engaged_timestamp_field": {"like": "extracted_liked"},
    }
    wanted = extract(("extracted_served", "discrete", 2), ("extracted_liked", "discrete", 3))
    data = config(tmp_path, wanted | {"rectify_labels": RECTIFY | fields})
    assert in_stored_order(data, 4).labels.T.tolist() == [[1, 0, 0, 1], [1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("field", "message"),
    [("seen_ms", "no column 'seen_ms'"), ("continuous", "column 'continuous': .* found, one value a row expected")],
)
def test_times_that_are_not_there(tmp_path, field, message):
    write(tmp_path, numbered_rows(20))
    with pytest.raises(DataError, match=rf"part-0\.parquet: {message}"):
        opened(config(tmp_path, {"rectify_labels": RECTIFY | {"impressed_timestamp_field": field}}))


# --- truncate_and_slice ---


def masked(folder: Path, values: list[int], name: str = "mask", kind: str = "continuous") -> dict[str, Any]:
    np.save(folder / f"{name}.npy", np.array(values, np.uint8))
    return {"truncate_and_slice": {f"{kind}_feature_mask_path": str(folder / f"{name}.npy")}}


def test_a_mask_chooses_values(tmp_path):
    rows = numbered_rows(20)
    rows["continuous"][0] = [5, 6, 7, 8, 9]
    write(tmp_path, rows)
    data = config(tmp_path, masked(tmp_path, [0, 1, 0, 0, 1]))
    batch = in_stored_order(data, 20)
    assert batch.continuous[0].tolist() == [6, 9]
    assert torch.equal(batch.continuous, torch.from_numpy(rows["continuous"][:, [1, 4]]))
    assert batch.continuous.is_contiguous()
    assert opened(data).widths.continuous == 2
    binary = in_stored_order(config(tmp_path, masked(tmp_path, [1, 0, 1], kind="binary")), 20).binary
    assert torch.equal(binary, torch.from_numpy(rows["binary"][:, [0, 2]]).float())


def test_a_mask_of_what_truncation_leaves(tmp_path):
    rows = numbered_rows(20)
    rows["continuous"][0] = [5, 6, 7, 8, 9]
    write(tmp_path, rows)
    both = masked(tmp_path, [1, 0, 0, 1])["truncate_and_slice"] | {"continuous_feature_truncation": 4}
    assert in_stored_order(config(tmp_path, {"truncate_and_slice": both}), 20).continuous[0].tolist() == [5, 8]


def test_data_sets_must_use_the_same_values(tmp_path):
    write(tmp_path, numbered_rows(20))
    train = opened(config(tmp_path, masked(tmp_path, [0, 1, 0, 0, 1])))
    opened(config(tmp_path, masked(tmp_path, [0, 1, 0, 0, 1], "copy"))).check_same_features(train, "validation_data.v")
    other = opened(config(tmp_path, masked(tmp_path, [0, 1, 0, 1, 0], "other")))
    assert other.widths == train.widths
    with pytest.raises(ConfigError, match=r"^validation_data\.v: of 'continuous' it uses other values than train_data"):
        other.check_same_features(train, "validation_data.v")


# --- downcast ---


def test_types_of_features_in_batches(tmp_path):
    rows = numbered_rows(20)
    rows["continuous"][0, 0] = 300.7
    rows["discrete"] %= 256
    rows["binary"][0] = [0, 1, 3]
    write(tmp_path, rows)
    dtypes = {"continuous": "bfloat16", "binary": "bool", "discrete": "uint8", "user_embedding": "float16"}
    batch = in_stored_order(config(tmp_path, {"downcast": {"features": dtypes}}), 20)
    assert batch.continuous.dtype == torch.bfloat16
    assert torch.equal(batch.continuous, torch.from_numpy(rows["continuous"]).bfloat16())
    assert batch.continuous[0, 0].item() == 300
    assert batch.binary[0].tolist() == [False, True, True]
    assert batch.discrete is not None
    assert batch.user_embedding is not None
    assert (batch.discrete.dtype, batch.discrete.tolist()) == (torch.uint8, rows["discrete"].tolist())
    assert (batch.user_embedding.dtype, batch.user_embedding.tolist()) == (
        torch.float16,
        rows["user_embedding"].tolist(),
    )
    wide = in_stored_order(config(tmp_path, {}), 20)
    assert torch.equal(batch.labels, wide.labels)
    assert (wide.continuous.dtype, wide.binary.dtype) == (torch.float32, torch.float32)
    half = in_stored_order(config(tmp_path, {"downcast": {"features": {"continuous": "float16"}}}), 20)
    assert half.continuous[0, 0].item() == 300.75


def test_floats_may_be_whole_numbers(tmp_path):
    rows = numbered_rows(20)
    rows["continuous"] = np.floor(rows["continuous"])
    write(tmp_path, rows)
    batch = in_stored_order(config(tmp_path, {"downcast": {"features": {"continuous": "uint8"}}}), 20)
    assert (batch.continuous.dtype, batch.continuous.tolist()) == (torch.uint8, rows["continuous"].tolist())


@pytest.mark.parametrize(
    ("feature", "dtype", "bad", "problem"),
    [
        ("continuous", "uint8", 2.5, "2.5 found, whole numbers from 0 to 255 can be uint8"),
        ("continuous", "float16", 1e5, "100000.0 found, magnitudes up to 65,504 can be float16"),
        ("discrete", "uint8", 256, "256 found, whole numbers from 0 to 255 can be uint8"),
    ],
)
def test_values_that_a_type_cannot_hold(tmp_path, feature, dtype, bad, problem):
    rows = numbered_rows(20)
    rows["continuous"] = np.floor(rows["continuous"])
    rows["discrete"] %= 256
    rows[feature][9, 1] = bad
    write(tmp_path, rows)
    narrow = {"downcast": {"features": {feature: dtype}}}
    with pytest.raises(DataError) as caught:
        in_stored_order(config(tmp_path, narrow), 20)
    assert str(caught.value).startswith(
        f"{tmp_path}/part-0.parquet: row group 1, row 2 (both counted from 0): column '{feature}': {problem}"
    )
    if feature == "continuous":  # a value that is not used does no harm
        in_stored_order(config(tmp_path, narrow | masked(tmp_path, [1, 0, 1, 1, 1])), 20)


# --- downsample_negatives ---

MULTIPLIER = 3


def downsample(engagements: list[str] | None = None, multiplier: int = MULTIPLIER) -> dict[str, Any]:
    return {
        "downsample_negatives": {
            "batch_multiplier": multiplier,
            "engagements_list": engagements or [],
            "num_engagements": 3,
        }
    }


def numbers(batch: RecapBatch) -> list[int]:
    """Of a batch's rows, less those that fill it up."""
    return batch.continuous[batch.weights[:, 0] > 0, 0].int().tolist()


def lanes_of(batch: RecapBatch, lanes: int) -> Iterator[tuple[list[int], list[float]]]:
    """Numbers and weights of the rows of each lane."""
    size = batch.batch_size // lanes
    for lane in range(lanes):
        part = batch._map(lambda tensor, begin=lane * size: tensor[begin : begin + size])  # type: ignore[misc]
        yield numbers(part), part.weights[part.weights[:, 0] > 0, 0].tolist()


@pytest.mark.parametrize(
    ("engagements", "positive"),
    [
        (["like"], lambda row: row % 3 == 0),
        (["like", "reply"], lambda row: row % 3 == 0 or row % 4 == 1),
        ([], lambda row: row % 3 == 0 or row % 4 == 1 or row % 5 == 2),  # share has no tower
    ],
)
@pytest.mark.parametrize("evaluation", [False, True])
def test_positives_are_kept_and_negatives_fill_up(tmp_path, engagements, positive, evaluation):
    """Lane by lane of each batch, compared with the rows that were read for it."""
    write(tmp_path, numbered_rows(200))
    sizes = {"global_batch_size": 16, "lanes": 2}
    chosen = opened(config(tmp_path, downsample(engagements), **sizes), evaluation=evaluation).reader(0, 1)
    sizes["global_batch_size"] *= MULTIPLIER
    read = opened(config(tmp_path, {}, **sizes), evaluation=evaluation).reader(0, 1)
    if evaluation:
        pairs = list(zip(chosen.evaluate(), read.evaluate(), strict=True))
    else:
        pairs = list(zip(chosen.train(seed=3), read.train(seed=3), strict=True))
    assert len(pairs) == (5 if evaluation else 4)
    shares = [
        (kept, of_all[0])
        for one, other in pairs
        for kept, of_all in zip(lanes_of(one.batch, 2), lanes_of(other.batch, 2), strict=True)
    ]
    for (kept, weights), rows in shares:
        num_positives = sum(map(positive, rows))
        num_negatives = len(rows) - num_positives
        assert len(kept) == min(8, len(rows))
        kept_positives = min(num_positives, 7)
        assert sum(map(positive, kept)) == kept_positives
        assert kept == [row for row in rows if row in kept], "in the order in which they were read"
        assert weights == pytest.approx(
            [
                (num_positives / kept_positives if positive(row) else num_negatives / (len(kept) - kept_positives))
                / MULTIPLIER
                for row in kept
            ]
        )
        assert sum(weights) == pytest.approx(len(rows) / MULTIPLIER)


def test_rectified_labels_decide_what_is_positive(tmp_path):
    rows = numbered_rows(24)
    rows["like"][:] = 1
    rows["liked_ms"][5:] += 4 * HOUR
    write(tmp_path, rows)
    data = config(tmp_path, downsample(["like"]) | {"rectify_labels": RECTIFY}, global_batch_size=8)
    [placed] = opened(data).reader(0, 1).evaluate()
    assert numbers(placed.batch)[:5] == [0, 1, 2, 3, 4]
    assert placed.batch.labels[:, 0].tolist() == [1.0] * 5 + [0.0] * 3
    assert placed.batch.weights[:, 0].tolist() == pytest.approx([1 / 3] * 5 + [19 / 9] * 3)


def test_weights_multiply_with_others(tmp_path):
    write(tmp_path, numbered_rows(24))
    rates = {"pos_downsampling_rate": 0.5, "neg_downsampling_rate": 0.25}
    tasks = {"like": rates, "reply": {}, "share": {}}
    wanted = downsample(["like"]) | extract(("age", "continuous", 4))
    data = config(tmp_path, wanted, global_batch_size=12, tasks=tasks, weight_column="age")
    [placed] = opened(data).reader(0, 1).evaluate()
    batch = placed.batch
    weights = batch.weights[:, 1] / batch.extracted["age"]
    like = batch.labels[:, 0] == 1
    assert weights.tolist() == pytest.approx(torch.where(like, 1 / 3, 16 / (4 * 3)).tolist())
    assert batch.weights[:, 0].tolist() == pytest.approx((batch.weights[:, 1] * torch.where(like, 2, 4)).tolist())


def test_processes_choose_the_same_rows_and_a_resume_goes_on_with_them(tmp_path):
    write(tmp_path, numbered_rows(200))
    dataset = opened(config(tmp_path, downsample(["like"]), global_batch_size=16, lanes=4), evaluation=False)

    def batches(ranks: int, position: Position | None = None) -> list[list[tuple[list[int], list[float]]]]:
        """Of each global batch, its lanes."""
        of_rank = [
            [placed.batch for placed in dataset.reader(rank, ranks).train(seed=5, num_epochs=2, position=position)]
            for rank in range(ranks)
        ]
        return [
            [list(lanes_of(of_rank[lane % ranks][step], 4 // ranks))[lane // ranks] for lane in range(4)]
            for step in range(len(of_rank[0]))
        ]

    alone = batches(1)
    assert len(alone) == 2 * (200 // 48)
    assert alone[0] != alone[4], "another epoch, other rows"
    assert batches(2) == batches(4) == alone
    places = [placed.position for placed in dataset.reader(0, 1).train(seed=5, num_epochs=2)]
    for done, position in enumerate(places, start=1):
        assert batches(2, position) == alone[done:]
    assert dataset.reader(0, 1).batches_per_epoch == 4
    assert dataset.reader(0, 1).remaining_batches(places[2], 2) == 5


def test_the_loss_is_that_of_all_rows_in_expectation(tmp_path):
    """Through the reader, over many epochs: loss and gradient of a linear model, within five standard errors."""
    write(tmp_path, numbered_rows(96), row_group_size=32)
    weight = torch.tensor([[0.03, -0.01], [-0.02, 0.04]], requires_grad=True)

    def loss_and_gradient(batch: RecapBatch) -> torch.Tensor:
        features = batch.continuous[:, [0, 4]] / 10 - 5
        loss = multi_task_cross_entropy(features @ weight.T, batch.labels, batch.weights, torch.ones(2))
        [gradient] = torch.autograd.grad(loss, weight)
        return torch.cat([loss.detach().reshape(1), gradient.reshape(-1)]).double()

    [everything] = opened(config(tmp_path, {}, global_batch_size=96), evaluation=False).reader(0, 1).train(seed=0)
    expected = loss_and_gradient(everything.batch)
    data = config(tmp_path, downsample(["like"], multiplier=4), global_batch_size=12, lanes=2)
    reader = opened(data, evaluation=False).reader(0, 1)
    batches = [placed.batch for placed in reader.train(seed=1, num_epochs=400)]
    unweighted = [dataclasses.replace(batch, weights=torch.ones_like(batch.weights)) for batch in batches]
    found = torch.stack([loss_and_gradient(batch) for batch in (*batches, *unweighted)])
    assert len(batches) == 800
    by_epoch = found.reshape(2, 400, 2, -1).mean(dim=2)
    difference = (by_epoch.mean(dim=1) - expected).abs() / (by_epoch.std(dim=1) / 400**0.5)
    assert (difference[0] < 5).all()
    assert (difference[1] > 5).any(), "without the weights there is a bias"


def test_an_evaluation_counts_every_row_alike(tmp_path):
    """Also those of the last, shorter shares: all weights sum to the rows over the multiplier, class by class."""
    write(tmp_path, numbered_rows(61))
    data = config(tmp_path, downsample(["like"], multiplier=4), global_batch_size=8, lanes=4)
    for ranks in (1, 2):
        batches = [placed.batch for rank in range(ranks) for placed in opened(data).reader(rank, ranks).evaluate()]
        weights = torch.cat([batch.weights[:, 0] for batch in batches]).double()
        labels = torch.cat([batch.labels[:, 0] for batch in batches]).double()
        assert weights.sum().item() == pytest.approx(61 / 4)
        assert (weights * labels).sum().item() == pytest.approx(21 / 4)


def test_another_number_of_tasks_than_was_meant(tmp_path):
    write(tmp_path, numbered_rows(20))
    with pytest.raises(ConfigError) as caught:
        opened(config(tmp_path, downsample(), tasks={task: {} for task in TASKS}))
    key = "train_data.preprocess.downsample_negatives.num_engagements"
    assert str(caught.value) == f"{key}: 3 given, but train_data.tasks has 2"


def test_too_few_rows_for_what_is_read_for_a_batch(tmp_path):
    write(tmp_path, numbered_rows(40))
    reader = opened(config(tmp_path, downsample(), global_batch_size=16, lanes=2), evaluation=False).reader(0, 1)
    with pytest.raises(DataError, match=f"{tmp_path}: 40 rows, fewer than "):
        reader.check_trainable()
