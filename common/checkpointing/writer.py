"""Writes checkpoint directories. A directory gets its final name only when it is complete and durable.

A checkpoint `<root>/<step>` contains the tensors (raw_storage/), everything else as JSON (state.json), and a manifest
with the provenance and the digests of the index of the tensors and of state.json. The writer fills a hidden directory,
synchronizes it to disk, then renames it. retention.py decides which checkpoints to keep.
"""

import contextlib
import errno
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from common.checkpointing.directory import HIDDEN_PREFIX, complete_steps, delete_checkpoint
from common.checkpointing.manifest import (
    INDEX,
    MANIFEST,
    STATE,
    CheckpointError,
    FileRecord,
    file_digest,
    make_manifest,
)
from common.checkpointing.planning import planning
from common.checkpointing.raw_storage.writer import RawWriter
from common.files.durable import sync_descriptor, sync_directory


def write_checkpoint(
    root: Path,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    values: Mapping[str, Any],
    group: dist.ProcessGroup | None = None,
    provenance: Mapping[str, Any] | None = None,
    may_publish: Callable[[], bool] = lambda: True,
) -> Path:
    """Write the checkpoint `<root>/<step>` and return its path. Collective over `group`.

    Args:
      root: directory of the run's checkpoints.
      step: number of completed steps.
      tensors: tensors by name, with the same names on all ranks. A tensor that all ranks hold is written once.
      values: all other state as JSON values. Rank 0's values are written.
      group: gloo group that nothing else uses, or None for a single process.
      provenance: JSON values for the manifest that describe what wrote the checkpoint. Rank 0's values are written.
      may_publish: called on rank 0 before the checkpoint gets its name. Returns False if `root` belongs to another run
        by now.

    Raises:
      CheckpointError: on all ranks, if writing fails on any rank.
    """
    final = root / str(step)
    hidden = root / f"{HIDDEN_PREFIX}{step}"
    rank = dist.get_rank(group) if group is not None else 0

    def prepare() -> None:
        if rank == 0:
            shutil.rmtree(hidden, ignore_errors=True)
            hidden.mkdir(parents=True)
            _write_json(hidden / STATE, values)

    def publish() -> None:
        if rank == 0:
            files = {
                name: FileRecord((hidden / name).stat().st_size, file_digest(hidden / name)) for name in (INDEX, STATE)
            }
            _write_json(hidden / MANIFEST, make_manifest(step, files, provenance or {}))
            sync_directory(hidden)
            if not may_publish():
                raise OSError(errno.EBUSY, "another run has claimed this directory", str(root))
            if final.exists():  # it is incomplete or damaged, or the run would have resumed from it
                delete_checkpoint(final)
            hidden.rename(final)
            sync_directory(root)

    try:
        _on_all_ranks(prepare, group)
        with planning():
            dcp.save(
                dict(tensors),
                storage_writer=RawWriter(hidden, INDEX, rank),
                process_group=group,
                no_dist=group is None,
            )
        _on_all_ranks(publish, group)
    except (OSError, dcp.CheckpointException) as error:
        if rank == 0 and may_publish():  # free the space in case the disk is full
            shutil.rmtree(hidden, ignore_errors=True)
        cause = error if isinstance(error, OSError) else next(iter(error.failures.values()))[0]
        raise CheckpointError(f"{final}: cannot write the checkpoint: {_describe(cause, root)}") from error
    return final


def _describe(cause: BaseException, root: Path) -> str:
    """Describe why a write failed and list the complete checkpoints under `root`."""
    reason = str(cause).partition("\n")[0]
    if isinstance(cause, OSError):
        reason = f"{cause.strerror}: {cause.filename}" if cause.filename else str(cause.strerror or cause)
        if cause.errno in (errno.ENOSPC, errno.EDQUOT):
            with contextlib.suppress(OSError):
                reason += f" ({shutil.disk_usage(root).free / 2**20:,.1f} MiB free; free some space)"
    try:
        steps = str(complete_steps(root) or "none")
    except OSError:
        steps = "unknown (cannot read the directory)"
    return f"{reason}. Complete checkpoints: {steps}"


def _on_all_ranks(action: Callable[[], None], group: dist.ProcessGroup | None) -> None:
    """Run `action`. If any rank raises an OSError, all ranks raise it, so that none waits for it."""
    mine: OSError | None = None
    try:
        action()
    except OSError as error:
        mine = error
    outcomes = [mine]
    if group is not None:
        outcomes *= dist.get_world_size(group)
        dist.all_gather_object(outcomes, mine, group=group)
    for outcome in outcomes:
        if outcome is not None:
            raise outcome


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with path.open("w") as file:
        json.dump(content, file, indent=1, allow_nan=False)
        file.flush()
        sync_descriptor(file.fileno())
