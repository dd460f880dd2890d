"""Reports the progress of a conversion, its results, and the configuration of a run that reads them."""

import glob
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Never

from tqdm import tqdm

from core.config.yaml_writer import to_yaml
from projects.home.recap.tools.conversion.examples import Absences
from projects.home.recap.tools.conversion.files import ConversionPlan, OutputFormat

logger = logging.getLogger(__name__)

_LOG_EVERY_S = 10.0

# A message lists at most this number of names.
_MAX_LISTED = 10


class FileOutcome(NamedTuple):
    """The result of converting one file."""

    rows: int
    output_size: int
    """Size of the output in bytes."""
    absences: Absences
    """Features that the converted records lack."""
    problem: str | None = None
    """Reason for the failure, or None if the conversion succeeded."""


class ConversionProgress:
    """Shows the bytes read so far: a bar on a terminal, log lines otherwise."""

    def __init__(self, plan: ConversionPlan, counts: Callable[[], tuple[int, int]]) -> None:
        """Start at zero.

        Args:
          plan: files to convert.
          counts: returns the bytes of the sources and the rows read so far.
        """
        self._counts = counts
        self._num_files = len(plan.conversions)
        self._size = sum(conversion.size for conversion in plan.conversions)
        self._start = self._logged = time.monotonic()
        self._bar: tqdm[Never] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=self._size, unit="B", unit_scale=True, ncols=100, nrows=20)
        else:
            logger.info("converting %d file(s), %s", self._num_files, _size_text(self._size))

    def show(self, num_done: int) -> None:
        """Show the progress when `num_done` files are done."""
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
        """Stop updating the bar and leave it on the terminal."""
        if self._bar is not None:
            self._bar.close()


def warn_of_absent_features(outcomes: Sequence[FileOutcome]) -> None:
    """Warn about features that no record has, because their names in the schema may be wrong."""
    rows = sum(outcome.rows for outcome in outcomes)
    absent = sorted(name for name, count in _missing(outcomes).items() if count == rows)
    if absent:
        unread = sorted(set[str]().union(*(outcome.absences.unread for outcome in outcomes)))
        logger.warning(
            "no record has %s, so zeros are written. Check the names in the schema. Other features in the records: %s",
            _listed(absent),
            _listed(unread) or "none",
        )


def report(
    out: Path,
    plan: ConversionPlan,
    output_format: OutputFormat,
    outcomes: Sequence[FileOutcome],
    seconds: float,
    dated_key: str | None,
) -> str:
    """Return the report: converted files, failed files, and the configuration that reads the outputs.

    Args:
      out: directory of the outputs.
      plan: plan of the conversion.
      output_format: format of the outputs.
      outcomes: outcomes of plan.conversions.
      seconds: duration of the conversion.
      dated_key: configuration key that selects files by date. None if the data set uses `inputs`.
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
        lines += [f"  {name} is missing in {count / rows:.1%} of the records (0 is written)" for name, count in missing]
    if plan.finished:
        lines.append(f"up to date     {len(plan.finished)} file(s)")
    if bad:
        lines += [f"not converted  {len(bad)} file(s)", *(f"  {problem}" for problem in sorted(bad))]
    if plan.unrelated:
        count, example = len(plan.unrelated), plan.unrelated[0]
        lines.append(f"also in --out  {count} file(s) whose sources are not among --inputs: {example}, ...")
    if good or plan.finished:
        lines += ["", *_configuration(out, plan, output_format, dated_key)]
    return "\n".join(lines) + "\n"


def _configuration(out: Path, plan: ConversionPlan, output_format: OutputFormat, dated_key: str | None) -> list[str]:
    """Return the lines that a data set needs in its configuration to read the outputs."""
    outputs = (*plan.finished, *(conversion.output for conversion in plan.conversions))
    nested = any(output.parent != out for output in outputs)
    applied = {
        "renamed_features": any(feature.name != feature.column.name for feature in output_format.features),
        "truncate_and_slice": any(feature.length != (feature.column.width or 1) for feature in output_format.features),
    }
    obsolete = " and ".join(name for name, was_applied in applied.items() if was_applied)
    inputs = f"{glob.escape(str(out))}/**/*.parquet" if nested else str(out)
    files = to_yaml({"inputs": inputs})
    if dated_key is not None:
        files = f"{dated_key}: {{data_root: {to_yaml(str(out)).rstrip()}, ...}}"
    schema = to_yaml({"schema_path": str(out / "schema.json")}, flow=True)
    return [
        f"Change these two lines of the data set's configuration{f', and remove {obsolete}' if obsolete else ''}:",
        f"  {files}".rstrip(),
        f"  seg_dense_schema: {schema}".rstrip(),
    ]


def _missing(outcomes: Sequence[FileOutcome]) -> Counter[str]:
    """Count the records that lack a feature, by its name."""
    return sum((outcome.absences.missing for outcome in outcomes), Counter())


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more


def _size_text(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
