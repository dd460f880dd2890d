"""Writes a checkpoint directory, which appears under its name only when it is complete and durable.

A checkpoint `<root>/<step>` holds tensors (torch.distributed.checkpoint), everything else as JSON (state.json), and a
manifest with the size and digest of each file and what wrote them. It is written to a hidden directory, synchronized to
disk, then renamed. Which checkpoints are kept is decided in retention.py.
"""

import concurrent.futures
import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from common.checkpointing.directory import ASIDE, complete_steps, delete_checkpoint, sync_directory
from common.checkpointing.manifest import MANIFEST, STATE, CheckpointError, FileRecord, file_digest, make_manifest
from common.checkpointing.reader import world_of_one_is_meant

T = TypeVar("T")


def write_checkpoint(
    root: Path,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    values: Mapping[str, Any],
    group: dist.ProcessGroup | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Writes `<root>/<step>`. Collective over `group`; None: a world of one.

    Args:
      root: directory of the run's checkpoints.
      step: steps done.
      tensors: by name; the same names on all ranks. What is equal on all ranks is written once.
      values: all the rest, as JSON; rank 0's are written.
      group: a gloo group that nothing else uses.
      provenance: what wrote it, as JSON, for the manifest; rank 0's is written.

    Raises:
      CheckpointError: the file system refuses; on all ranks.
    """
    final = root / str(step)
    aside = root / f"{ASIDE}{step}"
    rank = dist.get_rank(group) if group is not None else 0

    def prepare() -> None:
        if rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            _write_json(aside / STATE, values)

    def publish() -> None:
        if rank == 0:
            files = {name: file for part in parts for name, file in part.items()}
            _write_json(aside / MANIFEST, make_manifest(step, files, provenance or {}))
            sync_directory(aside)
            if final.exists():  # incomplete or damaged, else the run would have continued from it
                delete_checkpoint(final)
            aside.rename(final)
            sync_directory(root)

    try:
        _on_all_ranks(prepare, group)
        with world_of_one_is_meant():
            dcp.save(
                dict(tensors),
                storage_writer=_Writer(aside, sync_files=False),
                process_group=group,
                no_dist=group is None,
            )
        parts = _on_all_ranks(lambda: _seal_files(aside, rank), group)
        _on_all_ranks(publish, group)
    except (OSError, dcp.CheckpointException) as error:
        if rank == 0:  # a full disk needs the room
            shutil.rmtree(aside, ignore_errors=True)
        cause = error if isinstance(error, OSError) else next(iter(error.failures.values()))[0]
        raise CheckpointError(f"{final}: the checkpoint can't be written: {_refusal(cause, root)}") from error
    return final


class _Writer(dcp.FileSystemWriter):
    """A FileSystemWriter that raises what the system says of a write, where torch raises what follows from it."""

    def write_data(self, plan: dcp.SavePlan, planner: dcp.SavePlanner) -> Any:
        try:
            return super().write_data(plan, planner)
        except Exception as raised:
            error: BaseException | None = raised
            while error is not None and not isinstance(error, OSError):
                error = error.__context__
            raise error or raised from None


def _refusal(cause: BaseException, root: Path) -> str:
    """Why a checkpoint could not be written, and what there is."""
    told = str(cause).partition("\n")[0]
    if isinstance(cause, OSError):
        told = f"{cause.strerror}: {cause.filename}" if cause.filename else str(cause.strerror or cause)
        if cause.errno in (errno.ENOSPC, errno.EDQUOT):
            with contextlib.suppress(OSError):
                told += f" ({shutil.disk_usage(root).free / 2**20:,.1f} MiB free there; make room)"
    try:
        steps = str(complete_steps(root) or "none")
    except OSError:
        steps = "can't be looked at"
    return f"{told}. Complete checkpoints: {steps}"


def _on_all_ranks(action: Callable[[], T], group: dist.ProcessGroup | None) -> list[T]:
    """What `action` gives on each rank; what the disk refuses to any of them is raised on all, so that none waits."""
    mine: T | OSError
    try:
        mine = action()
    except OSError as error:
        mine = error
    outcomes: list[Any] = [mine]
    if group is not None:
        outcomes = [None] * dist.get_world_size(group)
        dist.all_gather_object(outcomes, mine, group=group)
    for outcome in outcomes:
        if isinstance(outcome, OSError):
            raise outcome
    return outcomes


def _seal_files(directory: Path, rank: int) -> dict[str, FileRecord]:
    """Makes the files that this rank has written durable; their sizes and digests. Rank 0's are also those that belong
    to no rank."""
    own = [
        path
        for path in sorted(directory.iterdir())
        if path.name.startswith(f"__{rank}_") or (rank == 0 and not path.name.startswith("__"))
    ]
    # The processor digests what the disk writes meanwhile.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        synced = [pool.submit(_sync_file, path) for path in own]
        files = {path.name: FileRecord(path.stat().st_size, file_digest(path)) for path in own}
        for future in synced:
            future.result()
    return files


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with path.open("w") as file:
        json.dump(content, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
