"""Reads checkpoints of format 1 without running code that an attacker may have put into them.

torch.distributed.checkpoint wrote their tensors, and tests/common/checkpointing/torch_format is an example.
torch loads tensors with weights_only, but it unpickles `.metadata` and non-tensor entries without restrictions.
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

# All names that torch uses in the metadata of tensors, except dtypes.
_KNOWN = {
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),  # Python 3.13
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
    """Raised for content that was understood but is not allowed."""


class SafeReader(dcp.FileSystemReader):
    """Reads checkpoints that contain only tensors. Raises pickle.UnpicklingError for anything else."""

    def __init__(self, path: Path, files: Collection[str]) -> None:
        """Initialize without reading.

        Args:
          path: directory of the checkpoint.
          files: names of the files in it that may contain tensors.
        """
        super().__init__(path)
        self._files = files

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Return the checked metadata. Raises OSError if the file cannot be read."""
        content = (Path(self.checkpoint_id) / METADATA).read_bytes()
        try:
            metadata = _Unpickler(io.BytesIO(content)).load()
            self._check(metadata)
        except _RefusedError:
            raise
        except Exception as error:  # a malformed pickle can raise anything
            raise pickle.UnpicklingError(f"{METADATA} is not valid torch metadata: {error!r}") from error
        return metadata  # type: ignore[no-any-return]

    def _check(self, metadata: Any) -> None:
        if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
            raise _RefusedError(f"{METADATA} is not valid torch metadata")
        for name, entry in metadata.state_dict_metadata.items():
            if not isinstance(name, str) or not isinstance(entry, TensorStorageMetadata):
                raise _RefusedError(f"'{name}' is not a tensor")
            torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")  # raises if the entry is invalid
        for stored in metadata.storage_data.values():
            if stored.relative_path not in self._files:
                raise _RefusedError(
                    f"it refers to {stored.relative_path}, which is not a tensor file of this checkpoint"
                )


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        known = (module, name) in _KNOWN or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype))
        if not known:
            raise _RefusedError(f"{METADATA} refers to {module}.{name}")
        return super().find_class(module.removesuffix("._local"), name)
