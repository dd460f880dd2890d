import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import ConfigError
from common.files.table_writer import TableColumn
from projects.home.recap.data.config import RecapDataConfig
from projects.home.recap.tools.conversion.columns import features_of_config, features_of_schema
from projects.home.recap.tools.conversion.examples import ExampleFeature
from tests.projects.home.recap.tools.conversion.test_examples import SCHEMA

RENAMED = {
    "continuous": "home.cont",
    "binary": "home.binary",
    "user_embedding": "user.twhin",
    "meta__user_id": "meta.user_id",
}


def config(preprocess: dict[str, Any] | None = None, tasks: tuple[str, ...] = ("like", "reply"), **schema: Any) -> Any:
    return RecapDataConfig.model_validate(
        {
            "inputs": "unused",
            "global_batch_size": 8,
            "seg_dense_schema": {"schema_path": str(SCHEMA), "renamed_features": RENAMED, **schema},
            "tasks": {task: {} for task in tasks},
            "preprocess": preprocess,
        }
    )


def features(given: RecapDataConfig, float16: bool = False) -> dict[str, ExampleFeature]:
    return {feature.column.name: feature for feature in features_of_config(given, "train_data", float16)}


def schema(folder: Path, **entries: tuple[str, int]) -> str:
    path = folder / "schema.json"
    listed = [{"feature_name": name, "dtype": dtype, "length": n} for name, (dtype, n) in entries.items()]
    path.write_text(json.dumps({"schema": listed}))
    return str(path)


def test_features_get_the_names_of_the_configuration():
    assert list(features(config()).values()) == [
        ExampleFeature("home.cont", "float_list", 7, TableColumn("continuous", "float32", 7)),
        ExampleFeature("home.binary", "int64_list", 5, TableColumn("binary", "uint8", 5), largest=255),
        ExampleFeature("discrete", "int64_list", 3, TableColumn("discrete", "int64", 3)),
        ExampleFeature("user.twhin", "float_list", 4, TableColumn("user_embedding", "float32", 4)),
        ExampleFeature("author_embedding", "float_list", 4, TableColumn("author_embedding", "float32", 4)),
        ExampleFeature("like", "int64_list", 1, TableColumn("like", "int8"), largest=1),
        ExampleFeature("reply", "float_list", 1, TableColumn("reply", "int8"), largest=1),
        ExampleFeature("meta.user_id", "int64_list", 1, TableColumn("meta__user_id", "int64")),
        ExampleFeature("served_ms", "int64_list", 1, TableColumn("served_ms", "int64")),
        ExampleFeature("weight", "float_list", 1, TableColumn("weight", "float32")),
        ExampleFeature("languages", "int64_list", 2, TableColumn("languages", "int64", 2)),
    ]


def test_lists_of_bytes_are_skipped_and_logged(caplog):
    features(config())
    [record] = caplog.records
    assert str(SCHEMA) in record.getMessage()
    assert record.getMessage().endswith(" not converted: text")


def test_a_feature_that_is_not_a_task_is_not_a_label():
    assert features(config(tasks=("like",)))["reply"].column == TableColumn("reply", "float32")


def test_listed_features_and_all_single_values_are_converted(caplog):
    found = features(config(features=["user_embedding"]))
    ours = ["continuous", "binary", "user_embedding"]
    assert list(found) == [*ours, "like", "reply", "meta__user_id", "served_ms", "weight"]
    assert "not converted: discrete, author_embedding, languages, text" in caplog.text


def test_truncation_cuts_columns():
    slices = {"continuous_feature_truncation": 3, "binary_feature_truncation": 5}
    found = features(config({"truncate_and_slice": slices}))
    assert found["continuous"] == ExampleFeature("home.cont", "float_list", 7, TableColumn("continuous", "float32", 3))
    assert found["binary"].column.width == 5


def test_masks_select_positions(tmp_path):
    np.save(tmp_path / "mask.npy", np.array([0, 1, 0, 1, 1], dtype=bool))
    slices = {"continuous_feature_truncation": 5, "continuous_feature_mask_path": str(tmp_path / "mask.npy")}
    assert features(config({"truncate_and_slice": slices}))["continuous"] == ExampleFeature(
        "home.cont", "float_list", 7, TableColumn("continuous", "float32", 3), (1, 3, 4)
    )


def extracting(index: int, slices: dict[str, Any]) -> Any:
    table = [{"name": "x", "source_tensor": "continuous", "index": index}]
    return config({"truncate_and_slice": slices, "extract_features": {"extract_feature_table": table}})


def test_cutting_off_or_moving_an_extracted_value_is_an_error(tmp_path):
    np.save(tmp_path / "mask.npy", np.array([1, 0, 1, 1, 1, 1, 1]))
    features(extracting(2, {"continuous_feature_truncation": 3}))
    features(extracting(0, {"continuous_feature_mask_path": str(tmp_path / "mask.npy")}))
    for index, slices in (
        (3, {"continuous_feature_truncation": 3}),
        (1, {"continuous_feature_mask_path": str(tmp_path / "mask.npy")}),
        (2, {"continuous_feature_mask_path": str(tmp_path / "mask.npy")}),
        (6, {"continuous_feature_mask_path": str(tmp_path / "mask.npy")}),
    ):
        with pytest.raises(
            ConfigError, match=rf"^train_data\..*'x' is value {index} of continuous, .*truncate_and_slice"
        ):
            features(extracting(index, slices))


def test_a_task_can_be_an_extracted_value():
    table = [{"name": "clicked", "source_tensor": "discrete", "index": 1}]
    given = config({"extract_features": {"extract_feature_table": table}}, tasks=("like", "clicked"))
    assert "clicked" not in features(given)


def test_float16_applies_to_continuous_and_embeddings():
    found = {name: feature.column.dtype for name, feature in features(config(), float16=True).items()}
    assert [name for name, dtype in found.items() if dtype == "float16"] == [
        "continuous",
        "user_embedding",
        "author_embedding",
    ]
    assert found["weight"] == "float32"


def test_a_schema_alone_converts_everything_but_lists_of_bytes(caplog):
    found = features_of_schema(str(SCHEMA))
    assert [feature.column.name for feature in found] == [feature.name for feature in found]
    assert found[0] == ExampleFeature("home.cont", "float_list", 7, TableColumn("home.cont", "float32", 7))
    assert found[5] == ExampleFeature("like", "int64_list", 1, TableColumn("like", "int64"))
    assert len(found) == 11
    assert "not converted: text" in caplog.text


def test_a_schema_with_the_projects_names_gets_their_types(tmp_path):
    path = schema(tmp_path, binary=("int64_list", 1), continuous=("float_list", 1))
    columns = [feature.column for feature in features_of_schema(path, float16=True)]
    assert columns == [TableColumn("binary", "uint8", 1), TableColumn("continuous", "float16", 1)]


def test_a_binary_feature_of_floats_stays_float(tmp_path):
    path = schema(tmp_path, binary=("float_list", 2))
    assert features_of_schema(path) == [
        ExampleFeature("binary", "float_list", 2, TableColumn("binary", "float32", 2)),
    ]


def test_a_feature_whose_name_is_taken_is_skipped(tmp_path, caplog):
    """Training on these records does not read it either."""
    path = schema(
        tmp_path, continuous=("float_list", 2), cont=("float_list", 3), binary=("int64_list", 2), like=("int64_list", 1)
    )
    given = config(schema_path=path, renamed_features={"continuous": "cont"}, tasks=("like",))
    assert features(given)["continuous"].name == "cont"
    assert "not converted: continuous" in caplog.text


@pytest.mark.parametrize(
    ("entries", "changes", "problem"),
    [
        ({}, {"tasks": ("like", "share")}, "train_data.tasks: share not in "),
        ({"like": ("int64_list", 2)}, {}, "label 'like' has length 2"),
        ({"like": ("bytes_list", 1)}, {}, "'like' has dtype 'bytes_list', expected float_list or int64_list"),
        ({"x": ("double", 1)}, {}, "'x' has dtype 'double', expected float_list or int64_list"),
        ({"discrete": ("float_list", 2)}, {}, "'discrete' (discrete) is a float_list, "),
        (
            {"x": ("float_list", 2)},
            {"renamed_features": {"user_embedding": "x", "author_embedding": "x"}},
            "train_data.seg_dense_schema.renamed_features: more than one key maps to x",
        ),
        (
            {},
            {"renamed_features": {"continuous": "home.cont"}},
            "continuous, binary, like",
        ),
    ],
)
def test_an_invalid_schema_or_configuration_is_an_error(entries, changes, problem, tmp_path):
    usual = {"continuous": ("float_list", 2), "binary": ("int64_list", 2), "like": ("int64_list", 1)}
    path = schema(tmp_path, **(usual | entries))
    given = config(**({"schema_path": path, "renamed_features": {}, "tasks": ("like",)} | changes))
    with pytest.raises(ConfigError) as caught:
        features(given)
    assert problem in str(caught.value)
