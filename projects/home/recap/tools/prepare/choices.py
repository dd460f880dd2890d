"""Chooses the features: which columns the model reads, how it encodes them, and why."""

import itertools
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.features.config import MAX_VALUES, Feature
from projects.home.recap.tools.prepare import defaults
from projects.home.recap.tools.prepare.columns import IngestedColumn
from projects.home.recap.tools.prepare.split_files import Split
from projects.home.recap.tools.prepare.vocabularies import ValueCounter

VOCABULARIES = "vocabularies"
"""Directory of the vocabularies in --out."""

_MANY_VALUES, _FEW_PER_VALUE = 1000, 5
"""A model may memorize at least this many values, if they occur fewer times than this on average."""


@dataclass(frozen=True)
class Choice:
    """Records the choice for a column.

    Attributes:
      column: the column.
      features: settings of the features that read it, by name, as in the configuration; empty if none does.
      encoding: how it is encoded, for the table; empty if it is not. report.py adds buckets, which are computed later.
      reason: why.
      warning: what the user should check; None if nothing.
    """

    column: IngestedColumn
    features: Mapping[str, Mapping[str, Any]]
    encoding: str
    reason: str
    warning: str | None = None


@dataclass(frozen=True)
class ChoiceOptions:
    """Holds the decisions of the user.

    Attributes:
      features: configured features, by name.
      features_only: whether columns without a configured feature are unused.
      kinds: columns whose kind the user chose.
      label_columns: labels that are computed from a column, by its name.
      group: name of the column that divides the rows into splits; None if it does not.
      buckets: maximum number of buckets of numbers; None if there are too many numbers.
    """

    features: Mapping[str, Feature]
    features_only: bool
    kinds: Collection[str]
    label_columns: Mapping[str, Sequence[str]]
    group: str | None
    buckets: int | None


class FeatureChooser:
    """Chooses the features of one column after the other, and writes their vocabularies."""

    def __init__(
        self,
        options: ChoiceOptions,
        train: Split,
        counter: ValueCounter,
        partial: Path,
        out: Path,
    ) -> None:
        """Declare the table.

        Args:
          options: what the user has decided.
          train: the training data.
          counter: counts values of the training data.
          partial: directory in which vocabularies are written.
          out: directory in which they are when the program ends, for the configuration.
        """
        self._options = options
        self._train = train
        self._counter = counter
        self._partial = partial
        self._out = out
        self._files: set[str] = set()

    def choose(self, column: IngestedColumn) -> Choice:
        """Return what becomes of a column."""
        if (unused := self._why_unused(column)) is not None:
            return unused
        if column.features:
            configured = {
                name: self._options.features[name].model_dump(mode="json", exclude_defaults=True)
                for name in column.features
            }
            return Choice(column, configured, "as configured", "in --features")
        if column.kind in ("category", "categories"):
            return self._category(column)
        settings: dict[str, Any] = {"kind": column.kind, **column.settings}
        encodings = []
        if column.kind in ("number", "numbers") and self._options.buckets is not None:
            settings["buckets"] = self._options.buckets
        if column.kind in ("number", "numbers", "boolean") and (nulls := self._train.nulls[column.name]):
            settings["indicator"] = True
            encodings.append(f"indicator of {nulls:,} missing")
        if column.kind == "timestamp":
            encodings.append("hour of day, day of week" if settings.get("hour_of_day", True) else "day of week")
        return Choice(column, {column.name: settings}, ", ".join(encodings), column.reason)

    def _why_unused(self, column: IngestedColumn) -> Choice | None:
        options = self._options
        if labels := options.label_columns.get(column.name):
            if column.features:
                raise UserError(
                    f"--features: {column.features[0]} reads {column.name}, which tells the model what to predict. "
                    "Remove the feature"
                )
            reason = "label" if column.name in labels else f"the label {', '.join(labels)} is computed from it"
            return Choice(column, {}, "", reason)
        if column.features:
            return None
        if options.features_only:
            return Choice(column, {}, "", "not in --features")
        if column.name in options.kinds:
            return Choice(column, {}, "", "as --kind says") if column.kind == "unused" else None
        if column.role == "weight":
            return Choice(column, {}, "", "weight of the row")
        if column.name == options.group:
            reason = "each group is in one split, so that no value of validation occurs in training"
            return Choice(column, {}, "", reason)
        if column.role == "time" and column.kind != "timestamp":
            return Choice(column, {}, "", "orders the rows; times after training never occur in it")
        if column.kind == "unused":
            return Choice(column, {}, "", column.reason, f"{column.name}: {column.reason}; not used")
        return None

    def _category(self, column: IngestedColumn) -> Choice:
        min_count = defaults.min_count(self._train.num_rows)
        counts = self._counter.count(column.name, column.type, min_count)
        if counts.num_frequent == 0:
            what = f"occurs {min_count} times" if counts.num_values else "occurs"
            why = f"no value {what} in training"
            return Choice(column, {}, "", why, f"{column.name}: {why}, not used")
        settings: dict[str, Any] = {"kind": column.kind}
        rare = counts.num_values - counts.num_frequent
        if counts.num_frequent <= MAX_VALUES or counts.num_covered >= defaults.HASH_COVERAGE * counts.num_occurrences:
            name = f"{VOCABULARIES}/{self._file_of(column.name)}"
            size = self._counter.write_vocabulary(self._partial / name, min_count)
            settings["vocabulary"] = str(self._out / name)
            if (pseudo_count := defaults.unknown_pseudo_count(size)) is not None:
                settings["unknown_pseudo_count"] = pseudo_count
            encoding = f"vocabulary of {size:,}"
            if size < counts.num_frequent:
                encoding += f", the most frequent of {counts.num_frequent:,}"
            absent = column.num_distinct - counts.num_values
            unknown = [f"{rare:,} with fewer than {min_count} occurrences"] if rare else []
            unknown += [f"{absent:,} not in training data"] if absent > 0 else []
            if unknown:
                encoding += f"; unknown: {', '.join(unknown)}"
        else:
            settings |= {"hash_buckets": defaults.HASH_BUCKETS, "num_hashes": defaults.NUM_HASHES}
            covered = counts.num_covered / counts.num_occurrences
            encoding = (
                f"{defaults.HASH_BUCKETS:,} hash buckets: the {MAX_VALUES:,} most frequent of {counts.num_values:,} "
                f"values cover only {covered:.0%}"
            )
        if column.kind == "categories":
            settings["max_length"] = min(defaults.MAX_LENGTH, column.max_length or 1)
            encoding += f"; the last {settings['max_length']} of a list"
        warning = None
        per_value = counts.num_occurrences / counts.num_values
        if counts.num_values >= _MANY_VALUES and per_value < _FEW_PER_VALUE:
            warning = (
                f"{column.name}: a value occurs only {per_value:.1f} times on average in training, which may overfit. "
                f"Try without: --kind {shlex.quote(column.name)} unused"
            )
        return Choice(column, {column.name: settings}, encoding, column.reason, warning)

    def _file_of(self, column: str) -> str:
        """Return an unused name for the vocabulary of a column. Some file systems ignore case."""
        stem = "".join(character if character.isascii() and character.isalnum() else "_" for character in column)[:60]
        suffixes = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
        numbered = (f"{stem}{suffix}.parquet" for suffix in suffixes)
        name = next(name for name in numbered if name.lower() not in self._files)
        self._files.add(name.lower())
        return name
