"""Formats figures and tables for the benchmarks."""

import statistics
from collections.abc import Sequence

from tabulate import tabulate


def spread(values: Sequence[float], digits: int = 0, scale: float = 1.0) -> str:
    """Return the median and the range of values, as "median [smallest to largest]"."""
    middle, low, high = (f"{scale * f(values):,.{digits}f}" for f in (statistics.median, min, max))
    return f"{middle} [{low} to {high}]"


def markdown(table: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    """Return a Markdown table with a left-aligned first column and right-aligned others."""
    aligned = ("left", *("right" for _ in headers[1:]))
    return tabulate(table, headers, tablefmt="pipe", disable_numparse=True, colalign=aligned)
