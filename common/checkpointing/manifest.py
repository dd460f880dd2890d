"""What a checkpoint directory says of itself: its manifest, and how a reader is told that it isn't so."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import UserError

FORMAT = 1
MANIFEST = "manifest.json"
METADATA = ".metadata"
STATE = "state.json"
_TENSORS = re.compile(r"__\d+_\d+\.distcp")

ADVICE = "give another checkpoint (a resume takes the one before it by itself)"


class CheckpointError(UserError):
    """A checkpoint that can't be written or used: the message names its path and what to do."""


class NoCheckpointError(CheckpointError):
    """There is no complete checkpoint at the path, or not any more: it may have vanished while it was read."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose files are not what its manifest says, or can't be read."""


class FileRecord(NamedTuple):
    """What a file must be.

    Attributes:
      size: in bytes.
      digest: BLAKE2b of 32 bytes, in hexadecimal.
    """

    size: int
    digest: str


class Manifest(NamedTuple):
    """Attributes:
    files: all others of the checkpoint, by name.
    provenance: as of write_checkpoint().
    """

    files: dict[str, FileRecord]
    provenance: dict[str, Any]


def make_manifest(step: int, files: Mapping[str, FileRecord], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a manifest."""
    listed = {name: {"size": file.size, "blake2b": file.digest} for name, file in files.items()}
    content = {"format": FORMAT, "step": step, "provenance": dict(provenance), "files": listed}
    return content | {"blake2b": _seal(content)}


def parse_manifest(path: Path, text: bytes) -> Manifest:
    """The manifest of the checkpoint at `path`.

    Raises:
      DamagedCheckpointError: it is none, or its digest is not its own.
      CheckpointError: it is in order, but of another version of this program.
    """
    content = parse_json(path, MANIFEST, text)
    seal = content.pop("blake2b", None)
    if seal is None:
        raise damaged(path, MANIFEST, "it has no digest; an older version of this program may have written it")
    if seal != _seal(content):
        raise damaged(path, MANIFEST, "its digest is not its own")
    if content.get("format") != FORMAT:
        # Not damaged: a resume from an older one would overwrite it.
        raise CheckpointError(
            f"{path}/{MANIFEST}: format {content.get('format')} found, this program reads {FORMAT}; use the version of "
            "this program that wrote it, or move it away"
        )
    try:
        files = {name: FileRecord(file["size"], file["blake2b"]) for name, file in content["files"].items()}
        provenance = content["provenance"]
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(path, MANIFEST, "it doesn't list the files") from error
    types = {(type(file.size), type(file.digest)) for file in files.values()}
    if not types <= {(int, str)} or not isinstance(provenance, dict):
        raise damaged(path, MANIFEST, "it doesn't list the files")
    for name in files:
        if name not in (METADATA, STATE) and not _TENSORS.fullmatch(name):
            raise damaged(path, MANIFEST, f"it lists {name!a}, which is no file of a checkpoint")
    if missing := {METADATA, STATE} - files.keys():
        raise damaged(path, MANIFEST, f"it doesn't list {min(missing)}")
    return Manifest(files, provenance)


def parse_json(path: Path, name: str, text: bytes) -> dict[str, Any]:
    """The object that a file of the checkpoint at `path` holds. Raises DamagedCheckpointError: it holds none."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, name, f"not JSON ({error})") from error
    if not isinstance(content, dict):
        raise damaged(path, name, "no JSON object")
    return content


def file_digest(path: Path) -> str:
    """BLAKE2b of 32 bytes, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def damaged(path: Path, name: str, found: str) -> DamagedCheckpointError:
    """What is told of a file of the checkpoint at `path`."""
    return DamagedCheckpointError(f"{path}/{name}: damaged checkpoint: {found}; {ADVICE}")


def _seal(content: Mapping[str, Any]) -> str:
    """Digest of the rest of a manifest, so that no byte of it can change unseen."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=32).hexdigest()
