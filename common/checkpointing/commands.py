"""Prints what checkpoints contain and whether they are damaged. __main__.py reads the command line."""

import datetime
import json
from pathlib import Path

from tabulate import tabulate

from common.checkpointing.directory import size_on_disk, unfinished_saves
from common.checkpointing.manifest import CheckpointError, NoCheckpointError
from common.checkpointing.reader import CheckpointReader
from common.process.standard_streams import print_report

_MIB = 2**20
# Longer values (the configuration, the cursors) are not printed.
_MAX_PRINTED = 120


def list_checkpoints(checkpoints: list[Path]) -> int:
    """Print the steps, times and sizes of checkpoints, oldest first, and return the exit status 0."""
    rows = []
    for path in checkpoints:
        try:
            saved = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC)
            rows.append([path.name, f"{saved:%Y-%m-%d %H:%M:%S} UTC", f"{size_on_disk(path) / _MIB:,.1f}"])
        except FileNotFoundError:  # rotation has just deleted it
            continue
    table = tabulate(rows, ["step", "saved", "MiB"], disable_numparse=True, colalign=("right", "left", "right"))
    print_report(f"{checkpoints[0].parent}\n{table}\n")
    if names := unfinished_saves(checkpoints[0].parent):
        print_report(f"incomplete (saves in progress or interrupted): {', '.join(names)}\n")
    return 0


def verify(checkpoints: list[Path]) -> int:
    """Read every file of the checkpoints, print the results, and return the exit status: 1 if one is damaged."""
    damaged = 0
    for path in checkpoints:
        try:
            with CheckpointReader(path) as checkpoint:
                checkpoint.verify()
                result = f"ok, {checkpoint.num_bytes / _MIB:,.1f} MiB"
        except NoCheckpointError as error:
            result = str(error)
        except CheckpointError as error:
            result, damaged = f"DAMAGED: {error}", damaged + 1
        print_report(f"{path}: {result}\n")
    return 1 if damaged else 0


def inspect(checkpoints: list[Path]) -> int:
    """Print the state and the tensors of the newest checkpoint, and return the exit status 0."""
    with CheckpointReader(checkpoints[-1]) as checkpoint:
        state, tensors, provenance = checkpoint.state(), checkpoint.types(), checkpoint.provenance
    lines = [str(checkpoint.path), *(f"{name}: {value}" for name, value in provenance.items())]
    for name, value in state.items():
        text = json.dumps(value)
        lines.append(f"{name}: {text if len(text) <= _MAX_PRINTED else f'{len(text):,} characters, in state.json'}")
    rows = [
        [
            name,
            str(tensor.dtype).removeprefix("torch."),
            " x ".join(map(str, tensor.shape)) or "scalar",
            f"{tensor.nbytes:,}",
        ]
        for name, tensor in sorted(tensors.items())
    ]
    numbers = sum(tensor.numel() for tensor in tensors.values())
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    table = tabulate(
        [*rows, ["all", "", f"{numbers:,} numbers", f"{num_bytes:,}"]],
        ["tensor", "dtype", "size", "bytes"],
        disable_numparse=True,
        colalign=("left", "left", "left", "right"),
    )
    print_report("\n".join([*lines, "", table, ""]))
    return 0
