"""Tables that prepare has written train on several ranks, and a killed prepare leaves nothing in its way."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.click_table import click_table, write_csv
from tests.support.programs import finish, started_command, wait_for_line
from tests.support.root import ROOT

pytestmark = pytest.mark.faults

PREPARE = [sys.executable, "-m", "projects.home.recap.data.prepare"]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("table") / "clicks.csv", click_table(2000))


def prepared(table: Path, out: Path) -> Path:
    command = [*PREPARE, "--input", str(table), "--labels", "clicked", "--time", "when", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=200)
    return out


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["metrics"]["loss"] for line in lines if line["mode"] == "train"]


def test_a_prepared_table_trains_on_any_number_of_ranks_alike(table: Path, tmp_path: Path) -> None:
    out = prepared(table, tmp_path / "out")
    found = {}
    for processes in (1, 2, 3):
        run = tmp_path / f"run{processes}"
        settings = (
            f"training.save_dir={run}",
            "training.num_train_steps=20",
            "training.train_log_every_n=1",
            "model.backbone.mask_net_config.mlp.dropout=null",  # each rank draws its own
            "model.featurization_config.double_norm_log_config.batch_norm_config=null",  # each rank has its own
            *(f"features.{name}.unknown_pseudo_count=0" for name in ("user_id", "color")),
        )
        options = [word for setting in settings for word in ("--set", setting)]
        result = finish(["--config", str(out / "config.yaml"), *options], processes)
        assert result.returncode == 0, result.stderr
        found[processes] = losses(run)
    assert len(found[1]) == 20
    for processes in (2, 3):
        assert found[processes] == pytest.approx(found[1], rel=1e-3)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGKILL], ids=lambda stop: stop.name)
def test_a_killed_prepare_leaves_nothing_that_a_restart_would_meet(
    table: Path, tmp_path: Path, stop: signal.Signals
) -> None:
    out = tmp_path / "out"
    command = [*PREPARE, "--input", str(table), "--labels", "clicked", "--time", "when", "--out", str(out)]
    with started_command(command) as process:
        wait_for_line(process, "splitting")
        process.send_signal(stop)
        assert process.wait(timeout=60) != 0
    assert not out.exists()
    if stop == signal.SIGTERM:
        assert list(tmp_path.iterdir()) == []
    complete = prepared(table, tmp_path / "complete")
    prepared(table, out)
    for path in complete.rglob("*.parquet"):
        assert path.read_bytes() == (out / path.relative_to(complete)).read_bytes()
