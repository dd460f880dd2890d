"""Keeps copies of the small files that a configuration names, such as schemas and vocabularies, with a run.

What was trained can then be used after the originals have changed. The name of a copy begins with a digest of its
content, so that a resume with another file adds a copy.
"""

import contextlib
import copy
import functools
import hashlib
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files.durable import sync_directory, sync_file
from common.process.paths import user_path
from core.config.yaml_document import KeyPath

_DIRECTORY = "inputs"

# With the digest, the name of a copy stays below the 255 bytes that file systems allow.
_MAX_NAME_BYTES = 150


def keep_inputs(save_dir: Path, paths: Iterable[str]) -> dict[str, str]:
    """Copy files to the directory of a run, unless it has them. Called on rank 0.

    Args:
      save_dir: directory of the run.
      paths: paths of the files, as the configuration has them.

    Returns:
      The name of each copy, by the path of the original.

    Raises:
      OSError: a file cannot be read or written.
    """
    directory = save_dir / _DIRECTORY
    names: dict[str, str] = {}
    for path in paths:
        original = user_path(path)
        suffix = original.name.encode(errors="replace")[-_MAX_NAME_BYTES:].decode(errors="replace")
        names[path] = f"{_digest(original)}-{suffix}"
        kept = directory / names[path]
        if not kept.exists():
            directory.mkdir(exist_ok=True)
            partial = kept.with_name(f".{kept.name}")
            shutil.copyfile(original, partial)
            sync_file(partial)
            partial.rename(kept)
            sync_directory(directory)
    return names


def delete_inputs(save_dir: Path) -> None:
    """Delete the copies in the directory of a run, and nothing else."""
    directory = save_dir / _DIRECTORY
    for path in directory.glob("*"):
        if re.match(r"\.?[0-9a-f]{32}-", path.name):
            path.unlink()
    with contextlib.suppress(OSError):  # it does not exist, or has other files
        directory.rmdir()


def find_inputs(checkpoint: Path, names: Mapping[str, str]) -> dict[str, str]:
    """Return the path of each file that a run has copied, by the path of the original.

    The copies are looked for in `inputs` next to the directory of checkpoints, where a run keeps them, and next to the
    checkpoint. An original with the same content may replace its copy.

    Args:
      checkpoint: a checkpoint of the run.
      names: names of the copies, by the path of the original.

    Raises:
      UserError: a file is missing, or both its copy and the original have another content.
    """
    directories = [folder / _DIRECTORY for folder in reversed(checkpoint.absolute().parents[:2])]
    found: dict[str, str] = {}
    for path, name in names.items():
        candidates = [*(directory / name for directory in directories), user_path(path)]
        expected = name.partition("-")[0]
        match = next((file for file in candidates if file.is_file() and _digest(file) == expected), None)
        if match is None:
            raise UserError(
                f"{checkpoint}: the model needs the file {path} as it was in training. Its copy {candidates[0]} is "
                f"missing or damaged, and {path} is missing or has changed. Copy the directory {_DIRECTORY} from the "
                f"run's save_dir to {directories[-1]}"
            )
        found[path] = str(match)
    return found


def values_at(config: Any, key_paths: Iterable[KeyPath]) -> list[str]:
    """Return the values at key paths of a configuration in JSON values."""
    return [functools.reduce(lambda value, key: value[key], key_path, config) for key_path in key_paths]


def replace_values(config: Mapping[str, Any], key_paths: Iterable[KeyPath], values: Mapping[str, str]) -> Any:
    """Return a copy of a configuration in JSON values, in which `values` maps the values at key paths to others."""
    copied = copy.deepcopy(dict(config))
    for key_path in key_paths:
        parent: Any = copied
        for key in key_path[:-1]:
            parent = parent[key]
        parent[key_path[-1]] = values[parent[key_path[-1]]]
    return copied


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
