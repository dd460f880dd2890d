"""Defines the manifest of a checkpoint directory, and the errors that readers raise."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import UserError

FORMAT = 2
"""Format that this program writes: the tensors are raw bytes (raw_storage/)."""
TORCH_FORMAT = 1
"""Earlier format, which this program still reads: torch.distributed.checkpoint wrote the tensors (safe_reader.py)."""
MANIFEST = "manifest.json"
METADATA = ".metadata"
INDEX = "tensors.json"
STATE = "state.json"
_TORCH_TENSORS = re.compile(r"__\d+_\d+\.distcp")

ADVICE = "Use another checkpoint (a resume falls back to the previous one automatically)"


class CheckpointError(UserError):
    """Raised if a checkpoint cannot be written or used. The message says where it is and what to do."""


class NoCheckpointError(CheckpointError):
    """Raised if there is no complete checkpoint at the path, or if it vanished while it was being read."""


class DamagedCheckpointError(CheckpointError):
    """Raised if the files of a checkpoint differ from its manifest or cannot be read."""


class FileRecord(NamedTuple):
    """Expected size and digest of a file.

    Attributes:
      size: size in bytes.
      digest: 32-byte BLAKE2b digest in hexadecimal.
    """

    size: int
    digest: str


class Manifest(NamedTuple):
    """Content of a manifest.

    Attributes:
      format: FORMAT or TORCH_FORMAT.
      files: other files of the checkpoint, by name. In FORMAT, the index lists the tensor files.
      provenance: the provenance that was passed to write_checkpoint().
    """

    format: int
    files: dict[str, FileRecord]
    provenance: dict[str, Any]


def make_manifest(step: int, files: Mapping[str, FileRecord], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest as a JSON object, including its own digest."""
    listed = {name: {"size": file.size, "blake2b": file.digest} for name, file in files.items()}
    content = {"format": FORMAT, "step": step, "provenance": dict(provenance), "files": listed}
    return content | {"blake2b": _seal(content)}


def parse_manifest(path: Path, text: bytes) -> Manifest:
    """Parse the manifest of the checkpoint at `path`.

    Raises:
      DamagedCheckpointError: the text is not a manifest, or its digest does not match.
      CheckpointError: the manifest is valid, but a different version of this program wrote it.
    """
    content = parse_json(path, MANIFEST, text)
    seal = content.pop("blake2b", None)
    if seal is None:
        raise damaged(path, MANIFEST, "it has no digest (an older version of this program may have written it)")
    if seal != _seal(content):
        raise damaged(path, MANIFEST, "its digest does not match its content")
    if (version := content.get("format")) not in (TORCH_FORMAT, FORMAT):
        # It doesn't count as damaged, because a resume from an older checkpoint would overwrite it.
        raise CheckpointError(
            f"{path}/{MANIFEST}: its format is {version}, but this program reads the formats {TORCH_FORMAT} and "
            f"{FORMAT}. Use the version of this program that wrote it, or move it away"
        )
    try:
        files = {name: FileRecord(file["size"], file["blake2b"]) for name, file in content["files"].items()}
        provenance = content["provenance"]
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(path, MANIFEST, "its list of files is invalid") from error
    types = {(type(file.size), type(file.digest)) for file in files.values()}
    if not types <= {(int, str)} or not isinstance(provenance, dict):
        raise damaged(path, MANIFEST, "its list of files is invalid")
    needed = {STATE, METADATA if version == TORCH_FORMAT else INDEX}
    for name in files:
        if name not in needed and not (version == TORCH_FORMAT and _TORCH_TENSORS.fullmatch(name)):
            raise damaged(path, MANIFEST, f"it lists {name!a}, which is not a file of a checkpoint")
    if missing := needed - files.keys():
        raise damaged(path, MANIFEST, f"its list of files lacks {min(missing)}")
    return Manifest(version, files, provenance)


def parse_json(path: Path, name: str, text: bytes) -> dict[str, Any]:
    """Parse a JSON object from a file of the checkpoint at `path`. Raises DamagedCheckpointError if it isn't one."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, name, f"it is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise damaged(path, name, "it is not a JSON object")
    return content


def file_digest(path: Path) -> str:
    """Return the 32-byte BLAKE2b digest of a file in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def damaged(path: Path, name: str, problem: str) -> DamagedCheckpointError:
    """Return the error for a damaged file of the checkpoint at `path`."""
    return DamagedCheckpointError(f"{path}/{name}: damaged checkpoint: {problem}. {ADVICE}")


def _seal(content: Mapping[str, Any]) -> str:
    """Return the digest of the rest of a manifest, which reveals any change."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=32).hexdigest()
