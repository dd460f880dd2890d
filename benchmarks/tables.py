"""How the benchmarks tell figures."""

import statistics
from collections.abc import Sequence

from tabulate import tabulate


def spread(values: Sequence[float], digits: int = 0, scale: float = 1.0) -> str:
    """Median and range."""
    middle, low, high = (f"{scale * f(values):,.{digits}f}" for f in (statistics.median, min, max))
    return f"{middle} [{low} to {high}]"


def markdown(table: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    """A table whose first column is text."""
    aligned = ("left", *("right" for _ in headers[1:]))
    return tabulate(table, headers, tablefmt="pipe", disable_numparse=True, colalign=aligned)
