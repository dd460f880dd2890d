"""Runs the command as a user does, with a package of AOTInductor, on a run with TF32 and autocast."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.reader.files import matching_files
from core.checkpoints.chosen import choose_checkpoint
from projects.home.recap.export.flat_ranker import flatten, ranker_inputs
from projects.home.recap.main import main
from projects.home.recap.saved import load_saved_ranker
from tests.support.export import forget_precision
from tests.support.feature_table import config, write_config, write_data
from tests.support.root import ROOT

pytestmark = pytest.mark.faults  # compiling takes up to a minute


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Train, and return the save_dir."""
    values = config(write_data(tmp_path / "data"), tmp_path / "run")
    values["runtime"] = {"enable_tensorfloat32": True, "enable_amp": True}
    monkeypatch.setattr(sys, "argv", ["main", "--config", str(write_config(tmp_path / "config.yaml", values))])
    assert main() == 0
    forget_precision()
    return tmp_path / "run"


def export(save_dir: Path, out: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    words = [sys.executable, "-m", "projects.home.recap.export", "--checkpoint", str(save_dir), "--out", str(out)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(words, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=280)


def test_the_package_of_aotinductor_scores_as_the_ranker_does(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "export"
    ended = export(run, out)
    assert ended.returncode == 0, ended.stderr
    assert "which takes about a minute" in ended.stderr
    files = {"model.pt2", "model.onnx", "model-aotinductor.pt2", "signature.json"}
    assert files < {path.name for path in out.iterdir()}
    assert all(name in ended.stdout for name in files)
    signature = json.loads((out / "signature.json").read_text())
    assert signature["aotinductor"]["vector"]
    assert signature["trained_with_autocast"] is True
    saved = load_saved_ranker(choose_checkpoint(run, best=False))
    package = torch._inductor.aoti_load_package(str(out / "model-aotinductor.pt2"))
    group = saved.open_table(matching_files(str(tmp_path / "data/validation.parquet"))).decode(0)
    for rows in (1, 2, 17):
        arguments = saved.inputs(group, 0, rows, rows)
        torch.testing.assert_close(package(flatten(arguments, ranker_inputs(saved))), saved.ranker(**arguments))


def test_a_compiler_that_fails_is_reported_and_nothing_is_left(run: Path, tmp_path: Path) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "compiler 1.0" && exit 0\necho broken >&2; exit 1\n')
    compiler.chmod(0o755)
    before = sorted(path.name for path in tmp_path.iterdir())
    ended = export(run, tmp_path / "export", CXX=str(compiler))
    assert ended.returncode == 2, ended.stderr
    assert f"error: {compiler} cannot compile the package of AOTInductor" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == before
