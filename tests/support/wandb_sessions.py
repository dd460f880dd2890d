"""Reads back what an offline session of W&B has recorded."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def recorded(run_dir: Path) -> list[list[dict[str, Any]]]:
    """Return the records of each session, in the order in which the sessions started."""
    sessions = []
    for directory in sorted((run_dir / "wandb").glob("offline-run-*")):  # names start with the time
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(directory)]
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
        sessions.append([json.loads(line) for line in output.splitlines()])
    return sessions


def points(session: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the points of a session, without the fields that W&B adds."""
    items = [record["history"]["item"] for record in session if record["type"] == "history"]
    return [{key: value for key, value in item.items() if not key.startswith("_")} for item in items]
