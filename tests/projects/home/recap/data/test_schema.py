import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import ConfigError
from projects.home.recap.data.config import RecapDataConfig
from projects.home.recap.data.parquet import Widths, recap_columns, write_schema_json
from projects.home.recap.data.schema import Feature, FeatureWidths, feature_widths, read_features, read_schema

KEY_PATH = "train_data.seg_dense_schema"


@pytest.fixture
def schema_path(tmp_path: Path) -> Path:
    path = tmp_path / "schema.json"
    write_schema_json(path, recap_columns(Widths(continuous=9, binary=5, discrete=2, embedding=4), tasks=["like"]))
    return path


def config(schema_path: Path, truncation: dict[str, Any] | None = None, **schema: Any) -> RecapDataConfig:
    return RecapDataConfig.model_validate(
        {
            "inputs": "unused",
            "global_batch_size": 8,
            "seg_dense_schema": {"schema_path": str(schema_path), **schema},
            "tasks": {"like": {}},
            "preprocess": None if truncation is None else {"truncate_and_slice": truncation},
        }
    )


def error_of(schema_path: Path, truncation: dict[str, Any] | None = None, **schema: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read_features(config(schema_path, truncation, **schema), "train_data")
    return str(caught.value)


def test_reads_all_features_of_the_schema_by_default(schema_path):
    features = read_features(config(schema_path), "train_data")
    assert features == {
        "continuous": Feature("continuous", torch.float32, 9, 9),
        "binary": Feature("binary", torch.float32, 5, 5),
        "discrete": Feature("discrete", torch.int64, 2, 2),
        "user_embedding": Feature("user_embedding", torch.float32, 4, 4),
        "user_eng_embedding": Feature("user_eng_embedding", torch.float32, 4, 4),
        "author_embedding": Feature("author_embedding", torch.float32, 4, 4),
    }
    assert feature_widths(features) == FeatureWidths(
        9, 5, {"user_embedding": 4, "user_eng_embedding": 4, "author_embedding": 4}, discrete=2
    )


def test_a_subset_of_features_always_includes_continuous_and_binary(schema_path):
    features = read_features(config(schema_path, features=["author_embedding"]), "train_data")
    assert list(features) == ["continuous", "binary", "author_embedding"]
    assert feature_widths(features) == FeatureWidths(9, 5, {"author_embedding": 4})


def test_a_feature_that_the_schema_lacks_is_an_error_only_if_selected(tmp_path):
    path = tmp_path / "schema.json"
    entries = [{"feature_name": name, "dtype": "float_list", "length": 3} for name in ("continuous", "binary")]
    path.write_text(json.dumps({"schema": entries}))
    assert list(read_features(config(path), "train_data")) == ["continuous", "binary"]
    assert error_of(path, features=["continuous", "binary", "user_embedding"]) == (
        f"{KEY_PATH}: 'user_embedding' (user_embedding) is not in {path}, which has continuous, binary"
    )


def test_truncation_keeps_the_first_values(schema_path):
    truncated = config(schema_path, {"continuous_feature_truncation": 7, "binary_feature_truncation": 5})
    features = read_features(truncated, "train_data")
    assert (features["continuous"].width, features["continuous"].keep) == (9, 7)
    assert (features["binary"].width, features["binary"].keep) == (5, 5)
    assert feature_widths(features).continuous == 7
    only_binary = read_features(config(schema_path, {"binary_feature_truncation": 1}), "train_data")
    assert feature_widths(only_binary) == dataclasses.replace(feature_widths(features), continuous=9, binary=1)


@pytest.mark.parametrize(("kind", "width"), [("continuous", 9), ("binary", 5)])
def test_truncation_to_more_values_than_exist_is_an_error(schema_path, kind, width):
    message = error_of(schema_path, {f"{kind}_feature_truncation": width + 1})
    assert message.startswith(f"train_data.preprocess.truncate_and_slice.{kind}_feature_truncation is {width + 1}, ")
    assert f"'{kind}' has {width} values" in message
    assert str(schema_path) in message


def mask(folder: Path, values: list[int]) -> str:
    np.save(folder / "mask.npy", np.array(values, bool))
    return str(folder / "mask.npy")


def test_a_mask_selects_values(schema_path, tmp_path):
    masked = {"continuous_feature_mask_path": mask(tmp_path, [0, 1, 1, 0, 0, 0, 0, 1, 0])}
    features = read_features(config(schema_path, masked), "train_data")
    assert features["continuous"] == Feature("continuous", torch.float32, 9, 3, positions=(1, 2, 7))
    assert features["binary"].positions is None
    assert (feature_widths(features).continuous, feature_widths(features).binary) == (3, 5)


def test_a_mask_applies_after_truncation(schema_path, tmp_path):
    given = {"binary_feature_truncation": 4, "binary_feature_mask_path": mask(tmp_path, [1, 0, 0, 1])}
    features = read_features(config(schema_path, given), "train_data")
    assert (features["binary"].width, features["binary"].keep, features["binary"].positions) == (5, 2, (0, 3))
    assert feature_widths(features).binary == 2
    path = mask(tmp_path, [1, 0, 0, 1, 1])
    message = error_of(schema_path, given)
    key_path = "train_data.preprocess.truncate_and_slice.binary_feature_mask_path"
    assert message.startswith(f"{key_path}: {path} holds 5 values; expected an .npy file of 4 booleans")


def test_a_mask_that_keeps_the_first_values_equals_a_truncation(schema_path, tmp_path):
    masked = config(schema_path, {"binary_feature_mask_path": mask(tmp_path, [1, 1, 1, 0, 0])})
    truncated = config(schema_path, {"binary_feature_truncation": 3})
    assert read_features(masked, "train_data") == read_features(truncated, "train_data")


def downcast(schema_path: Path, dtypes: dict[str, str], **schema: Any) -> RecapDataConfig:
    preprocess = {"preprocess": {"downcast": {"features": dtypes}}}
    return RecapDataConfig.model_validate(config(schema_path, **schema).model_dump(exclude_unset=True) | preprocess)


def test_downcast_sets_narrower_types(schema_path):
    given = {"continuous": "bfloat16", "binary": "bool", "discrete": "uint8", "user_embedding": "float16"}
    features = read_features(downcast(schema_path, given), "train_data")
    assert {name: feature.narrow for name, feature in features.items()} == {
        "continuous": torch.bfloat16,
        "binary": torch.bool,
        "discrete": torch.uint8,
        "user_embedding": torch.float16,
        "user_eng_embedding": None,
        "author_embedding": None,
    }
    assert features["continuous"].dtype == torch.float32


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"discrete": "float16"}, "'discrete' cannot be float16; allowed: uint8"),
        ({"user_embedding": "bool"}, "'user_embedding' cannot be bool; allowed: float32, bfloat16, float16"),
        ({"labels": "uint8"}, "'labels' is not one of the features that are read: continuous, binary, user_embedding"),
        ({"discrete": "uint8", "binary": "bool"}, "'discrete' is not one of the features that are read: "),
    ],
)
def test_a_type_that_does_not_suit_its_feature_is_an_error(schema_path, given, message):
    only: Any = {} if "float16;" in message else {"features": ["user_embedding"]}
    with pytest.raises(ConfigError) as caught:
        read_features(downcast(schema_path, given, **only), "train_data")
    assert str(caught.value).startswith(f"train_data.preprocess.downcast.features: {message}")


def test_reads_renamed_features(tmp_path):
    path = tmp_path / "schema.json"
    lengths = {"our.continuous": 9, "binary": 5, "timelines.author.embedding": 200}
    path.write_text(json.dumps({"schema": [{"feature_name": k, "length": v} for k, v in lengths.items()]}))
    renamed = {
        "continuous": "our.continuous",
        "author_embedding": "timelines.author.embedding",
        "meta__user_id": "the.user",  # not a feature, but in YAMLs of the original
    }
    features = read_features(config(path, renamed_features=renamed), "train_data")
    assert {name: (feature.column, feature.width) for name, feature in features.items()} == {
        "continuous": ("our.continuous", 9),
        "binary": ("binary", 5),
        "author_embedding": ("timelines.author.embedding", 200),
    }


def test_a_new_name_that_the_schema_lacks_is_an_error(schema_path):
    message = error_of(schema_path, renamed_features={"continuous": "our.continuous"})
    assert message.startswith(
        f"{KEY_PATH}: 'our.continuous' (continuous) is not in {schema_path}, which has continuous, "
    )


@pytest.mark.parametrize("ours", ["continuous", "author_embedding"])
def test_renaming_a_feature_that_has_its_standard_name_is_an_error(ours, schema_path):
    """This happens after a conversion. Without the error, an embedding would be skipped silently."""
    message = error_of(schema_path, renamed_features={ours: "theirs"})
    assert f"'theirs' ({ours}) is not in " in message
    assert "remove renamed_features" in message


@pytest.mark.parametrize("key", ["features", "renamed_features"])
def test_an_unknown_feature_is_an_error(schema_path, key):
    given: Any = ["continous"] if key == "features" else {"continous": "continuous"}
    message = error_of(schema_path, None, **{key: given})
    assert message.startswith(f"{KEY_PATH}: ")
    assert "'continous'" in message
    assert message.endswith(": continuous, binary, discrete, user_embedding, user_eng_embedding, author_embedding")


def test_an_id_is_not_a_feature(schema_path):
    assert f"{KEY_PATH}: unknown feature 'meta__user_id'" in error_of(schema_path, features=["meta__user_id"])


def test_a_byte_order_mark_before_a_schema_is_skipped(schema_path):
    expected = read_schema(str(schema_path), KEY_PATH)
    schema_path.write_bytes(b"\xef\xbb\xbf" + schema_path.read_bytes())
    assert read_schema(str(schema_path), KEY_PATH) == expected


def test_a_missing_schema_is_an_error(tmp_path):
    path = tmp_path / "missing.json"
    where = rf"{KEY_PATH}\.schema_path: cannot read"
    assert re.match(rf"{where} {path}: No such file or directory \(.*{Path.cwd()}\)$", error_of(path))
    assert re.match(rf"{where} {tmp_path}: Is a directory", error_of(tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"3",
        b"null",
        b'{"Schema": []}',
        b'{"schema": null}',
        b'{"schema": {"feature_name": "continuous", "length": 3}}',
        b'{"schema": ["continuous"]}',
        b'{"schema": [{"length": 3}]}',
    ],
)
def test_a_malformed_schema_is_an_error(tmp_path, content):
    path = tmp_path / "schema.json"
    path.write_bytes(content)
    form = '{"schema": [{"feature_name": ..., "dtype": ..., "length": ...}]}'
    assert error_of(path).startswith(f"{KEY_PATH}.schema_path: {path} is not of the form {form}: ")


@pytest.mark.parametrize("length", [0, -3, 1_000_001, 2.0, "3", None, True, [3]])
def test_an_invalid_length_is_an_error(tmp_path, length):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps({"schema": [{"feature_name": "continuous", "length": length}]}))
    message = error_of(path)
    found = "missing" if length is None else repr(length)
    assert message.startswith(f"{KEY_PATH}.schema_path: {path}: the length of 'continuous' is {found}, ")
    assert "from 1 to 1,000,000" in message


@pytest.mark.parametrize("name", [3, None, ["continuous"]])
def test_a_feature_name_that_is_not_a_string_is_an_error(tmp_path, name):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps({"schema": [{"feature_name": name, "length": 3}]}))
    message = error_of(path)
    assert message.startswith(f"{KEY_PATH}.schema_path: {path}: feature_name {name!r} ")
    assert "string" in message


def test_a_duplicate_feature_is_an_error(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps({"schema": [{"feature_name": "binary", "length": length} for length in (3, 4)]}))
    assert re.match(rf"{KEY_PATH}\.schema_path: {path} .*'binary' twice", error_of(path))


def test_an_empty_schema_is_an_error(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text('{"schema": []}')
    assert error_of(path).startswith(f"{KEY_PATH}: 'continuous' (continuous) is not in {path}, ")
