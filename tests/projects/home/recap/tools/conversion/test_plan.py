import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import ConfigError
from common.files.table_writer import Column
from projects.home.recap.data.config import RecapDataConfig
from projects.home.recap.tools.conversion.examples import ExampleFeature
from projects.home.recap.tools.conversion.plan import features_of_config, features_of_schema
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


def test_everything_under_our_names():
    assert list(features(config()).values()) == [
        ExampleFeature("home.cont", "float_list", 7, Column("continuous", "float32", 7)),
        ExampleFeature("home.binary", "int64_list", 5, Column("binary", "uint8", 5), largest=255),
        ExampleFeature("discrete", "int64_list", 3, Column("discrete", "int64", 3)),
        ExampleFeature("user.twhin", "float_list", 4, Column("user_embedding", "float32", 4)),
        ExampleFeature("author_embedding", "float_list", 4, Column("author_embedding", "float32", 4)),
        ExampleFeature("like", "int64_list", 1, Column("like", "int8"), largest=1),
        ExampleFeature("reply", "float_list", 1, Column("reply", "int8"), largest=1),
        ExampleFeature("meta.user_id", "int64_list", 1, Column("meta__user_id", "int64")),
        ExampleFeature("served_ms", "int64_list", 1, Column("served_ms", "int64")),
        ExampleFeature("weight", "float_list", 1, Column("weight", "float32")),
        ExampleFeature("languages", "int64_list", 2, Column("languages", "int64", 2)),
    ]


def test_lists_of_bytes_are_left_out_and_logged(caplog):
    features(config())
    assert [record.getMessage() for record in caplog.records] == [f"of {SCHEMA} not converted: text"]


def test_what_is_no_task_is_no_label():
    assert features(config(tasks=("like",)))["reply"].column == Column("reply", "float32")


def test_only_the_features_asked_for_but_all_single_values(caplog):
    found = features(config(features=["user_embedding"]))
    ours = ["continuous", "binary", "user_embedding"]
    assert list(found) == [*ours, "like", "reply", "meta__user_id", "served_ms", "weight"]
    assert "not converted: discrete, author_embedding, languages, text" in caplog.text


def test_truncation():
    slices = {"continuous_feature_truncation": 3, "binary_feature_truncation": 5}
    found = features(config({"truncate_and_slice": slices}))
    assert found["continuous"] == ExampleFeature("home.cont", "float_list", 7, Column("continuous", "float32", 3))
    assert found["binary"].column.width == 5


def test_masks(tmp_path):
    np.save(tmp_path / "mask.npy", np.array([0, 1, 0, 1, 1], dtype=bool))
    slices = {"continuous_feature_truncation": 5, "continuous_feature_mask_path": str(tmp_path / "mask.npy")}
    assert features(config({"truncate_and_slice": slices}))["continuous"] == ExampleFeature(
        "home.cont", "float_list", 7, Column("continuous", "float32", 3), (1, 3, 4)
    )


def extracting(index: int, slices: dict[str, Any]) -> Any:
    table = [{"name": "x", "source_tensor": "continuous", "index": index}]
    return config({"truncate_and_slice": slices, "extract_features": {"extract_feature_table": table}})


def test_extracted_values_stay_where_they_are(tmp_path):
    np.save(tmp_path / "mask.npy", np.array([1, 0, 1, 1, 1, 1, 1]))
    features(extracting(2, {"continuous_feature_truncation": 3}))
    features(extracting(0, {"continuous_feature_mask_path": str(tmp_path / "mask.npy")}))
    for index, slices in (
        (3, {"continuous_feature_truncation": 3}),
        (1, {"continuous_feature_mask_path": str(tmp_path / "mask.npy")}),
        (2, {"continuous_feature_mask_path": str(tmp_path / "mask.npy")}),
        (6, {"continuous_feature_mask_path": str(tmp_path / "mask.npy")}),
    ):
        with pytest.raises(ConfigError, match=f"'x' is the value {index} of continuous, which truncate_and_slice cuts"):
            features(extracting(index, slices))


def test_a_task_may_be_an_extracted_value():
    table = [{"name": "clicked", "source_tensor": "discrete", "index": 1}]
    given = config({"extract_features": {"extract_feature_table": table}}, tasks=("like", "clicked"))
    assert "clicked" not in features(given)


def test_float16():
    found = {name: feature.column.dtype for name, feature in features(config(), float16=True).items()}
    assert [name for name, dtype in found.items() if dtype == "float16"] == [
        "continuous",
        "user_embedding",
        "author_embedding",
    ]
    assert found["weight"] == "float32"


def test_by_the_schema_alone(caplog):
    found = features_of_schema(str(SCHEMA))
    assert [feature.column.name for feature in found] == [feature.name for feature in found]
    assert found[0] == ExampleFeature("home.cont", "float_list", 7, Column("home.cont", "float32", 7))
    assert found[5] == ExampleFeature("like", "int64_list", 1, Column("like", "int64"))
    assert len(found) == 11
    assert "not converted: text" in caplog.text


def test_our_names_in_the_schema_alone(tmp_path):
    path = schema(tmp_path, binary=("int64_list", 1), continuous=("float_list", 1))
    columns = [feature.column for feature in features_of_schema(path, float16=True)]
    assert columns == [Column("binary", "uint8", 1), Column("continuous", "float16", 1)]


def test_floats_as_binary_stay_floats(tmp_path):
    path = schema(tmp_path, binary=("float_list", 2))
    assert features_of_schema(path) == [
        ExampleFeature("binary", "float_list", 2, Column("binary", "float32", 2)),
    ]


def test_a_feature_whose_own_name_is_taken_is_left_out(tmp_path, caplog):
    """One that training on these records does not read either."""
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
        ({"like": ("int64_list", 2)}, {}, "the label 'like' has a length of 2; a label is one value"),
        ({"like": ("bytes_list", 1)}, {}, "the dtype of 'like' is 'bytes_list'; float_list or int64_list expected"),
        ({"x": ("double", 1)}, {}, "the dtype of 'x' is 'double'; float_list or int64_list expected"),
        ({"discrete": ("float_list", 2)}, {}, "'discrete' (discrete) is a float_list; ids are an int64_list"),
        (
            {"x": ("float_list", 2)},
            {"renamed_features": {"user_embedding": "x", "author_embedding": "x"}},
            "train_data.seg_dense_schema.renamed_features: two of our names for x",
        ),
        (
            {},
            {"renamed_features": {"continuous": "home.cont"}},
            "which has continuous, binary, like. Converted files use the standard names: remove renamed_features",
        ),
    ],
)
def test_mistakes(entries, changes, problem, tmp_path):
    usual = {"continuous": ("float_list", 2), "binary": ("int64_list", 2), "like": ("int64_list", 1)}
    path = schema(tmp_path, **(usual | entries))
    given = config(**({"schema_path": path, "renamed_features": {}, "tasks": ("like",)} | changes))
    with pytest.raises(ConfigError) as caught:
        features(given)
    assert problem in str(caught.value)
