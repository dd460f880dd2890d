"""Looks at checkpoints.

python -m common.checkpointing list|verify|inspect DIR
"""

import datetime
import json
import sys
from collections.abc import Callable
from pathlib import Path

from tabulate import tabulate

from common.checkpointing.storage import (
    DamagedCheckpointError,
    NoCheckpointError,
    complete_steps,
    read_provenance,
    read_state,
    size_on_disk,
    tensor_types,
    unfinished,
    verify,
)
from common.paths import user_path
from common.program import ArgumentParser, run
from core.config.base_config import UserError

_MIB = 2**20
# What of a state is longer has the configuration, or cursors, in it.
_MAX_TOLD = 120


def main() -> int:
    """Runs a command.

    Returns:
      the exit status: 0, or 1 where a checkpoint is damaged.
    """
    parser = ArgumentParser(prog="python -m common.checkpointing", description="Looks at checkpoints.")
    commands = parser.add_subparsers(required=True, metavar="list|verify|inspect")
    actions: list[tuple[str, Callable[[list[Path]], int], str]] = [
        ("list", _list, "the complete checkpoints: steps, times, sizes"),
        ("verify", _verify_all, "reads every file and compares it with the manifest; status 1 where one is damaged"),
        ("inspect", _inspect, "what the newest holds: its state, and names, dtypes and sizes of its tensors"),
    ]
    for name, action, description in actions:
        command = commands.add_parser(name, help=description, description=f"Prints {description}.")
        command.add_argument("directory", metavar="DIR", help="save_dir of a run, its checkpoints, or one of them")
        command.set_defaults(action=action)
    args = parser.parse_args()
    status: int = args.action(_checkpoints(args.directory))
    return status


def _checkpoints(given: str) -> list[Path]:
    """What is meant: all complete checkpoints of a run, in the order of their steps, or one."""
    directory = user_path(given)
    if not directory.is_dir():
        raise UserError(f"{given}: no such directory (looked from {Path.cwd()}); give the save_dir of a run")
    if directory.name.isdecimal() and int(directory.name) in complete_steps(directory.parent):
        return [directory]
    root = directory / "checkpoints" if (directory / "checkpoints").is_dir() else directory
    steps = complete_steps(root)
    if not steps:
        left = f"; of saves that were interrupted or go on: {', '.join(unfinished(root))}" if unfinished(root) else ""
        raise UserError(
            f"{given}: no complete checkpoint in {root}{left}; give the save_dir of a run, its checkpoints, or one"
        )
    return [root / str(step) for step in steps]


def _list(checkpoints: list[Path]) -> int:
    rows = []
    for path in checkpoints:
        try:
            saved = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC)
            rows.append([path.name, f"{saved:%Y-%m-%d %H:%M:%S} UTC", f"{size_on_disk(path) / _MIB:,.1f}"])
        except FileNotFoundError:  # rotated away meanwhile
            continue
    table = tabulate(rows, ["step", "saved", "MiB"], disable_numparse=True, colalign=("right", "left", "right"))
    sys.stdout.write(f"{checkpoints[0].parent}\n{table}\n")
    if left := unfinished(checkpoints[0].parent):
        sys.stdout.write(f"not complete, of saves that were interrupted or go on: {', '.join(left)}\n")
    return 0


def _verify_all(checkpoints: list[Path]) -> int:
    damaged = 0
    for path in checkpoints:
        try:
            found = f"ok, {verify(path) / _MIB:,.1f} MiB"
        except NoCheckpointError as error:
            found = str(error)
        except DamagedCheckpointError as error:
            found, damaged = f"DAMAGED: {error}", damaged + 1
        sys.stdout.write(f"{path}: {found}\n")
        sys.stdout.flush()
    return 1 if damaged else 0


def _inspect(checkpoints: list[Path]) -> int:
    path = checkpoints[-1]
    state, tensors = read_state(path), tensor_types(path)
    lines = [f"{name}: {value}" for name, value in read_provenance(path).items()]
    for name, value in state.items():
        text = json.dumps(value)
        lines.append(f"{name}: {text if len(text) <= _MAX_TOLD else f'{len(text):,} characters, in state.json'}")
    rows = [
        [name, str(tensor.dtype).removeprefix("torch."), " x ".join(map(str, tensor.shape)) or "scalar", tensor.nbytes]
        for name, tensor in sorted(tensors.items())
    ]
    rows.append(["all", "", f"{sum(tensor.numel() for tensor in tensors.values()):,} numbers", 0])
    rows[-1][3] = sum(tensor.nbytes for tensor in tensors.values())
    table = tabulate(
        [[*row[:3], f"{row[3]:,}"] for row in rows],
        ["tensor", "dtype", "size", "bytes"],
        disable_numparse=True,
        colalign=("left", "left", "left", "right"),
    )
    sys.stdout.write("\n".join([str(path), *lines, "", table, ""]))
    return 0


if __name__ == "__main__":
    run(main, "looks again")
