"""What a person sees of a conversion: how far it is, and at the end what was made and how to read it."""

import glob
import json
import logging
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Never

import yaml
from tqdm import tqdm

from projects.home.recap.tools.conversion.conversion import Layout, Plan
from projects.home.recap.tools.conversion.examples import Absences

logger = logging.getLogger(__name__)

_LOG_EVERY_S = 10.0

# Names that a message lists.
_LISTED = 10


class Outcome(NamedTuple):
    """What became of a file."""

    rows: int
    output_size: int
    absences: Absences
    """Of the records that were converted."""
    problem: str | None = None
    """Why there is no output, None where there is one."""


class Progress:
    """A bar over the bytes of the sources on a terminal, lines in the log elsewhere."""

    def __init__(self, plan: Plan, counts: Callable[[], tuple[int, int]]) -> None:
        """counts: the bytes of the sources that were read so far, and the rows."""
        self._counts = counts
        self._num_files = len(plan.jobs)
        self._size = sum(job.size for job in plan.jobs)
        self._start = self._logged = time.monotonic()
        self._bar: tqdm[Never] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=self._size, unit="B", unit_scale=True, ncols=100, nrows=20)
        else:
            logger.info("converting %d file(s), %s", self._num_files, _size_text(self._size))

    def show(self, num_done: int) -> None:
        """Shows how far it is, with so many files done."""
        read, rows = self._counts()
        if self._bar is not None:
            self._bar.set_postfix_str(f"{num_done}/{self._num_files} files, {rows:,} records", refresh=False)
            self._bar.update(read - self._bar.n)
            return
        now = time.monotonic()
        if now - self._logged >= _LOG_EVERY_S:
            self._logged = now
            logger.info(
                "%d of %d file(s), %.0f%% of %s, %s records/s",
                num_done,
                self._num_files,
                100 * read / max(self._size, 1),
                _size_text(self._size),
                f"{rows / (now - self._start):,.0f}",
            )

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


def warn_of_absent_features(outcomes: Sequence[Outcome]) -> None:
    """Warns of features that no record has: the schema's name of it may be wrong."""
    rows = sum(outcome.rows for outcome in outcomes)
    absent = sorted(name for name, count in _missing(outcomes).items() if count == rows)
    if absent:
        unread = sorted(set[str]().union(*(outcome.absences.unread for outcome in outcomes)))
        logger.warning(
            "no record has %s: zeros are there. Is that its name in the records? Others that they have: %s",
            _listed(absent),
            _listed(unread) or "none",
        )


def report(
    out: Path, plan: Plan, layout: Layout, outcomes: Sequence[Outcome], seconds: float, dated_key: str | None
) -> str:
    """What was made, what could not be, and how to read it.

    Args:
      out: directory of the outputs.
      plan: what was to be done.
      layout: of the outputs.
      outcomes: of plan.jobs.
      seconds: that it took.
      dated_key: the key by which the data set looks for files by date; None: `inputs`.
    """
    good = [outcome for outcome in outcomes if outcome.problem is None]
    bad = [outcome.problem for outcome in outcomes if outcome.problem is not None]
    lines = []
    if good:
        rows = sum(outcome.rows for outcome in good)
        size = _size_text(sum(outcome.output_size for outcome in good))
        speed = f"{seconds:.1f} s, {rows / seconds:,.0f} records/s"
        lines.append(f"converted      {len(good)} file(s), {rows:,} records, {size} of Parquet in {speed}")
        missing = _missing(good).most_common()
        lines += [f"  {name} missing in {count / rows:.1%} of them, 0 there" for name, count in missing]
    if plan.finished:
        lines.append(f"done before    {len(plan.finished)} file(s)")
    if bad:
        lines += [f"not converted  {len(bad)} file(s)", *(f"  {problem}" for problem in sorted(bad))]
    if plan.others:
        lines.append(
            f"also there     {len(plan.others)} file(s) of sources that are not among --inputs: {plan.others[0]}, ..."
        )
    if good or plan.finished:
        lines += ["", *_configuration(out, plan, layout, dated_key)]
    return "\n".join(lines) + "\n"


def _configuration(out: Path, plan: Plan, layout: Layout, dated_key: str | None) -> list[str]:
    """What changes in the data set's configuration for what was made."""
    nested = any(output.parent != out for output in (*plan.finished, *(job.output for job in plan.jobs)))
    applied = {
        "renamed_features": any(feature.name != feature.column.name for feature in layout.features),
        "truncate_and_slice": any(feature.length != (feature.column.width or 1) for feature in layout.features),
    }
    done = " and ".join(name for name, was_applied in applied.items() if was_applied)
    files = f"inputs: {_yaml(f'{glob.escape(str(out))}/**/*.parquet' if nested else str(out))}"
    return [
        f"Of the data set's configuration these two lines change{f'; leave {done} out' if done else ''}:",
        f"  {files}" if dated_key is None else f"  {dated_key}: {{data_root: {_yaml(str(out))}, ...}}",
        f"  seg_dense_schema: {{schema_path: {_yaml(str(out / 'schema.json'))}}}",
    ]


def _missing(outcomes: Sequence[Outcome]) -> Counter[str]:
    """By name of a feature, how many records were without it."""
    return sum((outcome.absences.missing for outcome in outcomes), Counter())


def _yaml(text: str) -> str:
    """In quotes where YAML, or the substitution of variables, could take it for something else, such as 2023 or no."""
    is_plain = re.fullmatch(r"[A-Za-z_./][\w./*-]*", text) and yaml.safe_load(text) == text
    return text if is_plain else json.dumps(text.replace("$", "$$"), ensure_ascii=False)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _size_text(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
