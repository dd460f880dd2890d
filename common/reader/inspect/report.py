"""Formats an inspection as text: tables, errors and warnings."""

import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence

import tabulate

from common.process.memory import format_bytes
from common.reader.inspect.column_statistics import ColumnStatistics
from common.reader.inspect.inspection import Findings, InspectedColumn, Inspection

# Minimum number of columns with the same type and prefix that share a line.
_GROUP = 4


def report(inspection: Inspection) -> str:
    """Return the report on a set of files, which ends with a newline."""
    groups = _grouped(inspection.columns.values())
    numbers = [(name, columns) for name, columns in groups if columns[0].statistics.count and not _are_flags(columns)]
    flags = [column for _, columns in groups if _are_flags(columns) for column in columns]
    parts = [_sizes(inspection)]
    if groups:
        schema = [[name, columns[0].type, _width(columns)] for name, columns in groups]
        parts.append(format_table(["column", "type", "width"], schema, "llr"))
    if numbers:
        headers = ["values", "numbers", "min", "mean", "max", "std", "zero", "NaN, infinite"]
        parts.append(format_table(headers, [[name, *_statistics(columns)] for name, columns in numbers], "lrrrrrrr"))
    if flags:
        headers = ["0 or 1 (labels)", "rows", "positives", "rate"]
        parts.append(format_table(headers, [[column.name, *_rate(column)] for column in flags], "lrrr"))
    if inspection.warnings.count:
        parts.append(format_findings("Warnings:", inspection.warnings))
    if inspection.errors.count:
        parts.append(format_findings("Errors for a run that reads these files and columns:", inspection.errors))
    else:
        parts.append("No errors found.")
    return "\n\n".join(parts) + "\n"


def _sizes(inspection: Inspection) -> str:
    num_files = len(inspection.files.paths)
    files = f"{num_files:,} file" + ("s" if num_files != 1 else "")
    limits = {"unreadable": inspection.unreadable, "without page checksums": inspection.unprotected}
    if listed := ", ".join(f"{count:,} {limit}" for limit, count in limits.items() if count):
        files += f" ({listed})"
    groups = inspection.row_groups
    head = f"{inspection.files.description}: {files}, {inspection.num_rows:,} rows"
    if inspection.compressions:
        head += f", compression {', '.join(sorted(inspection.compressions))}"
    if not groups:
        return head
    measures: dict[str, tuple[list[int], Callable[[float], str]]] = {
        "rows": ([group.rows for group in groups], lambda rows: f"{rows:,.0f}"),
        "stored": ([group.stored for group in groups], format_bytes),
        "decoded": ([group.decoded for group in groups], format_bytes),
    }
    rows = [
        [name, shown(min(values)), shown(statistics.median(values)), shown(max(values)), shown(sum(values))]
        for name, (values, shown) in measures.items()
    ]
    return f"{head}\n\n" + format_table(
        [f"row groups: {len(groups):,}", "smallest", "median", "largest", "all"], rows, "lrrrr"
    )


def _grouped(columns: Iterable[InspectedColumn]) -> list[tuple[str, list[InspectedColumn]]]:
    """Return the lines of a table, each a label and the columns it stands for.

    The label is a column's name, or a pattern for many similar columns. Lines are in the order of their first columns.
    """
    similar: dict[tuple[object, ...], list[InspectedColumn]] = {}
    for column in columns:
        key = (_prefix(column.name), column.type, column.width, column.is_flag)
        similar.setdefault(key, []).append(column)
    shown = []
    for group in similar.values():
        if len(group) >= _GROUP:
            shown.append((f"{_prefix(group[0].name)}* ({len(group)})", group))
        else:
            shown += [(column.name, [column]) for column in group]
    return shown


def _prefix(name: str) -> str:
    before, dot, _ = name.rpartition(".")
    return before + dot if dot else re.sub(r"\d+$", "", name)


def _are_flags(columns: Sequence[InspectedColumn]) -> bool:
    return columns[0].is_flag


def _width(columns: Sequence[InspectedColumn]) -> str:
    return "" if columns[0].width is None else f"{columns[0].width:,}"


def _statistics(columns: Sequence[InspectedColumn]) -> list[str]:
    merged = ColumnStatistics()
    for column in columns:
        merged.merge(column.statistics)
    spread = [merged.minimum, merged.mean, merged.maximum, merged.standard_deviation]
    shares = [format_share(merged.zeros / merged.count), format_share(merged.not_finite / merged.count)]
    return [f"{merged.count:,}", *map(_number, spread), *shares]


def _rate(column: InspectedColumn) -> list[str]:
    count = column.statistics.count
    return [f"{count:,}", f"{column.ones:,}", f"{column.ones / count:.5f}"]


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:,}" if isinstance(value, int) and abs(value) < 10**9 else f"{value:.5g}"


def format_share(share: float) -> str:
    """Format a share; 0% means none and 100% means all."""
    if share in (0.0, 1.0):
        return f"{share:.0%}"
    return "<0.1%" if share < 0.001 else ">99.9%" if share > 0.999 else f"{share:.1%}"


def format_table(headers: list[str], rows: list[list[str]], alignment: str) -> str:
    """Format a table. `alignment` has l (left) or r (right, for numbers) for each column."""
    sides = ["left" if letter == "l" else "right" for letter in alignment]
    return tabulate.tabulate(rows, headers=headers, disable_numparse=True, colalign=sides)


def format_findings(title: str, findings: Findings) -> str:
    """Format a title and, below it, the findings that are kept and the number of the others."""
    lines = [title, *(f"  {message}" for message in findings.kept)]
    if findings.count > len(findings.kept):
        lines.append(f"  and {findings.count - len(findings.kept):,} more")
    return "\n".join(lines)
