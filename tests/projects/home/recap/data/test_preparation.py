"""Tests of the options of `preprocess`, from files of known rows to batches. test_negative_sampling.py tests
downsample_negatives."""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import ConfigError
from common.reader.files import DataError
from projects.home.recap.data.dataset import RecapDataset
from projects.home.recap.data.preparation import ColumnKey, Extracted, Label, Reference, Timestamp
from tests.support.numbered_rows import (
    RECTIFY,
    SERVED,
    config,
    extract,
    in_stored_order,
    numbered_rows,
    opened,
    with_times,
    write,
)

# --- Keys of columns ---


def test_keys_with_the_same_name_and_different_roles_are_different():
    keys: list[ColumnKey | str] = [Label("a"), Reference("a"), Timestamp("a"), Extracted("a"), "a"]
    assert all(one != other for one, other in itertools.combinations(keys, 2))
    assert len(set(keys)) == 5
    assert {Label("a"): 1}[Label("a")] == 1


def test_one_column_may_have_several_roles(tmp_path):
    rows = numbered_rows(20)
    write(tmp_path, rows)
    times = {"served_timestamp_field": "like", "impressed_timestamp_field": "like"}
    rectify = RECTIFY | times | {"label_to_engaged_timestamp_field": {"like": "like"}}
    extracted = extract(("labels", "continuous", 4), ("weight", "continuous", 0))
    data = config(tmp_path, {"rectify_labels": rectify} | extracted, tasks={"like": {}}, weight_column="like")
    [positioned] = RecapDataset.open(data, ["like"], "v", evaluation=True).reader(0, 1).evaluate()
    batch = positioned.batch
    like = torch.from_numpy(rows["like"]).float()
    assert torch.equal(batch.labels[:20, 0], like)
    assert torch.equal(batch.weights[:20, 0], like)
    assert batch.extracted["labels"][:20].tolist() == [100.0 + row for row in range(20)]
    assert batch.extracted["weight"][:20].tolist() == rows["continuous"][:, 0].tolist()


# --- extract_features ---


def test_extracted_values_are_in_the_batch_and_remain_in_their_feature(tmp_path):
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


def test_the_index_is_a_position_in_the_stored_feature(tmp_path):
    write(tmp_path, numbered_rows(20))
    truncated = extract(("age", "continuous", 4)) | {
        "truncate_and_slice": {"continuous_feature_truncation": 2},
        "downcast": {"features": {"continuous": "bfloat16"}},
    }
    batch = in_stored_order(config(tmp_path, truncated), 20)
    assert batch.continuous.shape == (20, 2)
    assert batch.extracted["age"].tolist() == [100.0 + row for row in range(20)]


def test_an_extracted_value_may_be_a_label_weight_or_reference(tmp_path):
    rows = numbered_rows(20)
    rows["continuous"][:, 3] = np.arange(20) / 20
    write(tmp_path, rows)
    wanted = extract(("seen", "binary", 0), ("age", "continuous", 4), ("p.seen", "continuous", 3))
    data = config(tmp_path, wanted, tasks={"seen": {}}, weight_column="age", reference_probability_prefix="p.")
    [positioned] = RecapDataset.open(data, ["seen"], "v", evaluation=True).reader(0, 1).evaluate()
    assert positioned.batch.labels[:20, 0].tolist() == [row % 2 for row in range(20)]
    assert positioned.batch.weights[:20, 0].tolist() == [100.0 + row for row in range(20)]
    assert positioned.batch.reference_probabilities is not None
    assert positioned.batch.reference_probabilities[:20, 0].tolist() == rows["continuous"][:, 3].tolist()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("like", "discrete", 0), "'like' is also a column of "),
        (("binary", "discrete", 0), "'binary' is also a column of "),
        (("a", "discrete", 4), r"'a' has index 4 \(counted from 0\), but 'discrete' has 4 values"),
        (("a", "user_embeding", 0), "'a' has source_tensor 'user_embeding', .*features that are read: continuous, "),
        (("a", "author_embedding", 0), "'a' has source_tensor 'author_embedding', .*features that are read: "),
    ],
)
def test_an_invalid_extraction_is_an_error(tmp_path, row, message):
    write(tmp_path, numbered_rows(20))
    with pytest.raises(ConfigError) as caught:
        opened(config(tmp_path, extract(row)))
    key_path = "train_data.preprocess.extract_features.extract_feature_table"
    assert re.match(f"{key_path}: {message}", str(caught.value))


def test_an_extracted_label_must_be_0_or_1(tmp_path):
    write(tmp_path, numbered_rows(20))
    data = config(tmp_path, extract(("kind", "discrete", 0)), tasks={"kind": {}})
    with pytest.raises(DataError) as caught:
        list(RecapDataset.open(data, ["kind"], "v", evaluation=True).reader(0, 1).evaluate())
    row = rf"{tmp_path}/part-0.parquet: row group 0, row 2 \(.*\)"
    assert re.match(rf"{row}: column 'discrete', position 0: .*\b2\b.*label.*0 or 1", str(caught.value))


# --- rectify_labels ---


def test_late_labels_become_0(tmp_path):
    rows = with_times(impressed=[1, 1, 3.5, 1, 1], engaged=[2, 3, 2, -0.5, 2])
    rows["like"][4] = 0
    write(tmp_path, rows)
    assert in_stored_order(config(tmp_path, {}), 5).labels.T.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    rectified = in_stored_order(config(tmp_path, {"rectify_labels": RECTIFY}), 5)
    assert rectified.labels.T.tolist() == [[1, 0, 0, 1, 0], [1, 1, 1, 1, 1]]
    wider = RECTIFY | {"label_rectification_window_in_hours": 3.25}
    assert in_stored_order(config(tmp_path, {"rectify_labels": wider}), 5).labels.T.tolist()[0] == [1, 1, 0, 1, 0]


def test_each_label_has_its_own_timestamp(tmp_path):
    write(tmp_path, with_times(impressed=[1, 1, 3.5, 1], engaged=[2, 3, 2, -0.5]))
    both = RECTIFY | {"label_to_engaged_timestamp_field": {"like": "liked_ms", "reply": "replied_ms"}}
    assert in_stored_order(config(tmp_path, {"rectify_labels": both}), 4).labels.T.tolist() == [
        [1, 0, 0, 1],
        [1, 1, 0, 1],
    ]


def test_a_label_that_is_not_read_needs_no_timestamp(tmp_path):
    write(tmp_path, with_times(impressed=[1, 1, 3.5, 1], engaged=[2, 3, 2, -0.5]))
    more = RECTIFY | {"label_to_engaged_timestamp_field": {"like": "liked_ms", "share": "never_written"}}
    assert in_stored_order(config(tmp_path, {"rectify_labels": more}), 4).labels.T.tolist()[0] == [1, 0, 0, 1]


def test_sampling_weights_depend_on_the_rectified_label(tmp_path):
    write(tmp_path, with_times(impressed=[1, 1], engaged=[2, 3]))
    rates = {"pos_downsampling_rate": 0.5, "neg_downsampling_rate": 0.25}
    data = config(tmp_path, {"rectify_labels": RECTIFY}, tasks={"like": rates, "reply": {}})
    assert in_stored_order(data, 2).weights.T.tolist() == [[2, 4], [1, 1]]


def test_timestamps_may_be_extracted_values(tmp_path):
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
    [("seen_ms", "no column 'seen_ms'"), ("continuous", "column 'continuous': .*one value")],
)
def test_a_missing_or_unsuitable_timestamp_column_is_an_error(tmp_path, field, message):
    write(tmp_path, numbered_rows(20))
    with pytest.raises(DataError, match=rf"part-0\.parquet: {message}"):
        opened(config(tmp_path, {"rectify_labels": RECTIFY | {"impressed_timestamp_field": field}}))


# --- truncate_and_slice ---


def masked(folder: Path, values: list[int], name: str = "mask", kind: str = "continuous") -> dict[str, Any]:
    np.save(folder / f"{name}.npy", np.array(values, np.uint8))
    return {"truncate_and_slice": {f"{kind}_feature_mask_path": str(folder / f"{name}.npy")}}


def test_a_mask_selects_values(tmp_path):
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


def test_a_mask_applies_after_truncation(tmp_path):
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
    with pytest.raises(ConfigError, match=r"^validation_data\.v: .*'continuous'.* train_data"):
        other.check_same_features(train, "validation_data.v")


# --- downcast ---


def test_downcast_features_have_their_types_in_batches(tmp_path):
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


def test_floats_that_are_integers_fit_an_integer_type(tmp_path):
    rows = numbered_rows(20)
    rows["continuous"] = np.floor(rows["continuous"])
    write(tmp_path, rows)
    batch = in_stored_order(config(tmp_path, {"downcast": {"features": {"continuous": "uint8"}}}), 20)
    assert (batch.continuous.dtype, batch.continuous.tolist()) == (torch.uint8, rows["continuous"].tolist())


@pytest.mark.parametrize(
    ("feature", "dtype", "bad", "problem"),
    [
        ("continuous", "uint8", 2.5, r"\b2\.5\b.*from 0 to 255\b"),
        ("continuous", "float16", 1e5, r"\b100000\.0\b.*65,504\b"),
        ("discrete", "uint8", 256, r"\b256\b.*from 0 to 255\b"),
    ],
)
def test_a_value_that_its_type_cannot_hold_is_an_error(tmp_path, feature, dtype, bad, problem):
    rows = numbered_rows(20)
    rows["continuous"] = np.floor(rows["continuous"])
    rows["discrete"] %= 256
    rows[feature][9, 1] = bad
    write(tmp_path, rows)
    narrow = {"downcast": {"features": {feature: dtype}}}
    with pytest.raises(DataError) as caught:
        in_stored_order(config(tmp_path, narrow), 20)
    row = rf"{tmp_path}/part-0.parquet: row group 1, row 2 \(.*\)"
    assert re.match(rf"{row}: column '{feature}': .*{problem}", str(caught.value))
    if feature == "continuous":  # an unused value is not checked
        in_stored_order(config(tmp_path, narrow | masked(tmp_path, [1, 0, 1, 1, 1])), 20)
