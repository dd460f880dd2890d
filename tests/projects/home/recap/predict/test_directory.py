"""The directory of predictions is for one process at a time, and complete only with all of its files."""

import contextlib
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from projects.home.recap.predict.directory import PredictionDirectory

SOURCES: dict[str, dict[str, Any]] = {"checkpoint": {"step": 1}, "inputs": {"a.parquet": "1 row"}, "options": {}}


def test_a_second_process_is_refused_until_the_first_one_ends(tmp_path):
    first, second = (PredictionDirectory(tmp_path / "out") for _ in range(2))
    assert not first.begin(SOURCES, {})
    with pytest.raises(UserError, match="another process is writing predictions to this directory"):
        second.begin(SOURCES, {})
    first.close()
    assert not second.begin(SOURCES, {})


def test_every_process_must_see_what_rank_0_wrote(tmp_path, monkeypatch):
    monkeypatch.setattr("projects.home.recap.predict.directory._PATIENCE_IN_S", 0)
    with pytest.raises(UserError, match="does not see what rank 0 wrote there"):
        PredictionDirectory(tmp_path).check_shared(SOURCES)
    begin(tmp_path)
    PredictionDirectory(tmp_path).check_shared(SOURCES)
    with pytest.raises(UserError, match=r"checkpoint\.step: 1 there, 2 now"):
        PredictionDirectory(tmp_path).check_shared({"checkpoint": {"step": 2}})


def begin(out: Path) -> bool:
    with contextlib.closing(PredictionDirectory(out)) as directory:
        return directory.begin(SOURCES, {})


def test_complete_predictions_without_one_of_their_files_are_an_error(tmp_path):
    assert not begin(tmp_path)
    part = tmp_path / "predictions/part-00000.parquet"
    part.touch()
    PredictionDirectory(tmp_path).complete(SOURCES, {"files": 1})
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.json", "predictions"}
    assert begin(tmp_path)
    part.unlink()
    with pytest.raises(UserError, match="has 0 of the 1 files that were written"):
        begin(tmp_path)


def test_what_a_killed_process_leaves_is_removed(tmp_path):
    begin(tmp_path)
    part = tmp_path / "predictions/part-00000.parquet"
    names = [
        ".manifest.json.0badcafe",
        "predictions/.part-00001.parquet.0badcafe",
        ".unfinished/.metrics-1.npz.0badcafe",
    ]
    leftovers = [tmp_path / name for name in names]
    for path in (part, *leftovers):
        path.touch()
    assert not begin(tmp_path)
    assert not any(path.exists() for path in leftovers)
    assert part.exists()
