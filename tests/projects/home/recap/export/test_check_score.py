"""An export is refused if its score.py encodes rows of the data differently from the trainer."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from common.errors import UserError
from projects.home.recap.export.check_score import check_score
from projects.home.recap.export.encoding import Entry, encoding_of_features, ignored_features
from projects.home.recap.export.flat_ranker import ranker_inputs
from projects.home.recap.export.rows import read_rows
from projects.home.recap.export.signature import write_vocabularies
from tests.support.exported_encoder import open_encoding
from tests.support.feature_table import LABEL
from tests.support.random_ranker import with_features

MODEL: dict[str, Any] = {
    "tasks": {LABEL: {"mlp_config": {"layer_sizes": [1]}}},
    "featurization_config": {"log1p_abs_config": {}},
}
POSITION = {"position_feature": "items", "num_dims": 3}


def check(tmp_path: Path, changes: Mapping[str, Entry], **values: Any) -> None:
    """Check an export whose encoding has some changes, by the name of the feature."""
    saved = with_features(tmp_path, MODEL | values)
    inputs = ranker_inputs(saved)
    data = read_rows(saved, inputs)
    assert data is not None
    assert saved.encoder is not None
    out = tmp_path / "out"
    out.mkdir()
    ignored = ignored_features(saved.config.model)
    encoding = encoding_of_features(saved.encoder, inputs, write_vocabularies(saved.encoder, out), ignored)
    open_encoding(out, inputs, [entry | changes.get(entry["name"], {}) for entry in encoding])
    check_score(saved, data, out)


def test_the_encoding_of_the_trainer_passes(tmp_path: Path) -> None:
    check(tmp_path, {})


def test_a_position_that_serving_does_not_know_is_not_compared(tmp_path: Path) -> None:
    check(tmp_path, {}, position_debias_config=POSITION)


def test_the_first_row_that_differs_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"score.py encodes row .* of validation_data.validation differently .* Nothing was published"
    ) as error:
        check(tmp_path, {"income.gross": {"missing": -7.0}})
    rows = pq.read_table(tmp_path / "data/validation.parquet")["income.gross"].to_pylist()
    found = re.search(r"row (\d+) .* the input continuous is -7.0, but the trainer reads", str(error.value))
    assert found is not None
    assert int(found[1]) == rows.index(None)


def test_a_value_that_score_py_refuses_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"score.py refuses rows of validation_data.validation .*: row 0, column 'country': .* integers"
    ):
        check(tmp_path, {"country": {"values": ["integers"]}})
