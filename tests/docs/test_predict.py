"""The commands in docs/predict.md work as printed."""

import re
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from projects.home.recap.main import main
from projects.home.recap.predict.__main__ import main as predict
from tests.support.root import ROOT
from tests.support.runs import small_run


def test_the_commands_write_predictions_and_the_best_rows(
    recap_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/recap").symlink_to(recap_data)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main", *small_run(recap_data, Path("runs/recap-local"))])
    assert main() == 0
    page = (ROOT / "docs/predict.md").read_text()
    commands = re.findall(r"-m projects\.home\.recap\.predict ((?:.*\\\n)*.*)", page)
    assert len(commands) == 3
    for command in commands:
        monkeypatch.setattr(sys, "argv", ["predict", *command.replace("\\\n", " ").split()])
        assert predict() == 0
    whole = pq.read_table("runs/predictions/predictions")
    assert whole.num_rows == 500
    assert pq.read_table("runs/predictions-2/predictions").equals(whole.drop(["meta__user_id", "meta__tweet_id"]))
    best = pq.read_table("runs/best/top_k")
    assert set(best["meta__user_id"].to_pylist()) == set(whole["meta__user_id"].to_pylist())
    assert best["rank"].to_pylist()[0] == 1
