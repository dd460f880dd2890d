"""The starters in projects/twhin/data run the programs that moved to projects/twhin/tools."""

import subprocess
import sys

import pytest

from tests.support.root import ROOT


@pytest.mark.parametrize("program", ["generate", "prepare"])
def test_starter_runs_its_program(program):
    command = [sys.executable, "-m", f"projects.twhin.data.{program}", "--help"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(f"usage: python -m projects.twhin.tools.{program} ")
