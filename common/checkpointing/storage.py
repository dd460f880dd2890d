"""How a checkpoint directory becomes complete, is found, and is read back.

A checkpoint `<root>/<step>` holds tensors (torch.distributed.checkpoint), everything else as JSON (state.json), and a
manifest with the size and digest of each file, and what wrote them. It is written aside, synchronised to disk, then
renamed: under its name it is complete, and what was interrupted is invisible. Which checkpoints are made and kept is
not decided here (policy.py).
"""

import contextlib
import hashlib
import json
import logging
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from common.checkpointing.safe_reader import SafeReader
from core.config.base_config import UserError

_FORMAT = 1
_MANIFEST = "manifest.json"
_METADATA = ".metadata"
_STATE = "state.json"
_ASIDE = ".writing-"

T = TypeVar("T")


class CheckpointError(UserError):
    """A checkpoint that can't be written or used: the message names its path and what to do."""


class NoCheckpointError(CheckpointError):
    """There is no complete checkpoint at the path, or not any more: it may have vanished while it was read."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose files are not what its manifest says, or can't be read."""


def complete_steps(root: Path) -> list[int]:
    """Steps of the complete checkpoints under `root`, ascending; [] where there is no such directory."""
    if not root.is_dir():
        return []
    steps = [path for path in root.iterdir() if re.fullmatch(r"0|[1-9][0-9]*", path.name)]
    return sorted(int(path.name) for path in steps if (path / _MANIFEST).is_file())


def remove_unfinished(root: Path) -> None:
    """Removes what interrupted saves left under `root`. One process calls it, while nobody saves."""
    for name in unfinished(root):
        shutil.rmtree(root / name, ignore_errors=True)


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
      CheckpointError: the disk refuses; on all ranks.
    """
    final = root / str(step)
    aside = root / f"{_ASIDE}{step}"
    rank = dist.get_rank(group) if group is not None else 0

    def prepare() -> None:
        if rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            _write_json(aside / _STATE, values)

    def publish() -> None:
        if rank == 0:
            files = {name: file for part in parts for name, file in part.items()}
            about = {"format": _FORMAT, "step": step, "provenance": dict(provenance or {})}
            _write_json(aside / _MANIFEST, about | {"files": files})
            _sync_directory(aside)
            if final.exists():  # incomplete or damaged, else the run would have continued from it
                shutil.rmtree(final)
            aside.rename(final)
            _sync_directory(root)

    try:
        _on_all_ranks(prepare, group)
        with _world_of_one_is_meant():
            dcp.save(
                dict(tensors),
                storage_writer=dcp.FileSystemWriter(aside, sync_files=True),
                process_group=group,
                no_dist=group is None,
            )
        parts = _on_all_ranks(lambda: _digests(aside, rank), group)
        _on_all_ranks(publish, group)
    except (OSError, dcp.CheckpointException) as error:
        # torch tells a rank's failure with its traceback, and a write cut short as an error of its own.
        if rank == 0:  # a full disk needs the room
            shutil.rmtree(aside, ignore_errors=True)
        cause = error if isinstance(error, OSError) else next(iter(error.failures.values()))[0]
        raise CheckpointError(
            f"{final}: the checkpoint can't be written (is the disk full?): {cause}. "
            f"Complete checkpoints: {complete_steps(root) or 'none'}"
        ) from error
    return final


def read_state(path: Path) -> dict[str, Any]:
    """The values that were saved beside the tensors.

    Raises:
      NoCheckpointError: `path` is no complete checkpoint.
      DamagedCheckpointError: its state is damaged, or can't be read.
    """
    with _reading(path):
        _verify(path, _STATE)
        return _read_json(path, _STATE)


def read_provenance(path: Path) -> dict[str, Any]:
    """What the manifest says of who wrote the checkpoint.

    Raises:
      NoCheckpointError: `path` is no complete checkpoint.
      DamagedCheckpointError: its manifest can't be read.
    """
    with _reading(path):
        return _read_manifest(path).provenance


def read_tensors(path: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`, without it, in host memory. Every rank reads by itself. No code that
    may be in the files is run.

    Raises:
      NoCheckpointError: `path` is no complete checkpoint.
      DamagedCheckpointError: the size or digest of a file is not the manifest's, or a file can't be read.
    """
    with _reading(path):
        _verify(path)
        entries = _entries(path, prefix)
    tensors = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in entries.items()}
    load_tensors(path, tensors, prefix)
    return tensors


def tensor_sizes(path: Path, prefix: str = "") -> dict[str, torch.Size]:
    """Sizes of the tensors whose names begin with `prefix`, by their names without it.

    Raises:
      NoCheckpointError, DamagedCheckpointError: as read_tensors().
    """
    with _reading(path):
        _verify(path)
        return {name: entry.size for name, entry in _entries(path, prefix).items()}


def tensor_types(path: Path) -> dict[str, torch.Tensor]:
    """All tensors by name, with their sizes and dtypes but without their values (on the meta device).

    Raises:
      NoCheckpointError, DamagedCheckpointError: `path` is no complete checkpoint, or its metadata is damaged.
    """
    with _reading(path):
        _verify(path, _METADATA)
        return {
            name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
            for name, entry in _entries(path, "").items()
        }


def verify(path: Path) -> int:
    """Reads all files of a checkpoint and compares them with the manifest; the bytes read.

    Raises:
      NoCheckpointError, DamagedCheckpointError: as read_tensors().
    """
    with _reading(path):
        _verify(path)
        return size_on_disk(path)


def size_on_disk(path: Path) -> int:
    """Bytes of a checkpoint's files."""
    return sum(file.stat().st_size for file in path.iterdir())


def unfinished(root: Path) -> list[str]:
    """Names of what saves under way, or interrupted ones, have under `root`."""
    return sorted(path.name for path in root.glob(f"{_ASIDE}*"))


def load_tensors(path: Path, into: Mapping[str, torch.Tensor], prefix: str = "") -> None:
    """Reads tensors into the memory of others; of one that is spread over the ranks, this rank's part.

    Args:
      path: the checkpoint; its files have been verified, by tensor_sizes() for one.
      into: by their names in the checkpoint, less the prefix; of the sizes that they have there.
      prefix: of the names in the checkpoint.

    Raises:
      NoCheckpointError, DamagedCheckpointError: as read_tensors().
    """
    with _reading(path), _world_of_one_is_meant():
        named = {prefix + name: tensor for name, tensor in into.items()}
        dcp.load(named, storage_reader=SafeReader(path), no_dist=True)


def _entries(path: Path, prefix: str) -> dict[str, TensorStorageMetadata]:
    """Of the tensors whose names begin with `prefix`, without it."""
    metadata = SafeReader(path).read_metadata().state_dict_metadata
    return {
        name.removeprefix(prefix): entry
        for name, entry in metadata.items()
        if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }


def _is_news(record: logging.LogRecord) -> bool:
    """Not what torch logs, with a traceback and by the root logger, before it raises what _reading() tells."""
    return not record.getMessage().startswith(("Global metadata is not found", "Rank local metadata is not found"))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Tells a checkpoint that vanishes while it is read (rotated away by another process) from a damaged one."""
    root = logging.getLogger()
    root.addFilter(_is_news)
    try:
        yield
    except (OSError, pickle.UnpicklingError, dcp.CheckpointException, DamagedCheckpointError) as error:
        if not (path / _MANIFEST).is_file():
            raise NoCheckpointError(f"{path}: the checkpoint was removed while it was read") from error
        cause = next(iter(error.failures.values()))[0] if isinstance(error, dcp.CheckpointException) else error
        if isinstance(cause, pickle.UnpicklingError):
            found = str(cause).splitlines()[0]
            raise DamagedCheckpointError(
                f"{path}: not loaded: this program did not write it, and it could run code: {found}; remove it, or "
                "give another checkpoint"
            ) from error
        if not isinstance(cause, OSError):
            raise
        raise DamagedCheckpointError(f"{cause.filename or path}: can't be read: {cause.strerror or cause}") from error
    finally:
        root.removeFilter(_is_news)


@contextlib.contextmanager
def _world_of_one_is_meant() -> Iterator[None]:
    """Silences torch's guess, a warning, about what is meant where there is no process group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


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


class _Manifest(NamedTuple):
    """Attributes:
    files: sizes and digests, by name.
    provenance: as of write_checkpoint().
    """

    files: dict[str, tuple[int, str]]
    provenance: dict[str, Any]


def _read_manifest(path: Path) -> _Manifest:
    if not (path / _MANIFEST).is_file():
        found = f"no complete checkpoint here (no {_MANIFEST})"
        if not path.is_dir():
            found = f"no such directory (looked from {Path.cwd()})"
        raise NoCheckpointError(f"{path}: {found}; give a directory such as .../checkpoints/1000")
    content = _read_json(path, _MANIFEST)
    try:
        version, provenance = content["format"], dict(content["provenance"])
        files = {name: (file["size"], file["blake2b"]) for name, file in content["files"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, _MANIFEST, "it doesn't list the files") from error
    if version != _FORMAT:
        raise _damaged(path, _MANIFEST, f"format {version} found, this program reads {_FORMAT}")
    return _Manifest(files, provenance)


def _verify(path: Path, only: str | None = None) -> None:
    """Compares the files, or only one of them, with the manifest."""
    files = _read_manifest(path).files
    if only is not None and only not in files:
        raise _damaged(path, _MANIFEST, "it doesn't list the files")
    expected = files if only is None else {only: files[only]}
    for name, (expected_size, digest) in expected.items():
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size is None:
            raise _damaged(path, name, "the file is missing")
        if size != expected_size:
            raise _damaged(path, name, f"{size} bytes long, {expected_size} expected")
        if _digest(file) != digest:
            raise _damaged(path, name, "its digest is not the manifest's")


def _damaged(path: Path, name: str, found: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(f"{path}/{name}: damaged checkpoint: {found}; a run continues from the one before it")


def _digests(directory: Path, rank: int) -> dict[str, dict[str, Any]]:
    """Size and digest of the files that this rank has written; rank 0's are also those that belong to no rank."""
    names = [path.name for path in directory.iterdir()]
    own = [n for n in names if n.startswith(f"__{rank}_") or (rank == 0 and not n.startswith("__"))]
    return {
        name: {"size": (directory / name).stat().st_size, "blake2b": _digest(directory / name)} for name in sorted(own)
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((path / name).read_text())
    except (OSError, ValueError) as error:
        raise _damaged(path, name, str(error)) from error
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with path.open("w") as file:
        json.dump(content, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
