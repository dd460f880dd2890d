"""Compares two runs bit for bit."""

import json
from pathlib import Path
from typing import Any

import torch

from common.checkpointing.directory import complete_steps
from common.checkpointing.reader import read_state, read_tensors


def logged(save_dir: Path) -> list[tuple[Any, ...]]:
    """Return the measurements in the metrics file, without `timing`, which depends on the clock."""
    lines = [json.loads(line) for line in (save_dir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["mode"], line["partition"], line["metrics"]) for line in lines]


def differences(one: Path, other: Path, step: int) -> list[str]:
    """Return the differences between the measurements and last checkpoints of two runs, ignoring `timing`.

    Args:
      one: save_dir of the first run.
      other: save_dir of the second run.
      step: last step of both runs.
    """
    found = []
    if (ends := [complete_steps(run / "checkpoints")[-1:] for run in (one, other)]) != [[step], [step]]:
        return [f"the last checkpoints are of steps {ends}; expected {step}"]
    lines, others = logged(one), logged(other)
    if lines != others:
        number = next((n for n, pair in enumerate(zip(lines, others, strict=False)) if pair[0] != pair[1]), None)
        where = f"line {number + 1}" if number is not None else f"{len(lines)} and {len(others)} lines"
        found.append(f"metrics.jsonl: {where}")
    checkpoints = [run / "checkpoints" / str(step) for run in (one, other)]
    states = [read_state(checkpoint) for checkpoint in checkpoints]
    # The configuration and its files have paths, and settings that do not change what is trained.
    names = (states[0].keys() | states[1].keys()) - {"tracker_run_id", "config", "inputs"}
    found += [f"state.json: {name}" for name in sorted(names) if states[0].get(name) != states[1].get(name)]
    tensors = [read_tensors(checkpoint) for checkpoint in checkpoints]
    if apart := sorted(tensors[0].keys() ^ tensors[1].keys()):
        return [*found, f"{len(apart)} tensors in only one of the runs: {', '.join(apart[:5])}"]
    return found + [f"tensor {name}" for name, value in tensors[0].items() if not torch.equal(value, tensors[1][name])]


def assert_equal_runs(one: Path, other: Path, step: int) -> None:
    """Raise AssertionError with the differences, if there are any."""
    assert differences(one, other, step) == []
