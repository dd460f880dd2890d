"""Reads the files of torch.distributed.checkpoint without running code that somebody has put into them.

torch loads tensors with weights_only, but unpickles `.metadata`, and what is no tensor, as it comes.
"""

import io
import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from common.checkpointing.manifest import METADATA

# All that torch names in the metadata of tensors, but for dtypes.
_KNOWN = {
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),  # of Python 3.13
    ("torch", "Size"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.distributed.checkpoint.metadata", "ChunkStorageMetadata"),
    ("torch.distributed.checkpoint.metadata", "Metadata"),
    ("torch.distributed.checkpoint.metadata", "MetadataIndex"),
    ("torch.distributed.checkpoint.metadata", "StorageMeta"),
    ("torch.distributed.checkpoint.metadata", "TensorProperties"),
    ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata"),
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
    ("torch.serialization", "_get_layout"),
}


class _RefusedError(pickle.UnpicklingError):
    """What is there is known, and not taken."""


class SafeReader(dcp.FileSystemReader):
    """A FileSystemReader of checkpoints of tensors; anything else is refused by a pickle.UnpicklingError."""

    def __init__(self, path: Path, files: Collection[str]) -> None:
        """Args:
        path: of the checkpoint.
        files: in it, that tensors may be read from.
        """
        super().__init__(path)
        self._files = files

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Raises OSError: the file can't be read."""
        content = (Path(self.checkpoint_id) / METADATA).read_bytes()
        try:
            metadata = _Unpickler(io.BytesIO(content)).load()
            self._check(metadata)
        except _RefusedError:
            raise
        except Exception as error:  # what a pickle makes Python do wrong can be anything
            raise pickle.UnpicklingError(f"{METADATA} is not torch's: {error!r}") from error
        return metadata  # type: ignore[no-any-return]

    def _check(self, metadata: Any) -> None:
        if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
            raise _RefusedError(f"{METADATA} is not torch's")
        for name, entry in metadata.state_dict_metadata.items():
            if not isinstance(name, str) or not isinstance(entry, TensorStorageMetadata):
                raise _RefusedError(f"'{name}' is no tensor")
            torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")  # or it says what is wrong
        for stored in metadata.storage_data.values():
            if stored.relative_path not in self._files:
                raise _RefusedError(f"a tensor is to be read from {stored.relative_path}")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        known = (module, name) in _KNOWN or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype))
        if not known:
            raise _RefusedError(f"{METADATA} names {module}.{name}")
        return super().find_class(module.removesuffix("._local"), name)
