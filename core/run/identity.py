"""Identifies a run: what a resume must find unchanged, and how differences are reported."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from common.distributed.world import World
from common.errors import UserError
from common.reader.reader import BatchReader
from core.config.training import JobConfig

ADVICE_TO_TRAINER = (
    "Undo these changes to continue it, use a different save_dir for this run, or start over with --overwrite_save_dir "
    "(which deletes the run there)."
)
ADVICE_TO_FOLLOWER = "Evaluate it with the configuration that it was trained with."


def run_identity(config: JobConfig, reader: BatchReader[Any]) -> dict[str, Any]:
    """Return the JSON values that distinguish a run from others: its configuration and its training data."""
    return config.identity() | {"training files": reader.fingerprint}


def run_environment(world: World) -> dict[str, Any]:
    """Return the environment that the last bits of results depend on. Checkpoints record it as their provenance."""
    return {
        "world_size": world.size,
        "device": world.device.type,
        "num_threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def check_same_run(
    save_dir: Path,
    saved: Mapping[str, Any],
    current: Mapping[str, Any],
    advice: str = ADVICE_TO_TRAINER,
    hints: Mapping[str, str] | None = None,
) -> None:
    """Raise UserError if a checkpoint belongs to a different run.

    Args:
      save_dir: directory of the run.
      saved: identity of the run in the checkpoint, nested by configuration keys.
      current: identity of this run.
      advice: what to do about any difference.
      hints: what to do about the difference at a key path.

    Raises:
      UserError: the identities differ. The message lists each difference.
    """
    differences = _differences("", saved, current)
    if differences:
        for key_path, hint in (hints or {}).items():
            differences = [f"{line}; {hint}" if line.startswith(f"{key_path}: ") else line for line in differences]
        raise UserError(f"training.save_dir {save_dir} holds another run:\n  {capped_list(differences)}\n{advice}")


def capped_list(lines: Sequence[str], limit: int = 20) -> str:
    """Join the first lines for an indented list in a message, and append the number of other lines."""
    shown = [*lines[:limit], *([f"and {len(lines) - limit} more"] if len(lines) > limit else [])]
    return "\n  ".join(shown)


def _differences(key_path: str, saved: Any, current: Any) -> list[str]:
    if isinstance(saved, Mapping) and isinstance(current, Mapping):
        found = []
        # A key that is newer than the run and switched off means the same as its absence.
        for key in [*saved, *(key for key in current if key not in saved and current[key])]:
            name = f"[{key}]" if "." in key else f".{key}"
            found += _differences(f"{key_path}{name}".removeprefix("."), saved.get(key), current.get(key))
        return found
    if _are_lists_of_mappings(saved, current):
        items = enumerate(itertools.zip_longest(saved, current))
        return [line for index, pair in items for line in _differences(f"{key_path}[{index}]", *pair)]
    if saved == current:
        return []
    if saved is None and isinstance(current, Mapping):
        return [f"{key_path}: missing in the run"]
    if current is None and isinstance(saved, Mapping):
        return [f"{key_path}: only in the run"]
    return [f"{key_path}: {json.dumps(saved)} in the run, {json.dumps(current)} now"]


def _are_lists_of_mappings(saved: Any, current: Any) -> bool:
    both_lists = isinstance(saved, list) and isinstance(current, list)
    return both_lists and any(isinstance(item, Mapping) for item in [*saved, *current])
