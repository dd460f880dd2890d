"""Runs the command as a user does, with a compiler that fails."""

import sys
from pathlib import Path

import pytest

from projects.home.recap.main import main
from tests.support.feature_table import config, write_config, write_data
from tests.support.programs import finish

pytestmark = pytest.mark.faults  # converting takes seconds


def test_a_compiler_that_fails_is_reported_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = config(write_data(tmp_path / "data"), tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["main", "--config", str(write_config(tmp_path / "config.yaml", values))])
    assert main() == 0
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "compiler 1.0" && exit 0\necho broken >&2; exit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    before = sorted(path.name for path in tmp_path.iterdir())
    arguments = ["--checkpoint", str(tmp_path / "run"), "--out", str(tmp_path / "export")]
    ended = finish(arguments, module="projects.home.recap.export")
    assert ended.returncode == 2, ended.stderr
    assert f"error: {compiler} cannot compile the package of AOTInductor" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == before
