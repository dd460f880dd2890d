"""Ranks that differ in anything that they must agree on all raise the same error before the first step."""

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from common.checkpointing.directory import complete_steps
from common.distributed.world import World
from common.errors import UserError
from common.optimizers.config import LearningRate
from common.optimizers.learning_rate import ParameterGroupScheduler
from core.config.training import JobConfig, RuntimeConfig, TrainingConfig
from core.custom_training_loop import only_evaluate, train
from core.metrics.evaluation_set import EvaluationSet
from core.metrics.multi_task import MultiTaskMetrics
from core.run.agreement import check_agreement
from tests.support.ranks import run_ranks
from tests.support.toy import ALONE, FEATURES, ToyModel, rows_reader

pytestmark = pytest.mark.faults

RANKS = 3


def raised(action: Callable[[], object]) -> str:
    """Return the message of the UserError that `action` raises, or "" if it raises none."""
    try:
        action()
    except UserError as error:
        return str(error)
    return ""


class Facts(NamedTuple):
    """Facts of each rank, and the lines that name their differences."""

    by_rank: Sequence[dict[str, Any]]
    lines: Sequence[str]


FACTS = {
    "equal": Facts([{"a": {"b": [1, "x", None]}}] * 3, []),
    "value": Facts(
        [{"a": {"lr": 0.1}}, {"a": {"lr": 0.2}}, {"a": {"lr": 0.1}}], ["a.lr: 0.1 on ranks 0, 2; 0.2 on rank 1"]
    ),
    "missing": Facts([{"a": {"b": None}}, {"a": {}}, {"a": {}}], ["a.b: null on rank 0; missing on ranks 1, 2"]),
    "item": Facts([{"a": [1, 2]}, {"a": [1, 3]}, {"a": [1, 2]}], ["a[1]: 2 on ranks 0, 2; 3 on rank 1"]),
    "length": Facts([{"a": [1]}, {"a": [1, 3]}, {"a": []}], ["a: [1] on rank 0; [1, 3] on rank 1; [] on rank 2"]),
    "dotted key": Facts(
        [{"a": {"b.c": 1}}, {"a": {"b.c": 1}}, {"a": {"b.c": 2}}], ["a[b.c]: 1 on ranks 0, 1; 2 on rank 2"]
    ),
    "order": Facts(
        [{"a": {"x": 1, "y": 1}}, {"a": {"y": 1, "x": 1}}, {"a": {"x": 1, "y": 1}}],
        ["a: the order of its keys is x, y on ranks 0, 2; y, x on rank 1"],
    ),
    "type": Facts([{"a": "1"}, {"a": 1}, {"a": {"b": 1}}], ['a: "1" on rank 0; 1 on rank 1; {"b": 1} on rank 2']),
}


def compare_facts(world: World) -> dict[str, str]:
    """Compare each of FACTS twice, as two objects. Return the messages of this rank."""
    return {
        name: raised(lambda facts=facts: check_agreement(world, lambda: [facts.by_rank[world.rank]] * 2))  # type: ignore[misc]
        for name, facts in FACTS.items()
    }


def test_every_difference_is_one_line_that_names_the_ranks() -> None:
    ranks = run_ranks(compare_facts, world_size=RANKS)
    assert ranks[1:] == ranks[:1] * (RANKS - 1)
    for name, facts in FACTS.items():
        first, *lines = ranks[0][name].splitlines() or [""]
        assert bool(first) == bool(facts.lines), name
        assert [line.strip() for line in lines[:-1]] == facts.lines, name


def test_a_world_of_one_compares_nothing() -> None:
    def unreachable() -> list[dict[str, Any]]:
        raise AssertionError

    check_agreement(ALONE, unreachable)


# --- train() and only_evaluate(). ---


class Run:
    """Calls train() or only_evaluate() on a rank. Tests replace its parts on one rank."""

    def __init__(self, directory: Path, world: World) -> None:
        self.world = world
        self.training: dict[str, Any] = {"save_dir": str(directory / "run"), "num_train_steps": 4}
        self.train_rows = self.evaluation_rows = directory
        self.partition = "rows"
        self.model: nn.Module = ToyModel()
        self.learning_rate = 0.01
        self.momentum = 0.0
        self.options: dict[str, Any] = {}

    def train(self) -> object:
        groups = [{"params": [p for p in self.model.parameters() if p.requires_grad], "name": "all"}]
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=self.momentum)
        rates = ParameterGroupScheduler(optimizer, [LearningRate(constant=self.learning_rate)])
        return train(self._config, self.model, optimizer, rates, *self._data, self.world, **self.options)

    def evaluate(self) -> object:
        return only_evaluate(self._config, self.model, *self._data, self.world)

    @property
    def _config(self) -> JobConfig:
        return JobConfig(training=TrainingConfig(**self.training), runtime=RuntimeConfig())

    @property
    def _data(self) -> tuple[Any, dict[str, EvaluationSet]]:
        readers = [rows_reader(folder, self.world) for folder in (self.train_rows, self.evaluation_rows)]
        return readers[0], {
            self.partition: EvaluationSet(readers[1], lambda device: MultiTaskMetrics(["a", "b"], device))
        }


def other_model(run: Run) -> None:
    run.model = ToyModel()
    run.model.out = nn.Linear(8, 3)


def frozen(run: Run) -> None:
    next(run.model.parameters()).requires_grad_(False)


CHANGES: dict[str, tuple[Callable[[Run], None], list[str]]] = {
    "config": (
        lambda run: run.training.update(num_train_steps=5),
        ["training.num_train_steps: 4 on rank 0; 5 on rank 1"],
    ),
    "learning rate": (
        lambda run: setattr(run, "learning_rate", 0.02),
        ["learning rates.all: 0.01 on rank 0; 0.02 on rank 1"],
    ),
    "optimizer": (
        lambda run: setattr(run, "momentum", 0.5),
        ['optimizer[0].momentum: "0.0" on rank 0; "0.5" on rank 1'],
    ),
    "model": (other_model, ['model[out.weight]: "float32 [2, 8]" on rank 0; "float32 [3, 8]" on rank 1']),
    "frozen": (frozen, ['model[hidden.weight]: "float32 [8, 5]" on rank 0; "float32 [8, 5], frozen" on rank 1']),
    "train rows": (
        lambda run: setattr(run, "train_rows", run.train_rows / "other"),
        ["training data.files[rows.parquet]: "],
    ),
    "evaluation rows": (
        lambda run: setattr(run, "evaluation_rows", run.evaluation_rows / "other"),
        ["evaluation sets.rows.files[rows.parquet]: "],
    ),
    "partition": (
        lambda run: setattr(run, "partition", "x"),
        ["evaluation sets.rows: ", "evaluation sets.x: missing on rank 0"],
    ),
    "overwrite": (
        lambda run: run.options.update(overwrite_save_dir=True),
        ["overwrite_save_dir: false on rank 0; true on rank 1"],
    ),
    "on_fresh_run": (lambda run: run.options.update(on_fresh_run=print), ["on_fresh_run is given: false on rank 0"]),
    "extra_metrics": (lambda run: run.options.update(extra_metrics=dict), ["extra_metrics is given: false on rank 0"]),
}
EVALUATED = ("config", "model", "train rows", "evaluation rows", "partition")


def change_one_rank(world: World, directory: Path) -> dict[str, str]:
    """Start with each of CHANGES on the last rank. Return the messages of this rank."""
    messages = {}
    for name, (change, _) in CHANGES.items():
        for mode in ("train", "evaluate") if name in EVALUATED else ("train",):
            run = Run(directory, world)
            if world.rank == world.size - 1:
                change(run)
            messages[f"{name}, {mode}"] = raised(getattr(run, mode))
    return messages


def test_components_that_differ_are_an_error_on_all_ranks_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    features = np.ones((220, FEATURES), "float32").reshape(-1)
    table = pa.table({"features": pa.FixedSizeListArray.from_arrays(pa.array(features), FEATURES)})
    pq.write_table(table, tmp_path / "other/rows.parquet")
    rows_reader(tmp_path)  # creates its file

    ranks = run_ranks(change_one_rank, tmp_path, world_size=2)
    assert ranks[0] == ranks[1]
    for start, message in ranks[0].items():
        for line in CHANGES[start.rpartition(", ")[0]][1]:
            assert f"\n  {line}" in message, (start, message)
    assert not (tmp_path / "run").exists()


# --- Content that is equal in name only. ---


def warm_start(world: World, directory: Path) -> str:
    """Train from `initial`, a relative path that is another checkpoint on each rank."""
    os.chdir(directory / str(world.rank))
    run = Run(directory, world)
    run.training["initial_checkpoint_dir"] = "initial"
    return raised(run.train)


def test_another_initial_checkpoint_at_the_same_path_is_an_error(tmp_path: Path) -> None:
    for rank in range(2):
        run = Run(tmp_path, ALONE)
        run.training["save_dir"] = str(tmp_path / str(rank) / "initial")
        run.learning_rate = 0.01 * (rank + 1)
        run.train()
    assert complete_steps(tmp_path / "1/initial/checkpoints") == [4]
    messages = run_ranks(warm_start, tmp_path, world_size=2)
    assert messages[0] == messages[1]
    assert "\n  content of initial/checkpoints/4: " in messages[0]
    assert not complete_steps(tmp_path / "run/checkpoints")

    shutil.rmtree(tmp_path / "1/initial")
    shutil.copytree(tmp_path / "0/initial", tmp_path / "1/initial")
    assert run_ranks(warm_start, tmp_path, world_size=2) == ["", ""]
    assert complete_steps(tmp_path / "run/checkpoints") == [4]


# --- What the log says before all ranks agree. ---


def resume_unless_refused(world: World, directory: Path) -> tuple[str, list[str]]:
    """Train, then resume twice: rank 1 refuses at the end of the first attempt to restore.

    Returns:
      the message of the refusal, and the log lines of each attempt about where the run continues.
    """
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.INFO)
    Run(directory, world).train()

    def refuse(*_: object) -> None:
        raise UserError("rank 1 cannot load this")

    run = Run(directory, world)
    run.training["num_train_steps"] = 6
    with mock.patch("core.run.start.load_optimizer", refuse) if world.rank == 1 else contextlib.nullcontext():
        message = raised(run.train)
    logged.append("next attempt")
    run.train()
    return message, [line.partition(" from ")[0] for line in logged if line.startswith(("continuing", "next attempt"))]


def test_the_log_says_that_a_run_continues_only_once_all_ranks_have_restored_it(tmp_path: Path) -> None:
    rows_reader(tmp_path)  # creates its file
    expected = ("rank 1 cannot load this", ["next attempt", "continuing after step 4"])
    assert run_ranks(resume_unless_refused, tmp_path, world_size=2) == [expected, expected]
