"""Checks what is said about a checkpoint whose run has no TwHIN configuration."""

from pathlib import Path

import pytest

from common.errors import ConfigError
from projects.twhin.saved_config import read_run_config
from tests.support.evaluated_run import EvaluatedRun


def test_a_checkpoint_of_another_project_is_refused_in_one_line(tmp_path: Path) -> None:
    run = EvaluatedRun(tmp_path)
    run.train()
    with pytest.raises(ConfigError, match=r"checkpoints/10: not a checkpoint of TwHIN, because it has no .* tables$"):
        read_run_config(run.save_dir / "checkpoints/10")
