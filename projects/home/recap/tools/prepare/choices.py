"""Chooses the features: which columns the model reads, how it encodes them, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.features.config import MAX_VALUES, Feature
from projects.home.recap.tools.prepare import defaults
from projects.home.recap.tools.prepare.columns import IngestedColumn, Kind
from projects.home.recap.tools.prepare.splits import Split
from projects.home.recap.tools.prepare.vocabularies import ValueCounter

VOCABULARIES = "vocabularies"
"""Directory of the vocabularies in --out."""

_MIN_ROWS_OF_IDS = 100
"""Tables with fewer rows have columns without repeated values by chance."""


@dataclass(frozen=True)
class Choice:
    """Records the choice for a column.

    Attributes:
      column: the column.
      features: settings of the features that read it, by name, as in the configuration; empty if none does.
      encoding: how it is encoded, for the table; empty if it is not.
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
      kinds: kinds of columns, by name, instead of the inferred ones.
      label_columns: labels that are computed from a column, by its name.
      group: name of the column that divides the rows into splits; None if it does not.
    """

    features: Mapping[str, Feature]
    features_only: bool
    kinds: Mapping[str, Kind]
    label_columns: Mapping[str, Sequence[str]]
    group: str | None


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
        self._num_vocabularies = 0

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
        kind = self._options.kinds.get(column.name, column.kind)
        reason = "as --kind says" if column.name in self._options.kinds else column.reason
        if kind in ("category", "categories"):
            return self._category(column, kind, reason)
        settings: dict[str, Any] = {"kind": kind, **column.settings}
        encoding = ""
        if kind in ("number", "numbers"):
            settings["buckets"] = defaults.BUCKETS
            encoding = f"up to {defaults.BUCKETS} buckets"
        if kind in ("number", "numbers", "boolean") and (nulls := self._train.nulls[column.name]):
            settings["indicator"] = True
            encoding = f"{encoding}{', ' if encoding else ''}indicator of {nulls:,} missing"
        if kind == "timestamp":
            encoding = "hour of day, day of week"
        return Choice(column, {column.name: settings}, encoding, reason)

    def _why_unused(self, column: IngestedColumn) -> Choice | None:
        reason = self._excluded(column)
        if reason is not None:
            return Choice(column, {}, "", reason)
        is_chosen = bool(column.features) or column.name in self._options.kinds
        spoiled = None if is_chosen else self._spoiled(column)
        return None if spoiled is None else Choice(column, {}, "", spoiled, f"{column.name}: {spoiled}, not used")

    def _excluded(self, column: IngestedColumn) -> str | None:
        """Return why a column is no feature because of what it is, or of what the user decided; None if it may be."""
        options = self._options
        if labels := options.label_columns.get(column.name):
            if column.features:
                raise UserError(
                    f"--features: {column.features[0]} reads {column.name}, which tells the model what to predict. "
                    "Remove the feature"
                )
            return "label" if column.name in labels else f"the label {', '.join(labels)} is computed from it"
        if column.features:
            return None
        if options.features_only:
            return "not in --features"
        if column.name in options.kinds:
            return "as --kind says" if options.kinds[column.name] == "unused" else None
        if column.kind == "unused":
            return column.reason
        if column.name == options.group:
            return "each group is in one split, so that no value of validation occurs in training"
        if column.role == "time" and column.kind != "timestamp":
            return "orders the rows; times after training never occur in it"
        return None

    def _spoiled(self, column: IngestedColumn) -> str | None:
        """Return why the values of a column are useless; None if they are not."""
        if column.num_distinct == 0:
            return "no values"
        if column.num_distinct == 1 and column.num_nulls == 0:
            return f"constant: always {column.low}"
        return "a value of its own in each row" if self._is_an_id(column) else None

    def _is_an_id(self, column: IngestedColumn) -> bool:
        rows = self._train.num_rows
        is_discrete = column.type == "VARCHAR" or column.type.endswith("INT") or column.type == "INTEGER"
        return is_discrete and rows >= _MIN_ROWS_OF_IDS and column.kind != "timestamp" and self._is_unique(column)

    def _is_unique(self, column: IngestedColumn) -> bool:
        if column.num_distinct < 0.9 * (self._train.num_rows):
            return False
        counts = self._counter.count(column.name, column.type, 2)
        return counts.num_occurrences >= _MIN_ROWS_OF_IDS and counts.num_frequent == 0

    def _category(self, column: IngestedColumn, kind: Kind, reason: str) -> Choice:
        min_count = defaults.min_count(self._train.num_rows)
        counts = self._counter.count(column.name, column.type, min_count)
        if counts.num_frequent == 0:
            why = f"no value occurs {min_count} times in training"
            return Choice(column, {}, "", why, f"{column.name}: {why}, not used")
        settings: dict[str, Any] = {"kind": kind}
        rare = counts.num_values - counts.num_frequent
        if counts.num_frequent <= MAX_VALUES or counts.num_covered >= defaults.HASH_COVERAGE * counts.num_occurrences:
            self._num_vocabularies += 1
            name = f"{VOCABULARIES}/{self._num_vocabularies:03}-{_file_name(column.name)}.parquet"
            size = self._counter.write_vocabulary(self._partial / name, min_count)
            settings["vocabulary"] = str(self._out / name)
            encoding = f"vocabulary of {size:,}"
            if size < counts.num_frequent:
                encoding += f", the most frequent of {counts.num_frequent:,}"
            if rare:
                encoding += f"; {rare:,} that occur less than {min_count} times are unknown"
        else:
            settings |= {"hash_buckets": defaults.HASH_BUCKETS, "num_hashes": defaults.NUM_HASHES}
            covered = counts.num_covered / counts.num_occurrences
            encoding = (
                f"{defaults.HASH_BUCKETS:,} hash buckets: the {MAX_VALUES:,} most frequent of {counts.num_values:,} "
                f"values cover only {covered:.0%}"
            )
        if kind == "categories":
            settings["max_length"] = min(defaults.MAX_LENGTH, column.max_length or 1)
            encoding += f"; the last {settings['max_length']} of a list"
        return Choice(column, {column.name: settings}, encoding, reason)


def _file_name(column: str) -> str:
    """Return the name of a column as part of a file name."""
    return "".join(character if character.isalnum() else "_" for character in column)[:60]
