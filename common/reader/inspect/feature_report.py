"""Formats an inspection of features as text: tables and errors."""

import numpy as np

from common.features.config import CategoriesFeature
from common.reader.inspect.feature_inspection import MOST_DISTINCT, Collisions, FeatureCounts, FeatureInspection
from common.reader.inspect.report import format_findings, format_share, format_table

# Longest list of examples, in characters.
_LONGEST = 60


def feature_report(inspection: FeatureInspection) -> str:
    """Return the report on the features of a set of files, which ends with a newline."""
    num_files = len(inspection.files.paths)
    files = f"{num_files:,} file" + ("s" if num_files != 1 else "")
    parts = [f"{inspection.files.description}: {files}, {inspection.num_rows:,} rows, {_features(inspection)}"]
    counted = {name: counts for name, counts in inspection.features.items() if counts.values or counts.lists}
    if counted:
        headers = ["features", "kind", "values", "missing", "unknown", "unknown values"]
        parts.append(format_table(headers, [_line(name, counts) for name, counts in counted.items()], "llrrrl"))
    if hashed := [_hashed(name, counts.collisions) for name, counts in counted.items() if counts.collisions]:
        headers = ["hash_buckets", "buckets", "used", "distinct values", "that share a bucket"]
        parts.append(format_table(headers, hashed, "lrrrr"))
    if lists := [_lists(name, counts) for name, counts in counted.items() if counts.lists]:
        parts.append(format_table(["lists", "number", "longest", "max_length", "cut"], lists, "lrrrr"))
    if inspection.errors.count:
        parts.append(format_findings("Errors for a run that reads these features:", inspection.errors))
    else:
        parts.append("No errors found.")
    return "\n\n".join(parts) + "\n"


def _features(inspection: FeatureInspection) -> str:
    number = len(inspection.features)
    return f"{number:,} feature" + ("s" if number != 1 else "")


def _line(name: str, counts: FeatureCounts) -> list[str]:
    unknown = "" if counts.unknown is None else _share(counts.unknown, counts.values)
    examples = ", ".join(counts.examples)
    examples = examples if len(examples) <= _LONGEST else f"{examples[: _LONGEST - 1]}…"
    return [name, counts.feature.kind, f"{counts.values:,}", _share(counts.missing, counts.values), unknown, examples]


def _hashed(name: str, collisions: Collisions) -> list[str]:
    distinct = len(collisions.hashes)
    # Two hashes look up two rows, whose numbers are in the lower and the upper half.
    rows = np.concatenate([collisions.buckets & 0xFFFFFFFF, collisions.buckets >> 32])
    used = len(np.unique(rows[rows > 0]))
    return [
        name,
        f"{collisions.num_buckets:,}",
        _share(used, collisions.num_buckets),
        f"{distinct:,}" if collisions.are_all else f"more than {MOST_DISTINCT:,}",
        _share(collisions.num_shared, distinct),
    ]


def _lists(name: str, counts: FeatureCounts) -> list[str]:
    assert isinstance(counts.feature, CategoriesFeature)
    max_length = f"{counts.feature.max_length:,}"
    return [name, f"{counts.lists:,}", f"{counts.longest:,}", max_length, _share(counts.cut, counts.lists)]


def _share(count: int, total: int) -> str:
    return f"{count:,} ({format_share(count / total)})" if total else f"{count:,}"
