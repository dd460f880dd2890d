"""Writes the closing report: what was chosen and why, the splits, the warnings, and what to type next."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from projects.home.recap.tools.prepare.choices import Choice
from projects.home.recap.tools.prepare.split_files import Split

_MAX_WIDTH = 60


def report(out: Path, columns: str, splits: Mapping[str, Split], notes: Sequence[str], warnings: Sequence[str]) -> str:
    """Return the report.

    Args:
      out: directory that was written.
      columns: the table of the columns.
      splits: the splits, by name.
      notes: what happened to the input, and how it was divided, as sentences.
      warnings: what the user should check.
    """
    lines = [columns, "", _table_of_splits(splits), ""]
    for title, sentences in (("Notes", notes), ("Warnings", warnings)):
        if sentences:
            lines += [f"{title}:", *(f"  {sentence}" for sentence in sentences), ""]
    config = shlex.quote(str(out / "config.yaml"))
    lines += [
        f"{out}: train/, validation/, test/, vocabularies/ and config.yaml. To train on two processes:",
        f"  torchrun --standalone --nproc-per-node 2 -m projects.home.recap.main --config {config}",
    ]
    return "\n".join(lines) + "\n"


def table_of_columns(choices: Sequence[Choice], features: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table of what became of each column.

    Args:
      choices: the choices.
      features: settings of the features in the configuration, by name, with the edges of their buckets.
    """
    rows = [
        [
            choice.column.name,
            choice.column.type.lower() or choice.column.found,
            _kinds(choice),
            ", ".join(filter(None, [*_buckets(choice, features), choice.encoding])) or "-",
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


def _buckets(choice: Choice, features: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the number of buckets of each feature with edges, or the lowest and highest one of a vector's numbers."""
    texts = []
    for name in choice.features:
        if edges := features[name].get("edges"):
            positions = edges if isinstance(edges[0], list) else [edges]
            counts = sorted({len(each) - 1 for each in positions})
            numbers = " to ".join(f"{count}" for count in dict.fromkeys([counts[0], counts[-1]]))
            texts.append(f"{numbers} {'bucket' if counts == [1] else 'buckets'}")
    return texts


def _table_of_splits(splits: Mapping[str, Split]) -> str:
    labels = splits["train"].positives
    rows = [
        [name, f"{split.num_rows:,}", *(f"{split.positives[label] / split.num_rows:.5f}" for label in labels)]
        for name, split in splits.items()
    ]
    headers = ["split", "rows", *(f"rate of {label}" for label in labels)]
    return tabulate(rows, headers=headers, disable_numparse=True, colalign=["left", *["right"] * (1 + len(labels))])
