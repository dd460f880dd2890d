"""Checks that a ranker in memory predicts what the command predicts for files."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UserError
from common.reader.files import matching_files
from common.reader.vectors import with_lists
from projects.home.recap import load_ranker
from projects.home.recap.main import main
from projects.home.recap.predict.__main__ import main as predict
from projects.home.recap.ranker.load import Ranker
from tests.support.feature_table import FEATURES, LABEL, config, table, write_config, write_data
from tests.support.runs import small_run

TASK = "recap.engagement.is_favorited"
KINDS = ("features", "schema")


def run(program: Any, *words: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["program", *map(str, words)])
        assert program() in (0, None)


@pytest.fixture(scope="module")
def directory(recap_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train with a schema and with features of all kinds, and predict the validation rows of both with the command.

    The save_dirs are the directories "schema" and "features", the predictions "predicted-schema" and so on.
    """
    directory = tmp_path_factory.mktemp("runs")
    for path in write_data(directory / "data").glob("[tv]*.parquet"):
        examples = pq.read_table(path)
        positions = pa.array(np.arange(examples.num_rows) % 20)
        pq.write_table(examples.append_column("position", positions), path)
    features = {**FEATURES, "position": {"kind": "category", "num_values": 30}}
    with_features = config(directory / "data", directory / "features", features)
    with_features["model"] |= {
        "score_weights": {LABEL: 2.0},
        "position_debias_config": {"position_feature": "position", "num_dims": 3},
    }
    arguments = {
        "features": ["--config", str(write_config(directory / "config.yaml", with_features))],
        "schema": small_run(recap_data, directory / "schema"),
    }
    for kind, words in arguments.items():
        run(main, *words)
        out = directory / f"predicted-{kind}"
        run(predict, "--checkpoint", directory / kind, "--inputs", inputs(kind, directory, recap_data), "--out", out)
    return directory


def inputs(kind: str, directory: Path, recap_data: Path) -> Path:
    return directory / "data/validation.parquet" if kind == "features" else recap_data / "validation"


@pytest.fixture(scope="module")
def rows(directory: Path, recap_data: Path) -> dict[str, pa.Table]:
    """Return the rows that the command has predicted."""
    return {
        kind: pa.concat_tables(
            with_lists(pq.read_table(path)) for path in matching_files(str(inputs(kind, directory, recap_data))).paths
        )
        for kind in KINDS
    }


@pytest.fixture(scope="module")
def predicted(directory: Path) -> dict[str, pa.Table]:
    """Return the predictions of the command."""
    return {kind: pq.read_table(directory / f"predicted-{kind}/predictions") for kind in KINDS}


@pytest.fixture(scope="module")
def rankers(directory: Path) -> dict[str, Ranker]:
    return {kind: load_ranker(directory / kind) for kind in KINDS}


def assert_close(found: pa.Table, expected: pa.Table) -> None:
    """Compare up to the last bits, which depend on the place of a row in a batch, because MKL treats rows by place."""
    assert found.schema.equals(expected.schema)
    for name in expected.column_names:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_has_the_predictions_of_the_command(kind, rankers, rows, predicted):
    found = rankers[kind](rows[kind])
    assert found.num_rows > 64
    assert found.column_names[:1] == [f"probability.{LABEL if kind == 'features' else TASK}"]
    assert_close(found, predicted[kind])


@pytest.mark.parametrize("num_rows", [1, 2, 15, 16, 17, 31, 33, 80])
def test_a_batch_of_any_size_gives_a_row_the_same_bits(num_rows, rankers, rows, predicted):
    """The widths of this model are multiples of 16, so that all rows are aligned alike."""
    for begin in (0, 16):
        found = rankers["schema"](rows["schema"].slice(begin, num_rows))
        assert found.equals(predicted["schema"].slice(begin, num_rows))


@pytest.mark.parametrize("kind", KINDS)
def test_the_values_of_other_rows_do_not_matter(kind, rankers, rows):
    one = rankers[kind](rows[kind].slice(0, 1))
    for seed in range(3):
        others = np.random.default_rng(seed).integers(rows[kind].num_rows, size=15)
        assert rankers[kind](rows[kind].take([0, *others])).slice(0, 1).equals(one)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_several_batches_keep_their_order(kind, rankers, rows, predicted):
    order = np.random.default_rng(0).integers(rows[kind].num_rows, size=3000)
    assert_close(rankers[kind](rows[kind].take(order)), predicted[kind].take(order))


def test_arrays_of_vectors_and_lists_are_columns(rankers, rows, predicted):
    names = rankers["schema"].columns
    lists = {name: rows["schema"][name].to_pylist() for name in names}
    arrays = {name: np.array(values) for name, values in lists.items()}
    for columns in (lists, arrays, {name: np.asfortranarray(values) for name, values in arrays.items()}):
        assert_close(rankers["schema"](columns), predicted["schema"])


def test_lists_and_arrays_of_all_kinds_of_features_are_columns(rankers, rows, predicted):
    ranker, columns = rankers["features"], rows["features"].to_pydict()
    assert_close(ranker(columns), predicted["features"])
    objects = {name: np.array([*values, None], object)[:-1] for name, values in columns.items()}
    assert_close(ranker(objects), predicted["features"])
    missing = [np.nan if value is None else value for value in columns["country"]]
    numbers = np.array([np.nan if value is None else value for value in columns["age"]])
    mixed = {**columns, "country": np.array(missing, object), "age": numbers}
    assert_close(ranker(mixed), predicted["features"])


def test_unknown_and_missing_values_are_those_of_training(rankers):
    """The training data has unknown countries, so that these have an embedding of their own."""
    columns = table(3, seed=9).drop_columns("country").to_pydict()
    unknown = rankers["features"]({**columns, "country": ["nowhere"] * 3})
    assert unknown.equals(rankers["features"]({**columns, "country": ["??"] * 3}))
    assert unknown != rankers["features"]({**columns, "country": ["us"] * 3})
    assert unknown != rankers["features"]({**columns, "country": [None] * 3})


def test_the_position_of_training_is_not_needed(rankers, rows, predicted):
    assert "position" not in rankers["features"].columns
    without = rows["features"].drop_columns("position")
    for columns in (without, without.append_column("position", pa.array(["first"] * len(without)))):
        assert_close(rankers["features"](columns), predicted["features"])


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows_have_no_predictions(kind, rankers, rows, predicted):
    no_values: list[float] = []
    for columns in (rows[kind].slice(0, 0), dict.fromkeys(rankers[kind].columns, no_values)):
        assert rankers[kind](columns).equals(predicted[kind].slice(0, 0))


def test_threads_can_call_at_the_same_time(rankers, rows, predicted):
    def predict_slice(begin: int) -> None:
        assert_close(rankers["features"](rows["features"].slice(begin, 17)), predicted["features"].slice(begin, 17))

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(predict_slice, list(range(80)) * 2)) == [None] * 160


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("features", {"age": None}, "no column 'age', or more than one, but the ranker needs it; columns found: "),
        ("features", {"age": ["a"] * 2}, "column 'age': found string, expected integers, floats"),
        ("features", {"age": 3.5}, "column 'age': found 3.5, expected an array or a list"),
        ("features", {"country": "de"}, "column 'country': found 'de', expected an array or a list"),
        ("features", {"country": ["de", 1]}, "column 'country': cannot convert a list: "),
        ("features", {"age": [1.0]}, "different numbers of rows: 'age' has 1, '.*' has 2"),
        ("features", {"text": np.zeros((2, 3))}, "column 'text': found vectors of 3 values, expected 4"),
        ("features", {"text": np.zeros((2, 2, 2))}, "column 'text': cannot convert a ndarray: "),
        ("features", {"text": [[1.0] * 4, [1.0]]}, "rows 0 to 1, row 1 .*: column 'text': "),
        ("schema", {"binary": None}, "no column 'binary', or more than one, but the ranker needs it"),
        ("schema", {"binary": [0, 1]}, "column 'binary': found int64, expected lists of 16 values"),
        ("schema", {"binary": np.zeros((2, 4))}, "column 'binary': found lists of 4 values, expected 16"),
        ("schema", {"binary": [[0] * 16, None]}, "rows 0 to 1, row 1 .*: column 'binary': found null"),
    ],
)
def test_errors_name_the_column(kind, change, message, rankers, rows):
    columns = {name: rows[kind][name].slice(0, 2).to_pylist() for name in rankers[kind].columns} | change
    with pytest.raises(UserError, match=message):
        rankers[kind]({name: values for name, values in columns.items() if values is not None})


def test_what_is_not_a_table_is_refused(rankers):
    with pytest.raises(UserError, match=r"cannot use a int as columns: .* Pass a dict of arrays or lists"):
        rankers["features"](5)
