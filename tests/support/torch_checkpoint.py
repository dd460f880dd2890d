"""Checkpoints in the earlier format, whose tensors torch.distributed.checkpoint's own writer wrote."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from common.checkpointing.planning import planning
from common.checkpointing.reader import CheckpointReader


def write_torch_checkpoint(
    root: Path, step: int, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any], **provenance: Any
) -> Path:
    """Write the checkpoint `<root>/<step>` in the earlier format, and return its path."""
    path = root / str(step)
    with planning():
        dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(path), no_dist=True)
    (path / "state.json").write_text(json.dumps(values))
    seal(path, step, version=1, **provenance)
    return path


def rewrite_in_torch_format(checkpoint: Path) -> None:
    """Replace a checkpoint with one of the earlier format and the same content."""
    with CheckpointReader(checkpoint) as opened:
        content = opened.tensors(), opened.state()
        provenance = opened.provenance
    for file in checkpoint.iterdir():
        file.unlink()
    write_torch_checkpoint(checkpoint.parent, int(checkpoint.name), *content, **provenance)


def seal(path: Path, step: int = 5, *, version: int, **provenance: Any) -> None:
    """Write a manifest that fits the files in the directory."""
    files = {
        file.name: {"size": file.stat().st_size, "blake2b": _digest(file.read_bytes())}
        for file in sorted(path.iterdir())
        if file.name != "manifest.json" and not file.name.startswith("tensors-")
    }
    content = {"format": version, "step": step, "provenance": provenance, "files": files}
    sealed = content | {"blake2b": _digest(json.dumps(content, sort_keys=True).encode())}
    (path / "manifest.json").write_text(json.dumps(sealed))


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=32).hexdigest()
