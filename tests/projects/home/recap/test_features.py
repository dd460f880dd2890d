"""Runs the Heavy Ranker's program on a table with configured features of all kinds."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.checkpointing.reader import read_state, read_tensors
from common.errors import UserError
from core.config import load_config_from_yaml
from projects.home.recap.config import RecapConfig
from projects.home.recap.main import main
from tests.support.comparison import assert_equal_runs, logged
from tests.support.config_fields import Recorder, fields_within, names
from tests.support.feature_table import (
    COUNTRIES,
    FEATURES,
    LABEL,
    config,
    table,
    write_config,
    write_data,
    write_vocabulary,
)

Train = Callable[..., int]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("features") / "data")


@pytest.fixture
def train(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Return a function that runs the program. Options that begin with -- are flags; all others are overrides."""

    def run(
        *options: str, save_dir: Path = tmp_path / "run", features: Any = None, values: dict[str, Any] | None = None
    ) -> int:
        path = write_config(tmp_path / "config.yaml", values or config(data, save_dir, features))
        flags = [word for option in options if option.startswith("--") for word in option.split()]
        overrides = [word for option in options if not option.startswith("--") for word in ("--set", option)]
        monkeypatch.setattr(sys, "argv", ["main", "--config", str(path), *overrides, *flags])
        return main()

    return run


def losses(save_dir: Path) -> list[float]:
    return [metrics["loss"] for _, mode, _, metrics in logged(save_dir) if mode == "train"]


def test_features_of_all_kinds_train_and_evaluate(train: Train, tmp_path: Path) -> None:
    assert train("training.num_train_steps=24") == 0
    run = tmp_path / "run"
    assert np.isfinite(losses(run)).all()
    assert losses(run)[-1] < losses(run)[0]
    metrics = logged(run)[-1][3]
    assert metrics["examples"] == 100
    assert metrics["mean/auroc"] > 0.55
    weights = {name.removeprefix("model.") for name in read_tensors(run / "checkpoints/24")}
    for name in ("country", "name/items", "item", "device", "tags", "seen_at/hour_of_day", "seen_at/day_of_week"):
        assert (f"ranker.feature_tables.tables.{name}.weight" in weights) == (name != "name/items"), name
    assert "ranker.embedding_norms.text.weight" in weights


def test_the_configuration_of_a_run_has_what_the_data_decides(train: Train, data: Path, tmp_path: Path) -> None:
    assert train() == 0
    completed = load_config_from_yaml(RecapConfig, tmp_path / "run/config.yaml").model_dump()["features"]
    rows = pq.read_table(data / "train.parquet")
    age, income = (np.array(rows[name].drop_null(), np.float32) for name in ("age", "income.gross"))
    assert completed["age"]["missing"] == pytest.approx(age.mean(dtype=np.float64), rel=1e-12)
    edges = completed["age"]["edges"]
    assert len(edges) == 5
    assert [edges[0], edges[-1]] == pytest.approx([age.min(), age.max()], rel=1e-6)
    assert completed["income.gross"]["missing"] == pytest.approx(income.mean(dtype=np.float64), rel=1e-12)
    assert completed["history"]["length"] == 2
    columns = zip(*(row for row in rows["history"].to_pylist() if row is not None), strict=True)
    numbers = [np.array([number for number in column if number is not None], np.float32) for column in columns]
    means = [column.mean(dtype=np.float64) for column in numbers]
    assert completed["history"]["missing"] == pytest.approx(means, rel=1e-12)
    assert completed["text"]["length"] == 4
    days = [
        (served - seen).total_seconds() / 86_400
        for seen, served in zip(rows["seen_at"].to_pylist(), rows["served_at"].to_pylist(), strict=True)
        if seen is not None and served is not None
    ]
    assert completed["seen_at"]["age"]["missing"] == pytest.approx(np.mean(days), rel=1e-6)


def test_a_run_with_the_completed_configuration_is_the_same(train: Train, tmp_path: Path, caplog: Any) -> None:
    assert train() == 0
    assert "computing means and edges of 5 number(s)" in caplog.text
    completed = load_config_from_yaml(RecapConfig, tmp_path / "run/config.yaml").model_dump(mode="json")
    completed["training"]["save_dir"] = str(tmp_path / "again")
    caplog.clear()
    assert train(values=completed) == 0
    assert "computing means" not in caplog.text
    assert_equal_runs(tmp_path / "run", tmp_path / "again", 12)


def test_a_resumed_run_equals_an_uninterrupted_one_with_rare_values_replaced(train: Train, tmp_path: Path) -> None:
    features = FEATURES | {"country": FEATURES["country"] | {"unknown_pseudo_count": 5.0}}
    assert train("training.num_train_steps=6", features=features) == 0
    assert train(features=features) == 0
    assert train(features=features, save_dir=tmp_path / "whole") == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    one, other = (read_tensors(tmp_path / name / "checkpoints/12") for name in ("run", "whole"))
    assert all((one[name] == value).all() for name, value in other.items())


def test_a_feature_may_be_the_position_and_a_resume_drops_the_same_positions(train: Train, tmp_path: Path) -> None:
    options = (
        "model.position_debias_config={position_feature: shown_at, num_dims: 3, drop_probability: 0.3}",
        "features.shown_at={kind: category, column: items, num_values: 30}",
        "optimizer={adamw: {weight_decay: 0.1}, single_task_learning_rate: {constant: 0.01}}",
    )
    assert train(*options, save_dir=tmp_path / "whole") == 0
    assert train(*options, "training.num_train_steps=6") == 0
    assert train(*options) == 0
    one, other = (read_tensors(tmp_path / name / "checkpoints/12") for name in ("run", "whole"))
    assert all((one[name] == value).all() for name, value in other.items())
    assert one["model.ranker.position_debias.positions.weight"].shape == (257, 3)
    assert "model.ranker.feature_tables.tables.shown_at.weight" not in one


@pytest.mark.parametrize(
    "architecture",
    [
        "dlrm_config: {bottom_mlp: {layer_sizes: [4]}, top_mlp: {layer_sizes: [8, 1]}}",
        "dcn_config: {poly_degree: 3, projection_dim: 4, parallel_mlp: {layer_sizes: [8]}, "
        "output_mlp: {layer_sizes: [1]}}",
    ],
    ids=["dlrm", "dcn"],
)
@pytest.mark.parametrize("amp", ["false", "true"])
def test_every_architecture_trains_on_features_of_all_kinds(
    train: Train, tmp_path: Path, architecture: str, amp: str
) -> None:
    tower = f"model.tasks={{{LABEL}: {{{architecture}}}}}"
    assert train(tower, "training.num_train_steps=24", f"runtime.enable_amp={amp}") == 0
    assert np.isfinite(losses(tmp_path / "run")).all()
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]


@pytest.mark.parametrize(
    ("position", "features", "message"),
    [
        ("position_feature: age", FEATURES, r"position_feature .*: age is not .* with num_values.* items"),
        ("position_feature: country", FEATURES, r"position_feature .*: country is not a feature of kind category"),
        ("position_feature: absent", {"age": FEATURES["age"]}, r"position_feature .*: absent is not .*features: none"),
        ("position_feature_index: 0", FEATURES, r"position_feature_index .*: does not apply .*Set position_feature"),
        ("max_position: 3", FEATURES, "exactly one of position_feature_index, position_feature must be set"),
    ],
)
def test_a_position_that_is_no_suitable_feature_is_an_error(
    train: Train, position: str, features: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(f"model.position_debias_config={{{position}}}", features=features)


def test_every_field_of_a_feature_is_read(train: Train, data: Path, tmp_path: Path) -> None:
    """Checks do not count, nor do printing and the identity of a run."""
    recorder = Recorder()
    ages = {"before": "served_at", "before_unit": "ms", "unit": "days", "buckets": 2, "indicator": True}
    others = {
        "stated": {"kind": "number", "column": "age", "missing": 1.0, "buckets": 2, "edges": [0.0, 50.0]},
        "integer": {"kind": "timestamp", "column": "number", "unit": "ms", "age": ages | {"before": "number"}},
    }
    rows = pq.read_table(data / "train.parquet")
    pq.write_table(rows.append_column("number", rows["seen_at"].cast(pa.int64())), tmp_path / "train.parquet")
    inputs = [f"{key}.inputs={tmp_path}/train.parquet" for key in ("train_data", "validation_data.validation")]
    with pytest.MonkeyPatch.context() as patcher:
        recorder.patch(patcher)
        assert train(*inputs, "training.num_train_steps=1", features=FEATURES | others) == 0
    loaded = load_config_from_yaml(RecapConfig, tmp_path / "run/config.yaml")
    has = {field for each in (loaded.features or {}).values() for field in fields_within(each)}
    assert {kind.__name__ for kind, _ in has} == {
        *(f"{kind}Feature" for kind in ("Number", "Numbers", "Boolean", "Category", "Categories", "Timestamp")),
        *("EmbeddingFeature", "Age"),
    }
    # The class of a feature has its kind.
    assert names({field for field in has - recorder.fields if field[1] != "kind"}) == []


# --- Resumes ---


def test_a_resume_with_a_vocabulary_of_other_content_is_refused_and_names_it(
    train: Train, data: Path, tmp_path: Path
) -> None:
    assert train("training.num_train_steps=4") == 0
    write_vocabulary(tmp_path / "other.parquet", [*COUNTRIES, "nl"])
    other = f"features.country.vocabulary={tmp_path}/other.parquet"
    with pytest.raises(
        UserError, match=r'features\.country\.vocabulary: "3 values, digest \w+" in the run, "4 values, digest \w+" now'
    ):
        train(other)
    with pytest.raises(UserError, match=r"holds another run:\n  features\.country\.vocabulary: "):
        train(other, "--mode evaluate")
    # The same content elsewhere, and stored differently.
    moved = pq.read_table(data / "countries.parquet").take([2, 0, 1])
    pq.write_table(moved, tmp_path / "moved.parquet", compression="gzip")
    assert train(f"features.country.vocabulary={tmp_path}/moved.parquet") == 0
    assert read_state(tmp_path / "run/checkpoints/12")["progress"]["step"] == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("features.age.missing=1.0", r"features\.age\.missing: [\d.]+ in the run, 1\.0 now"),
        ("features.vip.missing=true", r"features\.vip\.missing: false in the run, true now"),
        ("features.device.hash_buckets=30", r"features\.device\.hash_buckets: 20 in the run, 30 now"),
        ("features.new={kind: boolean, column: vip}", r"features\.new: missing in the run"),
    ],
)
def test_a_resume_with_another_feature_is_refused_and_names_it(train: Train, change: str, message: str) -> None:
    assert train("training.num_train_steps=4") == 0
    with pytest.raises(UserError, match=message):
        train(change)


def test_a_resume_with_features_in_another_order_is_refused(train: Train) -> None:
    assert train("training.num_train_steps=4") == 0
    with pytest.raises(UserError, match=r'order of features: \["age", .* in the run, \["text", .* now'):
        train(features=dict(reversed(FEATURES.items())))


def test_a_resume_on_other_training_data_is_refused_because_of_its_means(
    train: Train, data: Path, tmp_path: Path
) -> None:
    assert train("training.num_train_steps=4") == 0
    other = shutil.copy(data / "validation.parquet", tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"features\.age\.missing: "):
        train(f"train_data.inputs={other}")


# --- Values ---


def test_unknown_and_missing_values_in_every_column_train_and_evaluate(train: Train, tmp_path: Path) -> None:
    """The evaluation set has values that training data lacks, and one without any value."""
    rows = table(48, seed=7)
    nothing = pa.table({name: pa.nulls(48, rows[name].type) for name in rows.column_names if name != LABEL})
    pq.write_table(nothing.append_column(LABEL, rows[LABEL]), tmp_path / "nothing.parquet")
    new = {
        "age": pa.array([1e30, -1e30, np.nan, np.inf] * 12),
        "country": pa.array(["never seen"] * 48),
        "items": pa.array([10**15] * 48),
        "last items": pa.array([[], [-1], [10**15] * 9, None] * 12, pa.list_(pa.int64())),
        "device": pa.array([""] * 48),
        "tags": pa.array([["new", None], [], None, ["x" * 1000]] * 12),
    }
    for name, values in new.items():
        rows = rows.set_column(rows.column_names.index(name), name, values)
    pq.write_table(rows, tmp_path / "new.parquet")
    sets = {name: f"{tmp_path}/{name}.parquet" for name in ("nothing", "new")}
    common = f"global_batch_size: 48, lanes: 6, tasks: {{{LABEL}: {{}}}}"
    assert train(*(f"validation_data.{name}={{inputs: {path}, {common}}}" for name, path in sets.items())) == 0
    evaluated = {partition: metrics for _, mode, partition, metrics in logged(tmp_path / "run") if mode == "evaluate"}
    for name in sets:
        assert evaluated[name]["examples"] == 48
        assert np.isfinite(evaluated[name]["mean/loss"])
    # Training on rows without any value works too.
    assert train(f"train_data.inputs={sets['nothing']}", "training.num_train_steps=1", save_dir=tmp_path / "x") == 0


@pytest.mark.parametrize("dtype", [pa.bool_(), pa.int64(), pa.uint8(), pa.float32(), pa.float64()])
def test_labels_may_be_booleans_integers_or_floats(
    train: Train, data: Path, tmp_path: Path, dtype: pa.DataType
) -> None:
    rows = pq.read_table(data / "train.parquet")
    labels = rows[LABEL].cast(pa.int8()).cast(dtype)
    rows = rows.set_column(rows.column_names.index(LABEL), LABEL, labels)
    pq.write_table(rows, tmp_path / "train.parquet", row_group_size=60)
    features = {"age": FEATURES["age"]}
    for name, directory in (("cast", tmp_path), ("float", data)):
        inputs = f"train_data.inputs={directory}/train.parquet"
        assert train(inputs, features=features, save_dir=tmp_path / name) == 0
    assert losses(tmp_path / "cast") == losses(tmp_path / "float")


@pytest.mark.parametrize("kind", ["age", "income.gross", "history", "vip", "country", "last items", "seen_at", "text"])
def test_one_feature_of_any_kind_is_enough(train: Train, kind: str) -> None:
    norm = "model.featurization_config.double_norm_log_config.batch_norm_config={affine: false}"
    assert train(norm, "runtime.enable_amp=true", features={kind: FEATURES[kind]}) == 0


def test_a_feature_may_have_any_name(train: Train) -> None:
    names = ["hours per week", "a.b", "a.c", "items", "forward", "user_embedding", "weight", "labels", "ids"]
    kinds = ["age", "country", "items", "last items", "tags", "text", "vip", "history", "seen_at"]
    features = {name: FEATURES[kind] | {"column": kind} for name, kind in zip(names, kinds, strict=True)}
    assert train(features=features) == 0


@pytest.mark.parametrize("kind", ["country", "text"])
def test_names_that_differ_only_in_dots_and_slashes_are_refused_for_modules(train: Train, kind: str) -> None:
    with pytest.raises(UserError, match=r"differ only in '.' and '/'"):
        train(features={name: FEATURES[kind] | {"column": kind} for name in ("a.b", "a/b")})


def test_preprocessing_weights_and_the_cache_work_with_features(train: Train, data: Path, tmp_path: Path) -> None:
    rows = pq.read_table(data / "train.parquet")
    rows = rows.append_column("weight", pa.array(np.linspace(0.5, 1.5, len(rows))))
    times = np.zeros(len(rows), np.int64)
    rows = rows.append_column("served", pa.array(times)).append_column("engaged", pa.array(times + 10**9))
    pq.write_table(rows, tmp_path / "train.parquet")
    inputs = f"train_data.inputs={tmp_path}/train.parquet"
    negatives = "train_data.preprocess.downsample_negatives={batch_multiplier: 2, num_engagements: 1}"
    weights = "train_data.weight_column=weight"
    for name, cache in (("cached", "true"), ("decoded", "false")):
        assert train(inputs, negatives, weights, f"train_data.cache={cache}", save_dir=tmp_path / name) == 0
    assert losses(tmp_path / "cached") == losses(tmp_path / "decoded")
    rectify = (
        "train_data.preprocess.rectify_labels={served_timestamp_field: served, impressed_timestamp_field: served, "
        f"label_to_engaged_timestamp_field: {{{LABEL}: engaged}}}}"
    )
    assert train(inputs, rectify, "training.num_train_steps=12", save_dir=tmp_path / "rectified") == 0
    assert losses(tmp_path / "rectified")[-1] < 0.4, "all labels are 0 after rectification"


# --- Errors in the data ---


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ({"kind": "number", "column": "absent"}, "no column 'absent'"),
        ({"kind": "number", "column": "country"}, "column 'country': found string"),
        ({"kind": "numbers", "column": "last items"}, r"'last items' has no fixed length. Set features\.x\.length"),
        ({"kind": "category", "column": "country", "num_values": 3}, "column 'country': found string"),
        ({"kind": "category", "column": "country", "vocabulary": "/absent.parquet"}, "/absent.parquet: cannot read"),
        ({"kind": "embedding", "column": "text", "length": 5}, "column 'text': found vectors of 4 values"),
        ({"kind": "number", "column": "age", "name": "history[1]"}, r"history\[1\] is both a feature and a part of"),
    ],
)
def test_a_feature_that_does_not_fit_its_column_is_an_error_before_training(
    train: Train, tmp_path: Path, feature: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(features=FEATURES | {feature.pop("name", "x"): feature})
    assert not (tmp_path / "run").exists()
