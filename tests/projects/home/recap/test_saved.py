"""Checks that a ranker of a checkpoint scores files as the run's own evaluation did."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import roc_auc_score

from common.checkpointing.manifest import CheckpointError
from common.errors import UserError
from common.reader.files import matching_files
from core.checkpoints.chosen import choose_checkpoint
from projects.home.recap.main import main
from projects.home.recap.saved import SavedRanker, load_saved_ranker
from tests.support.comparison import logged
from tests.support.evaluated_run import EvaluatedRun
from tests.support.feature_table import LABEL, VOCABULARY, config, write_config, write_data, write_vocabulary
from tests.support.runs import small_run

Train = Callable[..., Path]


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, recap_data: Path, tmp_path: Path) -> Train:
    """Return a function that trains on a copy of the data in `tmp_path`, and returns the save_dir."""

    def run(*overrides: str, schema: bool = True) -> Path:
        save_dir, data = tmp_path / "run", tmp_path / "data"
        if schema:
            shutil.copytree(recap_data, data)
            arguments = small_run(data, save_dir, *overrides)
        else:
            path = write_config(tmp_path / "config.yaml", config(write_data(data), save_dir))
            arguments = ["--config", str(path), *(word for each in overrides for word in ("--set", each))]
        monkeypatch.setattr(sys, "argv", ["main", *arguments])
        assert main() == 0
        return save_dir

    return run


def scores(saved: SavedRanker, inputs: Path, task: int = 0) -> np.ndarray:
    """Return the calibrated probabilities of a task for all rows of files, in batches of 32."""
    table = saved.open_table(matching_files(str(inputs)))
    found = []
    for index, rows in enumerate(table.rows_per_group):
        group = table.decode(index)
        for begin in range(0, rows, 32):
            end = min(begin + 32, rows)
            outputs = saved.ranker(**saved.inputs(group, begin, end, 32))
            found.append(outputs["calibrated_probabilities"][: end - begin, task])
    return torch.cat(found).numpy()


def test_a_ranker_with_a_schema_scores_as_the_evaluation_did(train: Train, tmp_path: Path) -> None:
    save_dir = train("metrics.exact=true")
    (tmp_path / "data/schema.json").unlink()  # the run has a copy
    saved = load_saved_ranker(choose_checkpoint(save_dir, best=False))
    task = next(iter(saved.config.model.tasks))
    inputs = tmp_path / "data/validation"
    labels = np.concatenate([pq.read_table(path)[task] for path in matching_files(str(inputs)).paths])
    metrics = logged(save_dir)[-1][3]
    assert saved.step == 12
    assert "discrete" not in saved.features, "the model does not use them"
    assert roc_auc_score(labels, scores(saved, inputs)) == pytest.approx(metrics[f"{task}/auroc"], rel=1e-9)


def test_discrete_features_are_read_if_a_metric_uses_them(train: Train) -> None:
    save_dir = train("model.stratifiers=[{name: first, index: 0, value: 1}]")
    assert "discrete" in load_saved_ranker(save_dir / "checkpoints/12").features


def test_a_ranker_with_features_uses_the_vocabulary_and_the_averages_of_its_run(train: Train, tmp_path: Path) -> None:
    save_dir = train("metrics.exact=true", "training.ema_decay=0.5", schema=False)
    write_vocabulary(tmp_path / "data" / VOCABULARY, ["us", "??"])
    saved = load_saved_ranker(choose_checkpoint(save_dir, best=False))
    inputs = tmp_path / "data/validation.parquet"
    metrics = logged(save_dir)[-1][3]
    expected = roc_auc_score(pq.read_table(inputs)[LABEL], scores(saved, inputs))
    assert expected == pytest.approx(metrics[f"{LABEL}/auroc"], rel=1e-9)


def test_a_moved_checkpoint_needs_the_copies_or_the_originals(train: Train, tmp_path: Path) -> None:
    save_dir = train(schema=False)
    moved = shutil.copytree(save_dir / "checkpoints/12", tmp_path / "models/ranker")
    assert load_saved_ranker(moved).step == 12  # the originals have not changed
    (tmp_path / "data" / VOCABULARY).unlink()
    with pytest.raises(UserError, match=f"needs the file .*{VOCABULARY} as it was in training"):
        load_saved_ranker(moved)
    shutil.copytree(save_dir / "inputs", tmp_path / "models/inputs")
    assert load_saved_ranker(moved).step == 12


def test_a_checkpoint_of_another_project_is_refused(tmp_path: Path) -> None:
    run = EvaluatedRun(tmp_path)
    run.train()
    with pytest.raises(CheckpointError, match="not a checkpoint of the Heavy Ranker"):
        load_saved_ranker(run.save_dir / "checkpoints/10")
