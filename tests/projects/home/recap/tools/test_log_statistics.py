"""Computes statistics of generated and of ordinary tables, compares them with numpy, and trains with them."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from common.errors import ConfigError, UserError
from common.reader.vectors import with_lists
from projects.home.recap import main as ranker
from projects.home.recap.tools import log_statistics
from tests.support.feature_table import config, write_config, write_data
from tests.support.runs import small_run


def z_score(path: Path) -> str:
    return f"model.featurization_config={{z_score_log_config: {{analysis_path: {path}}}}}"


def logs(numbers: Any) -> NDArray[np.float64]:
    numbers = np.nan_to_num(np.asarray(numbers, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    result: NDArray[np.float64] = np.sign(numbers) * np.log1p(np.abs(numbers))
    return result


def call(module: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> int:
    monkeypatch.setattr(sys, "argv", ["main", *arguments])
    status: int = module.main()
    return status


def test_statistics_of_vectors_equal_those_of_numpy_and_a_run_uses_them(
    recap_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "made/statistics.json"
    slices = "train_data.preprocess.truncate_and_slice={continuous_feature_truncation: 7}"
    also = "validation_data.validation.preprocess.truncate_and_slice={continuous_feature_truncation: 7}"
    arguments = small_run(recap_data, tmp_path / "run", z_score(path), slices, also)
    assert call(log_statistics, monkeypatch, arguments) == 0
    printed = capsys.readouterr().out
    assert f"statistics  {path}\n" in printed
    assert shlex.split(printed.splitlines()[-1])[-len(arguments) :] == arguments, "the next command"
    found = json.loads(path.read_text())
    rows = with_lists(pq.read_table(recap_data / "train", columns=["continuous"]))
    expected = logs([row[:7] for row in rows["continuous"].to_pylist()])
    assert found["features"] == [f"continuous[{index}]" for index in range(7)]
    np.testing.assert_allclose(found["mean"], expected.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found["std"], expected.std(0), rtol=1e-12)
    assert call(ranker, monkeypatch, arguments) == 0
    # A resume finds the digest of the file, not only its path.
    found["mean"][0] += 1
    path.write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"z_score_log_config\.analysis_path: "):
        call(ranker, monkeypatch, arguments)


def test_statistics_of_features_leave_numbers_with_buckets_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, path = write_data(tmp_path / "data"), tmp_path / "statistics.json"
    written = write_config(tmp_path / "config.yaml", config(data, tmp_path / "run", None))
    arguments = ["--config", str(written), "--set", z_score(path)]
    assert call(log_statistics, monkeypatch, arguments) == 0
    found = json.loads(path.read_text())
    assert found["features"] == ["income.gross", "seen_at.age"]
    income = np.array(pq.read_table(data / "train.parquet")["income.gross"].to_pylist(), np.float64)
    expected = logs(np.where(np.isnan(income), np.nanmean(income), income).astype(np.float32))
    assert found["mean"][0] == pytest.approx(expected.mean(), rel=1e-6)
    assert found["std"][0] == pytest.approx(expected.std(), rel=1e-6)
    assert call(ranker, monkeypatch, arguments) == 0


def test_an_existing_file_is_not_overwritten_and_a_path_is_required(
    recap_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.json"
    path.write_text("{}")
    with pytest.raises(UserError, match=r"mine\.json exists\. Delete it"):
        call(log_statistics, monkeypatch, small_run(recap_data, tmp_path / "run", z_score(path)))
    assert path.read_text() == "{}"
    with pytest.raises(ConfigError, match="z_score_log_config is missing"):
        call(log_statistics, monkeypatch, small_run(recap_data, tmp_path / "run"))


def test_training_without_the_file_says_how_to_compute_it(
    recap_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = small_run(recap_data, tmp_path / "run", z_score(tmp_path / "absent.json"))
    with pytest.raises(ConfigError, match=r"absent\.json: No such file.*tools\.log_statistics --config"):
        call(ranker, monkeypatch, arguments)
    assert not (tmp_path / "run").exists()
