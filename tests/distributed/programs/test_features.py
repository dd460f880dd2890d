"""Programs with configured features: several ranks train like one, survive a kill, and must agree on vocabularies."""

import contextlib
import io
import os
import runpy
from pathlib import Path
from unittest import mock

import pytest
import torch

from common.checkpointing.reader import read_tensors
from tests.support.comparison import assert_equal_runs, logged
from tests.support.feature_table import (
    COUNTRIES,
    FEATURES,
    VOCABULARY,
    config,
    write_config,
    write_data,
    write_vocabulary,
)
from tests.support.programs import RECAP, finish
from tests.support.ranks import free_port, run_ranks
from tests.support.trap import TRAP, Trap, trapped

pytestmark = pytest.mark.faults


def arguments(data: Path, save_dir: Path, pseudo_count: float) -> list[str]:
    """Return the arguments of a run with features of all kinds, of which rare values are replaced or not."""
    encoded = ("category", "categories")
    replaced = {"unknown_pseudo_count": pseudo_count}
    features = {name: each | (replaced if each["kind"] in encoded else {}) for name, each in FEATURES.items()}
    values = config(data, save_dir, features)
    return ["--config", str(write_config(save_dir.parent / f"{save_dir.name}.yaml", values))]


def test_two_and_three_ranks_train_like_one(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    for ranks in (1, 2, 3):
        done = finish(arguments(data, tmp_path / f"on-{ranks}", 0.0), ranks)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("computing means and edges of 5 number(s)") == 1
    alone = logged(tmp_path / "on-1")
    weights = read_tensors(tmp_path / "on-1/checkpoints/12")
    for ranks in (2, 3):
        for (*event, metrics), (*other_event, others) in zip(alone, logged(tmp_path / f"on-{ranks}"), strict=True):
            assert event == other_event
            loss = "loss" if event[1] == "train" else "mean/loss"
            assert others[loss] == pytest.approx(metrics[loss], abs=1e-5), (ranks, event)
        others = read_tensors(tmp_path / f"on-{ranks}/checkpoints/12")
        for name, weight in weights.items():
            if name.startswith("model."):
                torch.testing.assert_close(others[name], weight, rtol=1e-3, atol=1e-4, msg=name)


def test_a_killed_run_equals_an_uninterrupted_one_with_rare_values_replaced(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    whole = finish(arguments(data, tmp_path / "whole", 10.0), 2)
    assert whole.returncode == 0, whole.stderr
    killed = arguments(data, tmp_path / "killed", 10.0)
    traps = [Trap(r"^open \S+/\.writing-8/tensors-\d", rank=1)]  # before a rank writes its part
    done = finish(trapped(traps, RECAP, killed), 2, "--max-restarts", "1", module=TRAP)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("trap: ") == done.stderr.count("continuing after step 4 ") == 1
    assert_equal_runs(tmp_path / "whole", tmp_path / "killed", 12)


def run_program(rank: int, root: Path, ports: list[int]) -> list[str]:
    """Train and evaluate in a directory of this rank. Return what this rank printed each time."""
    os.chdir(root / str(rank))
    printed = []
    for mode, port in zip(("train", "evaluate"), ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        with (
            mock.patch("sys.argv", ["main", "--config", str(root / "config.yaml"), "--mode", mode]),
            contextlib.redirect_stderr(io.StringIO()) as stderr,
            pytest.raises(SystemExit) as ended,
        ):
            runpy.run_module(RECAP, run_name="__main__")
        assert ended.value.code == 2
        printed.append(stderr.getvalue())
    return printed


def test_a_vocabulary_that_differs_behind_an_equal_path_is_named(tmp_path: Path) -> None:
    for rank, countries in enumerate((COUNTRIES, [*COUNTRIES[1:], "xx"])):
        write_data(tmp_path / str(rank))
        write_vocabulary(tmp_path / str(rank) / VOCABULARY, countries)
    write_config(tmp_path / "config.yaml", config(Path(), tmp_path / "run"))
    ranks = run_ranks(run_program, tmp_path, [free_port(), free_port()], joined=False)
    for message, other in zip(*ranks, strict=True):
        assert "error: the 2 processes of this run differ:\n" in message
        for key_path in ("train_data", "validation_data.validation"):
            assert f'\n  {key_path}.vocabularies.country: "3 values, digest ' in message, message
        assert message.count("error") == 1
        assert "error" not in other
    assert not (tmp_path / "run").exists()
