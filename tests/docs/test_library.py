"""The programs in README.md and docs/library.md that use a trained ranker work as printed."""

import re
import sys
from pathlib import Path

import pytest

from projects.home.recap.main import main
from tests.support.root import ROOT
from tests.support.runs import small_run


def test_the_programs_print_probabilities(
    recap_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/recap").symlink_to(recap_data)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main", *small_run(recap_data, Path("runs/recap-local"))])
    assert main() == 0
    for page, rows in (("README.md", 5), ("docs/library.md", 3)):
        (program,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
        capsys.readouterr()
        exec(program, {})
        *_, numbers = capsys.readouterr().out.strip().splitlines()
        probabilities = [float(number) for number in re.findall(r"\d\.\d+(?:e-\d+)?", numbers)]
        assert len(probabilities) == rows
        assert all(0 < probability < 1 for probability in probabilities)
