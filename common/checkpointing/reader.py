"""Reads a checkpoint, which remains as long as it is open, and of which nothing is used that was not verified.

Memory that is shared out to ranks is not known here: of a tensor in shards, a rank gives its own to load().
"""

import contextlib
import fcntl
import logging
import os
import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Self

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from common.checkpointing.manifest import (
    ADVICE,
    MANIFEST,
    METADATA,
    STATE,
    DamagedCheckpointError,
    NoCheckpointError,
    damaged,
    file_digest,
    parse_json,
    parse_manifest,
)
from common.checkpointing.safe_reader import SafeReader
from common.distributed.world import World

# RuntimeError: a tensor that is said to be larger than the memory.
_UNREADABLE = (OSError, RuntimeError, pickle.UnpicklingError, dcp.CheckpointException)


class CheckpointReader:
    """A complete checkpoint, from which rotation keeps away until close() or the end of the process, however it ends.

    Each file is compared with the manifest once, before anything of it is used. No code that may be in the files is
    run. All methods raise

      NoCheckpointError: it was removed meanwhile.
      DamagedCheckpointError: the size or digest of a file is not the manifest's, or a file can't be read.
    """

    def __init__(self, path: Path) -> None:
        """Raises, beside the above:

        NoCheckpointError: `path` is no complete checkpoint.
        CheckpointError: another version of this program wrote it.
        """
        self.path = path
        self._verified: set[str] = set()
        with self._reading(), contextlib.ExitStack() as stack:
            self._lock = stack.enter_context(_locked_manifest(path))
            self._manifest = parse_manifest(path, self._lock.read())
            stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets rotation have it."""
        self._lock.close()

    @property
    def provenance(self) -> dict[str, Any]:
        """What the manifest says of who wrote it."""
        return self._manifest.provenance

    @property
    def num_bytes(self) -> int:
        """Size of its files, without the manifest."""
        return sum(file.size for file in self._manifest.files.values())

    def state(self) -> dict[str, Any]:
        """The values that were saved beside the tensors."""
        with self._reading():
            self._verify(STATE)
            return parse_json(self.path, STATE, (self.path / STATE).read_bytes())

    def verify(self, rank: int = 0, world_size: int = 1) -> None:
        """Compares all files with the manifest; of several ranks, each the digests of a part of them."""
        with self._reading():
            by_size = sorted(self._manifest.files, key=lambda name: self._manifest.files[name].size, reverse=True)
            for name in by_size:
                self._check_size(name)
            for name in by_size[rank::world_size]:
                self._verify(name)

    def verified_by_all(self) -> None:
        """To be called when verify() has returned on each rank: nothing is compared again."""
        self._verified |= self._manifest.files.keys()

    def types(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """The tensors whose names begin with `prefix`, by their names without it: sizes and dtypes without values (on
        the meta device)."""
        with self._reading():
            self._verify(METADATA)
            metadata = self._reader().read_metadata().state_dict_metadata
            return {
                name.removeprefix(prefix): torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
                for name, entry in metadata.items()
                if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
            }

    def tensors(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """The tensors whose names begin with `prefix`, without it, in host memory."""
        self.verify()
        with self._reading():
            into = {name: torch.empty_like(kind, device="cpu") for name, kind in self.types(prefix).items()}
        self.load(into, prefix)
        return into

    def load(self, into: Mapping[str, torch.Tensor], prefix: str = "") -> None:
        """Reads tensors into the memory of others; of one that is spread over the ranks, this rank's part.

        Args:
          into: by their names in the checkpoint, less the prefix; of the sizes that they have there.
          prefix: of the names in the checkpoint.
        """
        self.verify()
        with self._reading(), world_of_one_is_meant():
            named = {prefix + name: tensor for name, tensor in into.items()}
            dcp.load(named, storage_reader=self._reader(), no_dist=True)

    def _reader(self) -> SafeReader:
        return SafeReader(self.path, self._manifest.files.keys() - {METADATA, STATE})

    def _check_size(self, name: str) -> None:
        file, expected = self.path / name, self._manifest.files[name].size
        size = file.stat().st_size if file.is_file() else None
        if size is None:
            raise damaged(self.path, name, "the file is missing")
        if size != expected:
            raise damaged(self.path, name, f"{size} bytes long, {expected} expected")

    def _verify(self, name: str) -> None:
        if name in self._verified:
            return
        self._check_size(name)
        if file_digest(self.path / name) != self._manifest.files[name].digest:
            raise damaged(self.path, name, "its digest is not the manifest's")
        self._verified.add(name)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Tells a checkpoint that vanishes while it is read (removed by hand) from a damaged one."""
        root = logging.getLogger()
        root.addFilter(_is_news)
        try:
            yield
        except (
            OSError,
            RuntimeError,
            pickle.UnpicklingError,
            dcp.CheckpointException,
            DamagedCheckpointError,
        ) as error:
            if not (self.path / MANIFEST).is_file():
                raise NoCheckpointError(f"{self.path}: the checkpoint was removed while it was read") from error
            if isinstance(error, DamagedCheckpointError):
                raise
            raise _told(self.path, error) from error
        finally:
            root.removeFilter(_is_news)


def open_on_all_ranks(path: Path, world: World) -> CheckpointReader:
    """Opens a checkpoint on each rank, and verifies it once, each rank a part. Collective.

    Raises:
      CheckpointError: on all ranks, where it is damaged, or not there, on any.
    """
    opened: list[CheckpointReader] = []

    def open_and_verify() -> None:
        opened.append(CheckpointReader(path))
        opened[0].verify(world.rank, world.size)

    try:
        world.consensus.on_all_ranks(open_and_verify)
    except BaseException:
        for checkpoint in opened:
            checkpoint.close()
        raise
    opened[0].verified_by_all()
    return opened[0]


def read_state(path: Path) -> dict[str, Any]:
    """The values that were saved beside the tensors. Raises CheckpointError, as CheckpointReader."""
    with CheckpointReader(path) as checkpoint:
        return checkpoint.state()


def read_tensors(path: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`, without it, in host memory. Raises CheckpointError, as
    CheckpointReader."""
    with CheckpointReader(path) as checkpoint:
        return checkpoint.tensors(prefix)


@contextlib.contextmanager
def world_of_one_is_meant() -> Iterator[None]:
    """Silences torch's guess, a warning, about what is meant where there is no process group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _locked_manifest(path: Path) -> IO[bytes]:
    """The manifest, with a lock that others may have too, but not who wants to delete the checkpoint."""
    if not (path / MANIFEST).is_file():
        found = f"no complete checkpoint here (no {MANIFEST})"
        if not path.is_dir():
            found = f"no such directory (looked from {Path.cwd()})"
        raise NoCheckpointError(f"{path}: {found}; give a directory such as .../checkpoints/1000")
    with contextlib.ExitStack() as stack:
        file = stack.enter_context((path / MANIFEST).open("rb"))
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_SH)
        if not os.path.samestat(os.fstat(file.fileno()), (path / MANIFEST).stat()):
            raise NoCheckpointError(f"{path}: the checkpoint was replaced while it was opened; try again")
        stack.pop_all()
        return file


def _is_news(record: logging.LogRecord) -> bool:
    """Not what torch logs, with a traceback and by the root logger, before it raises what is told as our error."""
    return not record.getMessage().startswith(("Global metadata is not found", "Rank local metadata is not found"))


def _told(path: Path, error: BaseException) -> DamagedCheckpointError:
    """What the system, or torch, says of a file, as ours."""
    cause = next(iter(error.failures.values()))[0] if isinstance(error, dcp.CheckpointException) else error
    if isinstance(cause, OSError):
        return DamagedCheckpointError(f"{cause.filename or path}: can't be read: {cause.strerror or cause}; {ADVICE}")
    found = str(cause).partition("\n")[0]
    if isinstance(cause, pickle.UnpicklingError):
        found = f"this program did not write it, and it could run code: {found}"
    return DamagedCheckpointError(f"{path}: not loaded: {found}; {ADVICE}")
