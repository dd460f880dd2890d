"""Writes the closing report: what was chosen and why, the splits, the warnings, and what to type next."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from projects.home.recap.tools.prepare.choices import Choice
from projects.home.recap.tools.prepare.split_files import Split

_MAX_WIDTH = 60


def report(
    out: Path, choices: Sequence[Choice], splits: Mapping[str, Split], notes: Sequence[str], warnings: Sequence[str]
) -> str:
    """Return the report.

    Args:
      out: directory that was written.
      choices: what became of each column.
      splits: the splits, by name.
      notes: what happened to the input, and how it was divided, as sentences.
      warnings: what the user should check.
    """
    lines = [_table_of_columns(choices), "", _table_of_splits(splits), ""]
    for title, sentences in (("Notes", notes), ("Warnings", warnings)):
        if sentences:
            lines += [f"{title}:", *(f"  {sentence}" for sentence in sentences), ""]
    config = shlex.quote(str(out / "config.yaml"))
    lines += [
        f"{out}: train/, validation/, test/, vocabularies/ and config.yaml. To train on two processes:",
        f"  torchrun --standalone --nproc-per-node 2 -m projects.home.recap.main --config {config}",
    ]
    return "\n".join(lines) + "\n"


def _table_of_columns(choices: Sequence[Choice]) -> str:
    rows = [
        [
            choice.column.name,
            choice.column.type.lower() or choice.column.found,
            _kinds(choice),
            choice.encoding or "-",
            choice.reason,
        ]
        for choice in choices
    ]
    return tabulate(
        rows,
        headers=["column", "type", "kind", "encoding", "reason"],
        maxcolwidths=[_MAX_WIDTH, None, None, _MAX_WIDTH, _MAX_WIDTH],
        disable_numparse=True,
    )


def _kinds(choice: Choice) -> str:
    if not choice.features:
        return "-"
    return ", ".join(str(feature["kind"]) for feature in choice.features.values())


def _table_of_splits(splits: Mapping[str, Split]) -> str:
    labels = splits["train"].positives
    rows = [
        [name, f"{split.num_rows:,}", *(f"{split.positives[label] / split.num_rows:.5f}" for label in labels)]
        for name, split in splits.items()
    ]
    headers = ["split", "rows", *(f"rate of {label}" for label in labels)]
    return tabulate(rows, headers=headers, disable_numparse=True, colalign=["left", *["right"] * (1 + len(labels))])
