"""Checks that the programs of tools/ can also be started by their earlier names in data/."""

import subprocess
import sys

import pytest

from tests.support.root import ROOT


@pytest.mark.parametrize("name", ["convert", "generate", "join_embeddings", "movielens", "prepare"])
def test_a_starter_starts_the_program_in_tools(name: str) -> None:
    command = [sys.executable, "-m", f"projects.home.recap.data.{name}", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"usage: python -m projects.home.recap.tools.{name} ")
