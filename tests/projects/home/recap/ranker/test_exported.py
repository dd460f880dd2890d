"""Checks that an export predicts columns as the ranker of its checkpoint does."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UserError
from core.checkpoints.chosen import choose_checkpoint
from projects.home.recap import load_ranker
from projects.home.recap.export.export import export
from projects.home.recap.main import main
from projects.home.recap.ranker.load import Ranker
from tests.support.export import forget_precision
from tests.support.feature_table import LABEL, config, table, write_config, write_data
from tests.support.runs import small_run

KINDS = ("features", "schema")


@pytest.fixture(scope="module")
def directory(recap_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train and export with features of all kinds, and with a schema."""
    directory = tmp_path_factory.mktemp("runs")
    with_features = config(write_data(directory / "data"), directory / "features")
    with_features["model"]["score_weights"] = {LABEL: 2.0}
    arguments = {
        "features": ["--config", str(write_config(directory / "config.yaml", with_features))],
        "schema": small_run(recap_data, directory / "schema"),
    }
    for kind, words in arguments.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["main", *words])
            assert main() == 0
        forget_precision()
        checkpoint = choose_checkpoint(directory / kind, best=False)
        export(checkpoint, directory / f"exported-{kind}", compiles=False)
    return directory


@pytest.fixture(scope="module")
def rows(recap_data: Path) -> dict[str, pa.Table]:
    """Return rows with missing and unknown values, and rows with vectors as a file stores them."""
    return {"features": table(1500, seed=5), "schema": pq.read_table(recap_data / "validation")}


@pytest.fixture(scope="module")
def exported(directory: Path) -> dict[str, Ranker]:
    return {kind: load_ranker(directory / f"exported-{kind}") for kind in KINDS}


@pytest.fixture(scope="module")
def expected(directory: Path, rows: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """Return the predictions of the checkpoints."""
    return {kind: load_ranker(directory / kind)(rows[kind]) for kind in KINDS}


def assert_close(found: pa.Table, expected: pa.Table) -> None:
    assert found.schema.equals(expected.schema)
    for name in expected.column_names:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_predicts_what_its_checkpoint_predicts(kind, exported, expected, rows):
    assert_close(exported[kind](rows[kind]), expected[kind])
    assert_close(exported[kind](rows[kind].slice(7, 1)), expected[kind].slice(7, 1))
    assert exported[kind](rows[kind].slice(0, 0)).equals(expected[kind].slice(0, 0))


def test_lists_arrays_and_other_types_of_columns(exported, expected, rows):
    some, wanted = rows["features"].slice(0, 50), expected["features"].slice(0, 50)
    lists = some.to_pydict()
    assert_close(exported["features"](lists), wanted)
    arrays = {
        "age": np.array([np.nan if age is None else age for age in lists["age"]]),
        "country": some["country"].dictionary_encode(),
        "seen_at": some["seen_at"].to_numpy(),
        "served_at": some["served_at"].cast(pa.timestamp("ns", "UTC")),
    }
    assert_close(exported["features"]({**lists, **arrays}), wanted)


def test_threads_can_call_at_the_same_time(exported, expected, rows):
    def predict_slice(begin: int) -> None:
        assert_close(exported["features"](rows["features"].slice(begin, 7)), expected["features"].slice(begin, 7))

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(predict_slice, range(100))) == [None] * 100


def test_errors_name_the_column(exported, rows):
    columns = rows["features"].slice(0, 3).to_pydict()
    with pytest.raises(UserError, match="no column 'age', or more than one, but the ranker needs it"):
        exported["features"]({name: values for name, values in columns.items() if name != "age"})
    with pytest.raises(UserError, match=r"rows 0 to 2: row 0, column 'age': expected numbers; found {.*'old'.*}"):
        exported["features"]({**columns, "age": ["old"] * 3})


def test_what_an_export_cannot_do_is_an_error(directory, tmp_path):
    exported = directory / "exported-features"
    with pytest.raises(UserError, match=r"best=True: .* is an export of one checkpoint"):
        load_ranker(exported, best=True)
    with pytest.raises(UserError, match=r"device 'meta': .* is an export, which runs on the CPU here"):
        load_ranker(exported, device="meta")
    with pytest.raises(UserError, match="device 'gpu': Expected one of cpu, cuda"):
        load_ranker(exported, device="gpu")
    (tmp_path / "signature.json").write_text("{}")
    with pytest.raises(UserError, match=f"{tmp_path}: cannot use this export: FileNotFoundError: .*score.py"):
        load_ranker(tmp_path)
