"""Reads checkpoints. An open checkpoint is protected from deletion, and no unverified data is used.

This module knows nothing about sharding: for a sharded tensor, each rank passes its own shards to load().
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import pickle
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Self

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from common.checkpointing.manifest import (
    ADVICE,
    INDEX,
    MANIFEST,
    METADATA,
    STATE,
    TORCH_FORMAT,
    DamagedCheckpointError,
    NoCheckpointError,
    damaged,
    file_digest,
    parse_json,
    parse_manifest,
)
from common.checkpointing.planning import planning
from common.checkpointing.raw_storage.index import DamagedTensorsError, InvalidIndexError, TensorIndex, parse_index
from common.checkpointing.raw_storage.reader import RawReader, check_sizes, verify_tensors
from common.checkpointing.safe_reader import SafeReader
from common.distributed.world import World

# torch raises RuntimeError if the metadata declares a tensor larger than memory.
_UNREADABLE = (OSError, RuntimeError, pickle.UnpicklingError, dcp.CheckpointException)


class CheckpointReader:
    """Reads a complete checkpoint and keeps rotation from deleting it until close() or the end of the process.

    Compares each part of a file with its digest or checksum before using it: the bytes of tensors while they are read,
    and all other files once. Never runs code that the files may contain. All methods raise

      NoCheckpointError: the checkpoint was removed while it was open.
      DamagedCheckpointError: a file has another size or content than when it was written, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        """Open the checkpoint at `path`.

        Raises:
          NoCheckpointError: `path` is not a complete checkpoint.
          CheckpointError: an incompatible version of this program wrote it.
        """
        self.path = path
        self._verified: set[str] = set()
        self._parsed_index: TensorIndex | None = None
        with self._reading(), contextlib.ExitStack() as stack:
            self._lock = stack.enter_context(_locked_manifest(path))
            content = self._lock.read()
            self._manifest = parse_manifest(path, content)
            stack.pop_all()
        self.digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        """Digest of the manifest, which depends on the content of all files."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Allow rotation to delete the checkpoint again."""
        self._lock.close()

    @property
    def provenance(self) -> dict[str, Any]:
        """Provenance from the manifest: what wrote the checkpoint."""
        return self._manifest.provenance

    @property
    def num_bytes(self) -> int:
        """Total size of the files in bytes, without the manifest."""
        listed = sum(file.size for file in self._manifest.files.values())
        if self._is_from_torch:
            return listed
        with self._reading():
            return listed + sum(self._index().file_sizes().values())

    def state(self) -> dict[str, Any]:
        """Return the values that were saved with the tensors."""
        with self._reading():
            return self._json(STATE)

    def verify(self) -> None:
        """Read all files, and compare them with their digests and checksums."""
        self.prepare()
        if not self._is_from_torch:
            with self._reading():
                verify_tensors(self.path, self._index())

    def prepare(self, rank: int = 0, world_size: int = 1) -> None:
        """Verify what load() does not: all that is not the content of tensors.

        In the earlier format, this includes the tensor files. Each of `world_size` ranks computes the digests of a
        share of the files.
        """
        by_size = sorted(self._manifest.files, key=lambda name: self._manifest.files[name].size, reverse=True)
        with self._reading():
            for name in by_size:
                self._check_size(name)
            for name in by_size[rank::world_size]:
                self._verify(name)
            if not self._is_from_torch:
                check_sizes(self.path, self._index())

    def mark_verified(self) -> None:
        """Skip all further comparisons with the manifest. Call this after prepare() has returned on every rank."""
        self._verified |= self._manifest.files.keys()

    def types(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """Return the tensors whose names start with `prefix`, by the rest of the name, on the meta device.

        They have shapes and dtypes but no values.
        """
        with self._reading():
            if self._is_from_torch:
                self._verify(METADATA)
            metadata = self._reader().read_metadata().state_dict_metadata
            return {
                name.removeprefix(prefix): torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
                for name, entry in metadata.items()
                if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
            }

    def tensors(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """Return the tensors whose names start with `prefix`, by the rest of the name, in host memory."""
        self.prepare()
        with self._reading():
            into = {name: torch.empty_like(kind, device="cpu") for name, kind in self.types(prefix).items()}
        self.load(into, prefix)
        return into

    def load(self, into: Mapping[str, torch.Tensor], prefix: str = "") -> None:
        """Load tensors from the checkpoint in place. For a sharded tensor, load this rank's shards.

        After an error, the tensors may contain anything.

        Args:
          into: tensors to fill, by their names in the checkpoint without the prefix, with the saved shapes.
          prefix: common prefix of their names in the checkpoint.
        """
        self.prepare()
        with self._reading(), planning():
            named = {prefix + name: tensor for name, tensor in into.items()}
            dcp.load(named, storage_reader=self._reader(), no_dist=True)

    @property
    def _is_from_torch(self) -> bool:
        return self._manifest.format == TORCH_FORMAT

    def _reader(self) -> dcp.StorageReader:
        if self._is_from_torch:
            return SafeReader(self.path, self._manifest.files.keys() - {METADATA, STATE})
        return RawReader(self.path, self._index())

    def _index(self) -> TensorIndex:
        if self._parsed_index is None:
            try:
                self._parsed_index = parse_index(self._json(INDEX))
            except InvalidIndexError as error:
                raise damaged(self.path, INDEX, str(error)) from error
        return self._parsed_index

    def _json(self, name: str) -> dict[str, Any]:
        self._verify(name)
        return parse_json(self.path, name, (self.path / name).read_bytes())

    def _check_size(self, name: str) -> None:
        file, expected = self.path / name, self._manifest.files[name].size
        size = file.stat().st_size if file.is_file() else None
        if size is None:
            raise damaged(self.path, name, "the file is missing")
        if size != expected:
            raise damaged(self.path, name, f"its size is {size} bytes, expected {expected}")

    def _verify(self, name: str) -> None:
        if name in self._verified:
            return
        self._check_size(name)
        if file_digest(self.path / name) != self._manifest.files[name].digest:
            raise damaged(self.path, name, "its digest differs from the manifest")
        self._verified.add(name)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn read errors into NoCheckpointError if the checkpoint was removed, else into DamagedCheckpointError."""
        root = logging.getLogger()
        root.addFilter(_is_not_raised_later)
        try:
            yield
        except (*_UNREADABLE, DamagedTensorsError, DamagedCheckpointError) as error:
            if not (self.path / MANIFEST).is_file():
                raise NoCheckpointError(f"{self.path}: the checkpoint was removed while it was being read") from error
            if isinstance(error, DamagedCheckpointError):
                raise
            raise _as_damaged(self.path, error) from error
        finally:
            root.removeFilter(_is_not_raised_later)


def open_on_all_ranks(path: Path, world: World) -> CheckpointReader:
    """Open a checkpoint on every rank, and verify what load() does not. Collective.

    Raises:
      CheckpointError: on all ranks, if any rank finds the checkpoint damaged or missing.
    """
    opened: list[CheckpointReader] = []

    def open_and_prepare() -> None:
        try:
            opened.append(CheckpointReader(path))
        except NoCheckpointError as error:
            if world.is_rank_zero:
                raise
            raise NoCheckpointError(
                f"rank {world.rank} on {socket.gethostname()} does not see a checkpoint that rank 0 found: {error}; "
                "all processes need the same directory on a shared file system"
            ) from error
        opened[0].prepare(world.rank, world.size)

    try:
        world.consensus.on_all_ranks(open_and_prepare)
    except BaseException:
        for checkpoint in opened:
            checkpoint.close()
        raise
    opened[0].mark_verified()
    return opened[0]


def read_state(path: Path) -> dict[str, Any]:
    """Return the values that were saved with the tensors. Raises CheckpointError like CheckpointReader."""
    with CheckpointReader(path) as checkpoint:
        return checkpoint.state()


def read_tensors(path: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """Return the tensors whose names start with `prefix`, by the rest of the name, in host memory.

    Raises CheckpointError like CheckpointReader.
    """
    with CheckpointReader(path) as checkpoint:
        return checkpoint.tensors(prefix)


def _locked_manifest(path: Path) -> IO[bytes]:
    """Open the manifest with a shared lock, which other readers can share but which blocks deletion."""
    if not (path / MANIFEST).is_file():
        problem = f"not a complete checkpoint (it has no {MANIFEST})"
        if not path.is_dir():
            problem = f"no such directory (current directory: {Path.cwd()})"
        raise NoCheckpointError(f"{path}: {problem}; specify a directory such as .../checkpoints/1000")
    with contextlib.ExitStack() as stack:
        file = stack.enter_context((path / MANIFEST).open("rb"))
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_SH)
        if not os.path.samestat(os.fstat(file.fileno()), (path / MANIFEST).stat()):
            raise NoCheckpointError(f"{path}: the checkpoint was replaced while it was being opened; try again")
        stack.pop_all()
        return file


def _is_not_raised_later(record: logging.LogRecord) -> bool:
    """Return False for the tracebacks that torch logs to the root logger before it raises the same error."""
    return not record.getMessage().startswith(("Global metadata is not found", "Rank local metadata is not found"))


def _as_damaged(path: Path, error: BaseException) -> DamagedCheckpointError:
    """Convert an error of the operating system, of torch or of raw_storage/ to a DamagedCheckpointError."""
    cause = next(iter(error.failures.values()))[0] if isinstance(error, dcp.CheckpointException) else error
    if isinstance(cause, DamagedTensorsError):
        return damaged(path, cause.file, cause.problem)
    if isinstance(cause, OSError):
        return DamagedCheckpointError(
            f"{cause.filename or path}: cannot read this file: {cause.strerror or cause}. {ADVICE}"
        )
    problem = str(cause).partition("\n")[0]
    if isinstance(cause, pickle.UnpicklingError):
        problem = f"this program did not write it, and it could run code: {problem}"
    return DamagedCheckpointError(f"{path}: cannot load the checkpoint: {problem}. {ADVICE}")
