"""Predicts files as a user does, and compares with evaluations, and with rows that were predicted in another way."""

import datetime
import decimal
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UserError
from projects.home.recap.main import main as train
from projects.home.recap.predict.__main__ import main
from tests.support.comparison import logged
from tests.support.feature_table import LABEL, config, write_config, write_data
from tests.support.runs import small_run

FAVORITED = "recap.engagement.is_favorited"
WEIGHT = f"teacher.{FAVORITED}"


def run(program: Callable[[], int], *words: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["program", *map(str, words)])
        assert program() == 0


@pytest.fixture(scope="module")
def schema_run(recap_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train with a segdense schema and a sampled training set, and evaluate with weights."""
    save_dir = tmp_path_factory.mktemp("schema") / "run"
    sampled = {"downsample_negatives": {"batch_multiplier": 2, "num_engagements": 10}}
    validation = "validation_data.validation"
    settings = [
        f"train_data.preprocess={json.dumps(sampled)}",
        "metrics.exact=true",
        f"{validation}.weight_column={WEIGHT}",
        f"{validation}.tasks[{FAVORITED}].neg_downsampling_rate=0.5",
    ]
    run(train, *small_run(recap_data, save_dir, *settings))
    return save_dir


@pytest.fixture(scope="module")
def features_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train with features of all kinds, and evaluate within groups."""
    directory = tmp_path_factory.mktemp("features")
    values = config(write_data(directory / "data"), directory / "run")
    values["metrics"] = {"group_by": "country"}
    run(train, "--config", write_config(directory / "config.yaml", values))
    return directory / "run"


@pytest.fixture
def rows(recap_data: Path) -> pa.Table:
    return pq.read_table(recap_data / "validation")


def predict(checkpoint: Path, inputs: Path, out: Path, *options: object) -> pa.Table:
    run(main, "--checkpoint", checkpoint, "--inputs", inputs, "--out", out, *options)
    return pq.read_table(out / "predictions")


def manifest(out: Path) -> Any:
    return json.loads((out / "manifest.json").read_text())


def refused(checkpoint: Path, inputs: Path, out: Path, *options: object) -> str:
    with pytest.raises(UserError) as raised:
        predict(checkpoint, inputs, out, *options)
    return str(raised.value)


def assert_same_metrics(found: dict[str, Any], evaluated: dict[str, Any], rel: float = 1e-11) -> None:
    assert found.keys() == evaluated.keys()
    assert found == {k: v if v is None else pytest.approx(v, rel=rel) for k, v in evaluated.items()}


@pytest.mark.parametrize("rows_per_file", [65_536, 100])
def test_metrics_are_those_of_the_evaluation(schema_run, recap_data, tmp_path, rows_per_file, capsys):
    found = predict(schema_run, recap_data / "validation", tmp_path / "out", "--rows_per_file", rows_per_file)
    evaluated = logged(schema_run)[-1][3]
    assert evaluated["examples"] == 500
    assert_same_metrics(manifest(tmp_path / "out")["metrics"], evaluated)
    assert "500 examples after step 12" in capsys.readouterr().out
    probability = np.array(found[f"calibrated_probability.{FAVORITED}"], np.float64)
    label, weight = (np.array(pq.read_table(recap_data / "validation")[name]) for name in (FAVORITED, WEIGHT))
    weight = weight.astype(np.float64) * np.where(label == 1, 1, 2)
    loss = -np.average(np.log(np.where(label == 1, probability, 1 - probability)), weights=weight)
    assert evaluated[f"{FAVORITED}/loss"] == pytest.approx(loss, rel=1e-5)


def test_configured_features_are_predicted_and_measured_within_groups(features_run, tmp_path):
    inputs = features_run.parent / "data/validation.parquet"
    found = predict(features_run, inputs, tmp_path / "out", "--columns", "country", "--rows_per_file", 7)
    assert found["country"].equals(pq.read_table(inputs)["country"])
    assert found.column_names == ["country", f"probability.{LABEL}", f"calibrated_probability.{LABEL}"]
    evaluated = logged(features_run)[-1][3]
    assert evaluated["mean/gauc"] is not None
    # The last bit of a logit can depend on the place of its row in a batch, and the sizes of batches differ.
    assert_same_metrics(manifest(tmp_path / "out")["metrics"], evaluated, rel=1e-5)


def test_files_without_labels_have_the_same_predictions(schema_run, rows, tmp_path):
    labeled, unlabeled = tmp_path / "labeled.parquet", tmp_path / "unlabeled.parquet"
    pq.write_table(rows, labeled)
    pq.write_table(rows.drop_columns([n for n in rows.column_names if n.startswith(("recap.", "teacher."))]), unlabeled)
    expected = predict(schema_run, labeled, tmp_path / "a")
    assert predict(schema_run, unlabeled, tmp_path / "b").equals(expected)
    assert predict(schema_run, labeled, tmp_path / "c", "--no_metrics").equals(expected)
    assert "metrics" in manifest(tmp_path / "a")
    assert "metrics" not in manifest(tmp_path / "b") | manifest(tmp_path / "c")
    assert expected["score"].type == pa.float64()


def test_tasks_without_labels_are_not_measured(schema_run, rows, tmp_path):
    pq.write_table(rows.drop_columns(["recap.engagement.is_replied"]), tmp_path / "rows.parquet")
    predict(schema_run, tmp_path / "rows.parquet", tmp_path / "out")
    found = manifest(tmp_path / "out")["metrics"]
    evaluated = logged(schema_run)[-1][3]
    same = {
        name: value
        for name, value in evaluated.items()
        if not name.startswith(("recap.engagement.is_replied/", "mean/"))
    }
    assert_same_metrics({name: value for name, value in found.items() if not name.startswith("mean/")}, same)


def test_columns_of_any_type_are_carried_through_unchanged(schema_run, rows, tmp_path):
    n = rows.num_rows
    carried = pa.table(
        {
            "id": [f"row {i}" for i in range(n)],
            "dictionary": pa.array(["a", "b", None] * n)[:n].dictionary_encode(),
            "nested": [{"x": i, "y": [i, None]} if i % 3 else None for i in range(n)],
            "price": pa.array([decimal.Decimal(i).scaleb(-2) for i in range(n)], pa.decimal128(12, 2)),
            "seen.at": pa.array([datetime.datetime(2026, 1, 1)] * n, pa.timestamp("us", tz="Europe/Paris")),
            "seen": pa.array([None] * n, pa.binary()),
        }
    )
    whole = rows
    for name in carried.column_names:
        whole = whole.append_column(name, carried[name])
    directory = tmp_path / "inputs"
    directory.mkdir()
    # Row groups of different sizes, some without rows, and files without any.
    with pq.ParquetWriter(directory / "1.parquet", whole.schema) as writer:
        for begin, end in ((0, 3), (3, 3), (3, 120), (120, 121)):
            writer.write_table(whole.slice(begin, end - begin))
    pq.write_table(whole.slice(0, 0), directory / "2.parquet")
    pq.write_table(whole.slice(121), directory / "3.parquet", row_group_size=50)
    names = ["seen", "seen.at", "price", "nested", "dictionary", "id", "binary"]
    options = ["--columns", ", ".join(names), "--rows_per_file", 110, "--batch_size", 64]
    found = predict(schema_run, directory, tmp_path / "out", *options)
    for name in names:
        assert found[name].type == whole[name].type
        assert found[name].to_pylist() == whole[name].to_pylist()
    assert found.field("binary").metadata == whole.field("binary").metadata  # says what the bytes are
    pq.write_table(whole, tmp_path / "whole.parquet")
    expected = predict(schema_run, tmp_path / "whole.parquet", tmp_path / "expected")
    for name in expected.column_names:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)


def test_the_same_command_changes_nothing(schema_run, recap_data, tmp_path, capsys):
    predict(schema_run, recap_data / "validation", tmp_path / "out")
    before = {path: path.stat() for path in sorted((tmp_path / "out").rglob("*"))}
    report = capsys.readouterr().out
    predict(schema_run, recap_data / "validation", tmp_path / "out")
    assert {path: path.stat() for path in sorted((tmp_path / "out").rglob("*"))} == before
    assert capsys.readouterr().out == report
    assert all(not path.name.startswith(".") for path in before)


def test_other_sources_are_refused_with_the_differences(schema_run, recap_data, rows, tmp_path):
    inputs, out = tmp_path / "inputs", tmp_path / "out"
    inputs.mkdir()
    pq.write_table(rows, inputs / "1.parquet")
    predict(schema_run, inputs, out, "--columns", "meta__user_id")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert 'options.columns: ["meta__user_id"] there, [] now' in refused(schema_run, inputs, out)
    columns = ["--columns", "meta__user_id"]
    message = refused(schema_run, inputs, out, *columns, "--float32", "--batch_size", 64)
    assert "options.batch_size: 1024 there, 64 now" in message
    assert "remove this one" in message
    assert "checkpoint.step: 12 there, 4 now" in refused(schema_run / "checkpoints/4", inputs, out, *columns)
    second = tmp_path / "2.parquet"
    pq.write_table(rows, second)
    two = ["--inputs", str(inputs / "1.parquet"), str(second)]
    run(main, "--checkpoint", schema_run, *two, "--out", tmp_path / "both")
    with pytest.raises(UserError, match="the order of the inputs"):
        run(main, "--checkpoint", schema_run, "--inputs", *reversed(two[1:]), "--out", tmp_path / "both")
    pq.write_table(rows.slice(1), inputs / "1.parquet")
    assert 'inputs.1.parquet: "500 rows' in refused(schema_run, inputs, out, *columns)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert "has no manifest.json of predictions" in refused(schema_run, inputs, recap_data)
    assert "File exists" in refused(schema_run, inputs, inputs / "1.parquet")
    (tmp_path / "manifest.json").write_text("{}")
    assert "manifest.json is not that of predictions" in refused(schema_run, inputs, tmp_path)


def test_a_file_modified_in_the_middle_is_refused_although_its_footer_is_the_same(schema_run, rows, tmp_path):
    inputs, out = tmp_path / "rows.parquet", tmp_path / "out"
    pq.write_table(rows, inputs, row_group_size=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("projects.home.recap.predict.runner._in_rounds", interrupted)
        with pytest.raises(KeyboardInterrupt):
            predict(schema_run, inputs, out, "--rows_per_file", 100)
    assert len(list((out / "predictions").iterdir())) == 1
    status = inputs.stat()
    os.utime(inputs, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert "1 file(s) were modified since, such as rows.parquet" in refused(
        schema_run, inputs, out, "--rows_per_file", 100
    )
    os.utime(inputs, ns=(status.st_atime_ns, status.st_mtime_ns))
    found = predict(schema_run, inputs, out, "--rows_per_file", 100)
    assert found.equals(predict(schema_run, inputs, tmp_path / "uninterrupted", "--rows_per_file", 100))
    assert (out / "manifest.json").read_bytes() == (tmp_path / "uninterrupted/manifest.json").read_bytes()


def test_predictions_continue_with_their_checkpoint_while_the_run_trains(schema_run, rows, tmp_path):
    inputs, out = tmp_path / "rows.parquet", tmp_path / "out"
    pq.write_table(rows, inputs, row_group_size=100)
    training = tmp_path / "run"
    shutil.copytree(schema_run, training)
    newest = training / "checkpoints/12"
    newest.rename(tmp_path / "12")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("projects.home.recap.predict.runner._in_rounds", interrupted)
        with pytest.raises(KeyboardInterrupt):
            predict(training, inputs, out, "--rows_per_file", 100)
    (tmp_path / "12").rename(newest)
    predict(training, inputs, out, "--rows_per_file", 100)
    assert manifest(out)["checkpoint"]["path"] == str(training / "checkpoints/8")
    # Complete predictions are those of another checkpoint than the newest one.
    assert "checkpoint.step: 8 there, 12 now" in refused(training, inputs, out, "--rows_per_file", 100)


def interrupted(next_unit: Callable[[], None], *_: object) -> None:
    """Predict one unit, as if a signal had interrupted the program after it."""
    next_unit()
    raise KeyboardInterrupt


def test_errors_in_the_input_name_the_place(schema_run, rows, tmp_path):
    inputs, out = tmp_path / "rows.parquet", tmp_path / "out"
    pq.write_table(rows, inputs)
    assert "meta__user_id more than once" in refused(
        schema_run, inputs, out, "--columns", "meta__user_id,meta__user_id"
    )
    assert "no column 'user'" in refused(schema_run, inputs, out, "--columns", "user")
    assert not out.exists()
    pq.write_table(rows.append_column("score", [[1] * 500]), inputs)
    assert "--columns score: predictions have a column of their own" in refused(
        schema_run, inputs, out, "--columns", "score"
    )
    pq.write_table(rows.drop_columns(["binary"]), inputs)
    assert f"{inputs}: no column 'binary'" in refused(schema_run, inputs, out)
    pq.write_table(rows.slice(0, 0), inputs)
    assert "no rows" in refused(schema_run, inputs, out)
    labels = pa.array([None, *rows[FAVORITED].to_pylist()[1:]], pa.int8())
    pq.write_table(rows.set_column(rows.column_names.index(FAVORITED), FAVORITED, labels), inputs)
    assert f"row group 0, row 0 (both counted from 0): column '{FAVORITED}': found null" in refused(
        schema_run, inputs, out
    )
    # Nothing was predicted, so that other options can be used in the same directory.
    assert len(predict(schema_run, inputs, out, "--no_metrics")) == 500


def test_types_of_a_column_that_differ_between_files_are_refused(schema_run, rows, tmp_path):
    for name, kind in (("a", pa.int64()), ("b", pa.string())):
        index = rows.column_names.index("meta__user_id")
        pq.write_table(
            rows.set_column(index, "meta__user_id", rows["meta__user_id"].cast(kind)), tmp_path / f"{name}.parquet"
        )
    message = refused(schema_run, tmp_path, tmp_path / "out", "--columns", "meta__user_id")
    assert (
        f"{tmp_path / 'b.parquet'}: column 'meta__user_id' is string, but int64 in {tmp_path / 'a.parquet'}" in message
    )


def test_results_are_no_input_although_a_pattern_matches_them(schema_run, rows, tmp_path):
    pq.write_table(rows[:50], tmp_path / "rows.parquet")
    words = ("--top_k", 3, "--group_by", "meta__user_id")
    for _ in range(2):
        assert predict(schema_run, tmp_path / "**/*.parquet", tmp_path / "out", *words).num_rows == 50
    with pytest.raises(UserError, match=r"all matching files are results in --out"):
        predict(schema_run, tmp_path / "out/**/*.parquet", tmp_path / "out", *words)
