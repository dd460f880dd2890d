"""Turns the user's table into a directory that trains at once. This module is the order of the stages."""

import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic

from common.errors import UserError
from common.features.config import Features
from common.features.statistics import complete_features
from common.files.atomic_directory import atomic_directory
from common.reader.files import Files
from core.config import load_config_from_yaml
from projects.home.recap.config import RecapConfig
from projects.home.recap.tools.prepare.checks import (
    duplicate_warnings,
    label_warnings,
    size_warnings,
    time_warnings,
    warn_of_little_space,
)
from projects.home.recap.tools.prepare.choices import VOCABULARIES, Choice, ChoiceOptions, FeatureChooser
from projects.home.recap.tools.prepare.columns import Ingested, IngestOptions, Role
from projects.home.recap.tools.prepare.configuration import config_text
from projects.home.recap.tools.prepare.database import open_database
from projects.home.recap.tools.prepare.defaults import buckets
from projects.home.recap.tools.prepare.ingest import ingest
from projects.home.recap.tools.prepare.input_files import find_files
from projects.home.recap.tools.prepare.labels import Label, LabelRule, check_labels, define_labels
from projects.home.recap.tools.prepare.leaks import find_implications, find_leaks
from projects.home.recap.tools.prepare.report import report, table_of_columns
from projects.home.recap.tools.prepare.split_files import Scratch, Split
from projects.home.recap.tools.prepare.splits import SplitRule, number_of, write_splits
from projects.home.recap.tools.prepare.vocabularies import ValueCounter

if TYPE_CHECKING:
    import duckdb

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"


@dataclass(frozen=True)
class PrepareOptions:
    """Options of the command line.

    Attributes:
      inputs: files, directories or patterns of the input.
      out: directory to create.
      labels: columns that are labels.
      rules: labels that are computed from columns.
      time: column that orders the rows; None if the split is not by time.
      group: column whose values are each in one split, unless the split is by time; None if there is none.
      shares: shares of the rows in train, validation and test, which sum to 1.
      drop_incomplete: drop rows without a label or a time, instead of refusing them.
      weight: column with the weights of the rows; None weights all alike.
      features_only: whether columns without a configured feature are unused.
      reading: how the input is read, with configured features and kinds. Its roles are those of the options above.
      threads: number of threads of the database.
    """

    inputs: Sequence[Path]
    out: Path
    labels: Sequence[str] = ()
    rules: Sequence[LabelRule] = ()
    time: str | None = None
    group: str | None = None
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1)
    drop_incomplete: bool = False
    weight: str | None = None
    features_only: bool = False
    reading: IngestOptions = field(default_factory=IngestOptions)
    threads: int = 2


def prepare(options: PrepareOptions) -> str:
    """Create the directory and return the closing report.

    Raises:
      UserError: the options, the input or the output are invalid; nothing is written.
    """
    with atomic_directory(options.out) as partial:
        staging = partial.parent / "staging"
        staging.mkdir()
        (partial / VOCABULARIES).mkdir()
        inputs = find_files(options.inputs)
        warn_of_little_space(inputs, partial)
        with open_database(staging / "duckdb", options.threads) as connection:
            ingested = ingest(connection, inputs, staging, _reading(options))
            labels = define_labels(ingested, options.labels, options.rules)
            rule = _split_rule(ingested, options)
            notes = [*ingested.notes, _how_divided(rule), *_dropped(connection, ingested, labels, rule, options)]
            scratch = Scratch(staging / "hashes.parquet", staging / "sample.parquet")
            splits = write_splits(connection, ingested, labels, rule, partial, scratch)
            table = _Table(connection, ingested, labels, splits)
            choices = _choose(table, options, partial)
            warnings = _warnings(table, choices, rule, scratch)
        features = _features(choices, splits["train"])
        text = config_text(options.out, splits["train"], features, options.group, options.weight)
        (partial / CONFIG).write_text(text, encoding="utf-8")
        load_config_from_yaml(RecapConfig, partial / CONFIG)  # knows rules that this program doesn't
    return report(options.out, table_of_columns(choices, features), splits, notes, warnings)


@dataclass(frozen=True)
class _Table:
    """The table after it was divided."""

    connection: "duckdb.DuckDBPyConnection"
    ingested: Ingested
    labels: Sequence[Label]
    splits: Mapping[str, Split]

    @property
    def names(self) -> list[str]:
        """Names of the columns of the splits, in order."""
        return list(self.splits["train"].nulls)


def _reading(options: PrepareOptions) -> IngestOptions:
    """Return how to read the input. A column that is several things has the first of its roles."""
    roles: dict[str, Role] = dict.fromkeys(options.labels, "label")
    others: dict[Role, str | None] = {"time": options.time, "weight": options.weight, "group": options.group}
    for role, column in others.items():
        if column is not None:
            roles.setdefault(column, role)
    return replace(options.reading, roles=roles)


def _features(choices: Sequence[Choice], train: Split) -> dict[str, dict[str, Any]]:
    """Return the settings of the features, with the statistics of the training data that they need.

    Raises:
      UserError: there is no feature, or two have the same name or parts of the same name.
    """
    chosen = [(name, settings) for choice in choices for name, settings in choice.features.items()]
    if not chosen:
        raise UserError("no column can be a feature. Choose some with --kind or --features")
    names = [name for name, _ in chosen]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"two features are named {', '.join(twice)}. Rename those in --features")
    try:
        features = pydantic.TypeAdapter(Features).validate_json(json.dumps(dict(chosen)))
    except pydantic.ValidationError as error:
        problem = "; ".join(each["msg"].removeprefix("Value error, ") for each in error.errors())
        raise UserError(
            f"the features of this table do not fit together: {problem}. Here, a feature has the name of its column; "
            "--kind COLUMN unused drops one"
        ) from error
    completed = complete_features(features, Files((train.file,), "training data"))
    settings = {name: feature.model_dump(mode="json", exclude_defaults=True) for name, feature in completed.items()}
    return {name: {"kind": each.pop("kind"), **each} for name, each in settings.items()}


def _split_rule(ingested: Ingested, options: PrepareOptions) -> SplitRule:
    columns = {column.name: column for column in ingested.columns}
    required = tuple(columns[name] for name in (options.time, options.weight) if name is not None)
    for column in required:
        number_of(column)  # raises UserError for another type
    if options.weight is not None and (low := columns[options.weight].low) is not None and float(low) < 0:
        raise UserError(f"--weight {options.weight}: the lowest value is {low}, but weights must be at least 0")
    if options.time is not None:
        return SplitRule("time", columns[options.time], options.shares, required)
    if options.group is not None:
        return SplitRule("group", columns[options.group], options.shares, required)
    return SplitRule("row", None, options.shares, required)


def _how_divided(rule: SplitRule) -> str:
    shares = ", ".join(f"{share:.0%}" for share in rule.shares)
    if rule.column is None:
        return f"The rows were divided by a hash of the row ({shares}), so that equal rows are in one split."
    if rule.by == "time":
        return f"The rows were divided by {rule.column.name}: the oldest train ({shares})."
    return f"The rows were divided by a hash of {rule.column.name} ({shares}), so that each is in one split."


def _dropped(
    connection: "duckdb.DuckDBPyConnection",
    ingested: Ingested,
    labels: Sequence[Label],
    rule: SplitRule,
    options: PrepareOptions,
) -> list[str]:
    """Check the labels and the times, and return a note about rows that lack one and are dropped.

    Raises:
      UserError: rows lack a label or a time, and are not to be dropped.
    """
    nulls = check_labels(connection, ingested, labels)
    missing = {f"the label {name}": count for name, count in nulls.by_label.items()}
    for column in rule.required:
        if column.num_nulls:
            missing[f"the {column.role} {column.name}"] = column.num_nulls
    if not missing:
        return []
    listed = ", ".join(f"{what} is missing in {count:,}" for what, count in missing.items())
    if not options.drop_incomplete:
        raise UserError(
            f"{listed} of {ingested.num_rows:,} rows. Fill in the values, or add --drop_incomplete to drop these rows"
        )
    return [f"Rows were dropped: {listed} of {ingested.num_rows:,} rows."]


def _choose(table: "_Table", options: PrepareOptions, partial: Path) -> list[Choice]:
    label_columns: dict[str, list[str]] = {}
    for label in table.labels:
        label_columns.setdefault(label.column, []).append(label.name)
    numbers = [column for column in table.ingested.columns if column.kind in ("number", "numbers")]
    num_numbers = sum(int(column.settings.get("length", 1)) for column in numbers)
    choice_options = ChoiceOptions(
        options.reading.features,
        options.features_only,
        options.reading.kinds,
        label_columns,
        options.group if options.time is None else None,
        buckets(num_numbers),
    )
    counter = ValueCounter(table.connection, table.splits["train"], table.names)
    chooser = FeatureChooser(choice_options, table.splits["train"], counter, partial, options.out)
    return [chooser.choose(column) for column in table.ingested.columns]


def _leak_warnings(sample: Path, choices: Sequence[Choice], labels: Sequence[Label]) -> list[str]:
    columns = [
        (choice.column.name, any(feature["kind"] == "category" for feature in choice.features.values()))
        for choice in choices
        if choice.features
    ]
    names = [label.name for label in labels]
    leaks = find_leaks(sample, columns, names)
    known = {(leak.column, leak.label) for leak in leaks}
    implications = find_implications(sample, [name for name, _ in columns], names)
    warnings = [
        (leak.column, f"{leak.column}: alone predicts {leak.label} with an AUC of {leak.auc:.3f}") for leak in leaks
    ]
    warnings += [
        (
            each.column,
            f"{each.column}: of {each.num_rows:,} sampled rows in which it {each.condition}, "
            f"{'all' if each.num_positives == each.num_rows else f'{each.num_positives:,}'} have {each.label} = 1, "
            f"but of all rows only {each.base_rate:.1%}",
        )
        for each in implications
        if (each.column, each.label) not in known
    ]
    return [
        f"{text}: a leak? If it is not known when the model predicts, leave it out: --kind {shlex.quote(column)} unused"
        for column, text in warnings
    ]


def _warnings(table: _Table, choices: Sequence[Choice], rule: SplitRule, scratch: Scratch) -> list[str]:
    logger.info("looking for leaks and duplicates")
    warnings = [choice.warning for choice in choices if choice.warning is not None]
    warnings += label_warnings(table.splits) + size_warnings(table.splits)
    warnings += _leak_warnings(scratch.sample, choices, table.labels)
    warnings += duplicate_warnings(table.connection, scratch.hashes)
    if rule.by != "time":
        times = [choice.column.name for choice in choices if choice.features and choice.column.kind == "timestamp"]
        warnings += time_warnings(table.connection, table.splits, table.names, times)
    return warnings
