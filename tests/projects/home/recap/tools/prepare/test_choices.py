from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UserError
from common.features.config import CategoryFeature
from projects.home.recap.tools.prepare import choices as choices_module
from projects.home.recap.tools.prepare.choices import Choice, ChoiceOptions, FeatureChooser
from projects.home.recap.tools.prepare.columns import IngestedColumn
from projects.home.recap.tools.prepare.database import open_database
from projects.home.recap.tools.prepare.split_files import Split
from projects.home.recap.tools.prepare.vocabularies import ValueCounter
from tests.support.staged import staged


def choose(
    folder: Path, table: dict[str, Any], *, column: IngestedColumn | None = None, **options: Any
) -> dict[str, Choice]:
    """Choose the features of a table, all of whose rows are training data."""
    (folder / "vocabularies").mkdir()
    columns = staged(
        folder, table, roles=options.pop("roles", None), kinds=options.pop("kinds_of_columns", None)
    ).columns
    file = folder / "train.parquet"
    pq.write_table(pa.table(table), file)
    nulls = {each.name: each.num_nulls for each in columns}
    train = Split("train", file, len(next(iter(table.values()))), {}, nulls)
    decided = ChoiceOptions(
        **{
            "features": {},
            "features_only": False,
            "kinds": (),
            "label_columns": {},
            "group": None,
            "buckets": 8,
            **options,
        }
    )
    with open_database(folder / "temporary", threads=1) as connection:
        chooser = FeatureChooser(decided, train, ValueCounter(connection, train, list(table)), folder, Path("data/out"))
        return {each.name: chooser.choose(each) for each in ([column] if column else columns)}


def test_each_kind_has_its_settings(tmp_path: Path) -> None:
    table = {
        "number": [0.5, 1.5, None, 2.5],
        "flag": [True, None, False, True],
        "color": ["red", "red", "blue", "blue"],
        "tags": [["a"], ["a", "b", "b"], None, []],
        "vector": [[0.5, 1.0]] * 4,
    }
    chosen = choose(tmp_path, table)
    assert {name: dict(choice.features[name]) for name, choice in chosen.items()} == {
        "number": {"kind": "number", "buckets": 8, "indicator": True},
        "flag": {"kind": "boolean", "indicator": True},
        "color": {"kind": "category", "vocabulary": "data/out/vocabularies/color.parquet"},
        "tags": {"kind": "categories", "vocabulary": "data/out/vocabularies/tags.parquet", "max_length": 3},
        "vector": {"kind": "numbers", "buckets": 8},
    }
    assert chosen["number"].encoding == "indicator of 1 missing"
    assert pq.read_table(tmp_path / "vocabularies/tags.parquet").column("value").to_pylist() == ["a", "b"]


def test_rare_values_are_unknown_and_the_table_says_so(tmp_path: Path) -> None:
    choice = choose(tmp_path, {"color": ["red", "red", "blue", "green"]})["color"]
    assert choice.encoding == "vocabulary of 1; unknown: 2 with fewer than 2 occurrences"


def test_values_that_training_data_does_not_have_are_counted(tmp_path: Path) -> None:
    (column,) = staged(tmp_path, {"color": ["red", "red", "blue", "green", "gray"]}).columns
    choice = choose(tmp_path, {"color": ["red", "red", "blue"]}, column=column)["color"]
    assert choice.encoding == "vocabulary of 1; unknown: 1 with fewer than 2 occurrences, 2 not in training data"


def test_a_category_without_a_value_is_not_used(tmp_path: Path) -> None:
    choice = choose(tmp_path, {"color": pa.array([None, None], pa.string())})["color"]
    assert choice.warning == "color: no value occurs in training, not used"


def test_a_category_without_frequent_values_is_not_used(tmp_path: Path) -> None:
    choice = choose(tmp_path, {"color": ["red", "blue"]})["color"]
    assert (choice.features, choice.reason) == ({}, "no value occurs 2 times in training")
    assert choice.warning == "color: no value occurs 2 times in training, not used"


@pytest.mark.parametrize(("most", "is_hashed"), [(3, True), (9, False)])
def test_values_are_hashed_if_a_vocabulary_would_cover_too_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, is_hashed: bool
) -> None:
    for module in (choices_module.__name__, "projects.home.recap.tools.prepare.vocabularies"):
        monkeypatch.setattr(f"{module}.MAX_VALUES", most)
    values = [f"v{value}" for value in range(10) for _ in range(3)]
    choice = choose(tmp_path, {"item": values})["item"]
    feature = choice.features["item"]
    if is_hashed:
        assert feature == {"kind": "category", "hash_buckets": 100_000, "num_hashes": 2}
        assert "values cover only 30%" in choice.encoding
    else:
        assert feature["vocabulary"] == "data/out/vocabularies/item.parquet"
        assert choice.encoding == "vocabulary of 9, the most frequent of 10"


def test_vocabularies_of_columns_with_similar_names_are_different_files(tmp_path: Path) -> None:
    table = {name: ["x", "x"] for name in ("a b", "A_b", "a/b", "ü")}
    chosen = choose(tmp_path, table)
    paths = [choice.features[name]["vocabulary"] for name, choice in chosen.items()]
    assert [path.removeprefix("data/out/vocabularies/") for path in paths] == [
        "a_b.parquet",
        "A_b-2.parquet",
        "a_b-3.parquet",
        "_.parquet",
    ]


def test_columns_that_are_no_features(tmp_path: Path) -> None:
    table = {"clicked": [0, 1], "stars": [1, 5], "ts": [1, 2], "w": [1.0, 2.0], "user": ["a", "a"], "zip": [1, 2]}
    chosen = choose(
        tmp_path,
        table,
        roles={"clicked": "label", "ts": "time", "w": "weight", "user": "group"},
        kinds_of_columns={"zip": "unused"},
        kinds=("zip",),
        label_columns={"clicked": ["clicked"], "stars": ["liked"]},
        group="user",
    )
    assert {name: choice.reason for name, choice in chosen.items()} == {
        "clicked": "label",
        "stars": "the label liked is computed from it",
        "ts": "orders the rows; times after training never occur in it",
        "w": "weight of the row",
        "user": "each group is in one split, so that no value of validation occurs in training",
        "zip": "as --kind says",
    }
    assert all(choice.features == {} and choice.warning is None for choice in chosen.values())


def test_a_column_that_is_unused_by_inference_is_a_warning(tmp_path: Path) -> None:
    choice = choose(tmp_path, {"constant": ["x"] * 3}, kinds_of_columns={"constant": "unused"})["constant"]
    assert choice.warning == "constant: by its type; not used"


def test_configured_features_replace_the_inferred_one(tmp_path: Path) -> None:
    feature = CategoryFeature(kind="category", column="color", hash_buckets=10)
    table = {"color": ["red", "red"], "size": [1.0, 2.0]}
    staged_columns = staged(tmp_path, table).columns
    column = IngestedColumn(**{**vars(staged_columns[0]), "features": ("hashed",)})
    chosen = choose(tmp_path, table, column=column, features={"hashed": feature})
    assert chosen["color"].features == {"hashed": {"column": "color", "hash_buckets": 10, "kind": "category"}}
    (tmp_path / "only").mkdir()
    assert choose(tmp_path / "only", table, features_only=True)["size"].reason == "not in --features"


def test_a_configured_feature_must_not_read_a_label(tmp_path: Path) -> None:
    column = IngestedColumn(**{**vars(staged(tmp_path, {"clicked": [0, 1]}).columns[0]), "features": ("hint",)})
    with pytest.raises(UserError, match="hint reads clicked, which tells the model what to predict"):
        choose(tmp_path, {"clicked": [0, 1]}, column=column, label_columns={"clicked": ["clicked"]})


def test_numbers_have_no_buckets_if_there_are_too_many(tmp_path: Path) -> None:
    choice = choose(tmp_path, {"number": [0.5, 1.5]}, buckets=None)["number"]
    assert (choice.features, choice.encoding) == ({"number": {"kind": "number"}}, "")


@pytest.mark.parametrize(("times", "warns"), [(4, True), (5, False)])
def test_values_that_occur_a_few_times_each_are_reported(tmp_path: Path, times: int, warns: bool) -> None:
    choice = choose(tmp_path, {"session": [f"s{index}" for index in range(1000)] * times})["session"]
    assert choice.features
    assert (choice.warning is not None and "--kind session unused" in choice.warning) == warns
