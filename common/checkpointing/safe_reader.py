"""Reads the files of torch.distributed.checkpoint without running code that somebody has put into them.

torch loads tensors with weights_only, but unpickles `.metadata`, and what is no tensor, as it comes.
"""

import pickle
import re
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

_METADATA = ".metadata"
_FILE = re.compile(r"__\d+_\d+\.distcp")

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


class SafeReader(dcp.FileSystemReader):
    """A FileSystemReader of checkpoints of tensors; anything else is refused by a pickle.UnpicklingError."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Raises OSError: the file can't be read."""
        folder = Path(self.checkpoint_id)
        with (folder / _METADATA).open("rb") as file:
            try:
                metadata = _Unpickler(file).load()
            except pickle.UnpicklingError:
                raise
            except Exception as error:  # what a pickle makes Python do wrong can be anything
                raise pickle.UnpicklingError(f"{_METADATA} is not torch's: {error!r}") from error
        if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
            raise pickle.UnpicklingError(f"{_METADATA} is not torch's")
        for name, entry in metadata.state_dict_metadata.items():
            if not isinstance(entry, TensorStorageMetadata):
                raise pickle.UnpicklingError(f"'{name}' is no tensor")
        for stored in metadata.storage_data.values():
            if not _FILE.fullmatch(stored.relative_path):
                raise pickle.UnpicklingError(f"a tensor is to be read from {stored.relative_path}")
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        known = (module, name) in _KNOWN or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype))
        if not known:
            raise pickle.UnpicklingError(f"{_METADATA} names {module}.{name}")
        return super().find_class(module.removesuffix("._local"), name)
