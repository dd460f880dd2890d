"""Records what predictions are computed from, and their results, in a file of their directory.

The file exists from the start, so that a restart with other inputs or options is refused. It holds no times and no
ranks.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files.durable import replace_file

NAME = "manifest.json"
_FORMAT = "predictions of projects.home.recap"

_NOT_COMPARED = {("checkpoint", "path")}


def write_manifest(directory: Path, sources: Mapping[str, Mapping[str, Any]], results: Mapping[str, Any]) -> None:
    """Write the manifest.

    Args:
      directory: directory of the predictions.
      sources: what predictions are computed from: JSON values by section and key.
      results: what to record about the results; empty until they are complete.

    Raises:
      OSError: it cannot be written.
    """
    content = {"format": _FORMAT, "complete": bool(results), **sources, **results}
    replace_file(directory / NAME, json.dumps(content, indent=2) + "\n")


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """Return the manifest of a directory, or None if it has none.

    Raises:
      UserError: the file is not a manifest of predictions.
    """
    path = directory / NAME
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        is_ours = manifest["format"] == _FORMAT and {"complete", "checkpoint", "inputs", "options"} <= manifest.keys()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"--out {directory}: cannot read {path.name}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError):
        is_ours = False
    if not is_ours:
        raise UserError(f"--out {directory}: {path.name} is not that of predictions; choose another directory")
    return manifest


def check_same_sources(directory: Path, manifest: Mapping[str, Any], sources: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise UserError if the predictions in a directory are computed from others. The message lists differences."""
    differences = [
        f"{section}.{key}: {_shown(manifest.get(section, {}), key)} there, {_shown(values, key)} now"
        for section, values in sources.items()
        for key in dict.fromkeys([*manifest.get(section, {}), *values])
        if (section, key) not in _NOT_COMPARED and manifest.get(section, {}).get(key) != values.get(key)
    ]
    ordered = {section: list(values) for section, values in sources.items()}
    if not differences and ordered != {section: list(manifest.get(section, {})) for section in sources}:
        differences = ["the order of the inputs"]
    if differences:
        limit = 20
        listed = [*differences[:limit], *([f"and {len(differences) - limit} more"] if len(differences) > limit else [])]
        raise UserError(
            f"--out {directory} holds predictions of other inputs or options:\n  "
            + "\n  ".join(listed)
            + "\nUndo these changes to continue, choose another directory, or remove this one"
        )


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "missing"
