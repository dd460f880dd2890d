"""Defines labels: columns of 0 and 1, or comparisons of a column with a value. Knows nothing about features."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from common.errors import UserError
from core.metrics.config import check_task_names
from projects.home.recap.tools.prepare.columns import Ingested, IngestedColumn
from projects.home.recap.tools.prepare.database import finite, literal, only_row, scan
from projects.home.recap.tools.prepare.names import no_such_column

if TYPE_CHECKING:
    import duckdb

OPERATORS = {"==": "=", "!=": "<>", ">": ">", ">=": ">=", "<": "<", "<=": "<="}
"""Operators of --label, and what they are in SQL."""

NULL = "null"
"""Value of --label that stands for a missing value."""


class LabelRule(NamedTuple):
    """A label that the command line defines: 1 where a comparison is true, and 0 where it is false."""

    name: str
    column: str
    operator: str
    value: str

    def __str__(self) -> str:
        return f"--label {shlex.join(self)}"


@dataclass(frozen=True)
class Label:
    """A label.

    Attributes:
      name: name of the label, which is the task and the column in the output.
      column: name of the column from which it is computed.
      source: SQL of that column, null where it has NaN or an infinity.
      sql: SQL of the label, TINYINT: null where the column is null, or is neither 0 nor 1.
    """

    name: str
    column: str
    source: str
    sql: str


def define_labels(ingested: Ingested, names: Sequence[str], rules: Sequence[LabelRule]) -> tuple[Label, ...]:
    """Return the labels: columns by name, then rules.

    Raises:
      UserError: a column does not exist or has another type, a name is used twice or cannot be a task, or a value
        cannot be compared.
    """
    columns = {column.name: column for column in ingested.columns}
    for option, name in [("--labels", name) for name in names] + [("--label", rule.column) for rule in rules]:
        if name not in columns:
            raise UserError(f"{option}: {no_such_column(name, columns)}")
    all_names = [*names, *(rule.name for rule in rules)]
    if twice := sorted({name for name in all_names if all_names.count(name) > 1}):
        raise UserError(f"two labels are named {', '.join(twice)}. Give each label a unique name")
    for rule in rules:
        if rule.name in columns and rule.name != rule.column:
            raise UserError(f"{rule}: the column {rule.name!r} exists. Give the label another name")
    try:
        check_task_names(all_names)
    except ValueError as error:
        raise UserError(f"--labels: {error}") from None
    return (
        *(_zero_or_one(columns[name]) for name in names),
        *(_compared(columns[rule.column], rule) for rule in rules),
    )


@dataclass(frozen=True)
class LabelNulls:
    """Numbers of rows without a label.

    Attributes:
      rows: rows in which any label is null.
      by_label: rows in which a label is null, by its name; only labels with such rows.
    """

    rows: int
    by_label: dict[str, int]


def check_labels(connection: "duckdb.DuckDBPyConnection", ingested: Ingested, labels: Sequence[Label]) -> LabelNulls:
    """Check that the values of the labels are 0 and 1, and return how many are missing.

    Raises:
      UserError: a column has other values, and the message says how to make a label of it; or a label is the same in
        all rows.
    """
    counts = [f"count(*) FILTER ({label.source} IS NOT NULL AND ({label.sql}) IS NULL)" for label in labels]
    counts += [f"count(*) FILTER (({label.sql}) IS NULL)" for label in labels]
    counts.append(f"count(*) FILTER ({any_is_null(labels)})")
    counts += [f"{extreme}({label.sql})" for label in labels for extreme in ("min", "max")]
    row = only_row(connection, f"SELECT {', '.join(counts)} FROM {scan(ingested.files)}")
    for label, others in zip(labels, row, strict=False):
        if others:
            raise UserError(_how_to_make(connection, ingested, label, others))
    for index, label in enumerate(labels):
        low, high = row[2 * len(labels) + 1 + 2 * index :][:2]
        if low == high and low is not None:
            raise UserError(_why_constant(connection, ingested, label, low))
    nulls = dict(zip((label.name for label in labels), row[len(labels) : 2 * len(labels)], strict=True))
    return LabelNulls(row[2 * len(labels)], {name: count for name, count in nulls.items() if count})


def any_is_null(labels: Sequence[Label]) -> str:
    """Return the SQL condition that a row lacks a label."""
    return " OR ".join(f"({label.sql}) IS NULL" for label in labels)


def _zero_or_one(column: IngestedColumn) -> Label:
    source = _source(column)
    if column.type == "VARCHAR":
        text = f"lower(trim({source}))"
        sql = f"CASE WHEN {text} IN ('1', 'true') THEN 1 WHEN {text} IN ('0', 'false') THEN 0 END"
    elif is_number(column.type) or column.type == "BOOLEAN":
        number = f"CAST({source} AS TINYINT)" if column.type == "BOOLEAN" else source
        sql = f"CASE WHEN {number} = 1 THEN 1 WHEN {number} = 0 THEN 0 END"
    else:
        raise UserError(
            f"--labels {column.name}: the column has the type {column.found}, but a label is 0 or 1. Make a label of "
            f"it, such as {LabelRule(f'{_word(column.name)}_is_known', column.name, '!=', NULL)}"
        )
    return Label(column.name, column.name, source, f"CAST({sql} AS TINYINT)")


def _compared(column: IngestedColumn, rule: LabelRule) -> Label:
    if rule.operator not in OPERATORS:
        raise UserError(f"{rule}: the operator must be one of {' '.join(OPERATORS)}")
    source = _source(column)
    equality = rule.operator in ("==", "!=")
    if rule.value == NULL:
        if not equality:
            raise UserError(f"{rule}: {NULL} can only be compared with == or !=")
        sql = f"({source} IS {'' if rule.operator == '==' else 'NOT '}NULL)"
    elif is_number(column.type):
        sql = f"({source} {OPERATORS[rule.operator]} {_number(rule)})"
    elif column.type == "BOOLEAN" and equality and rule.value.lower() in ("0", "1", "false", "true"):
        sql = f"({source} {OPERATORS[rule.operator]} {rule.value.lower() in ('1', 'true')})"
    elif column.type == "VARCHAR" and equality:
        sql = f"(trim({source}) {OPERATORS[rule.operator]} {literal(rule.value.strip())})"
    else:
        allowed = {"VARCHAR": "== or != and a text", "BOOLEAN": "== or != and true or false"}
        raise UserError(
            f"{rule}: the column {rule.column!r} has the type {column.found}, which can be compared only with "
            f"{allowed.get(column.type, f'== or != and {NULL}')}"
        )
    return Label(rule.name, column.name, source, f"CAST({sql} AS TINYINT)")


def is_number(sql_type: str) -> bool:
    """Return whether a staged type is that of a number."""
    return re.fullmatch(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|FLOAT|DOUBLE|DECIMAL\(.*\)", sql_type) is not None


def _source(column: IngestedColumn) -> str:
    assert column.staged is not None
    return finite(column.staged, column.type)


def _number(rule: LabelRule) -> str:
    if re.fullmatch(r"[+-]?\d{1,38}", rule.value):
        return rule.value
    try:
        number = float(rule.value)
    except ValueError:
        number = float("nan")
    if number != number:
        raise UserError(f"{rule}: the column {rule.column!r} has numbers, but {rule.value!r} is not a number")
    return f"CAST({literal(repr(number))} AS DOUBLE)"


def _how_to_make(connection: "duckdb.DuckDBPyConnection", ingested: Ingested, label: Label, others: int) -> str:
    """Return the message about a column with other values than 0 and 1, with a rule that fits its values."""
    column = next(column for column in ingested.columns if column.name == label.column)
    values = _frequent_values(connection, ingested, label)
    word = _word(column.name)
    if is_number(column.type) and min(values) == 0:
        rule = LabelRule(f"{word}_is_positive", column.name, ">", "0")
    elif is_number(column.type):
        rule = LabelRule(f"{word}_is_high", column.name, ">=", str(max(values)))
    else:
        rule = LabelRule(f"{word}_is_{_word(values[-1])}", column.name, "==", str(values[-1]).strip())
    return (
        f"--labels {column.name}: {others:,} of {ingested.num_rows:,} values are neither 0 nor 1; the most frequent "
        f"values are {', '.join(map(repr, values))}. Make a label of them, such as {rule}"
    )


def _why_constant(connection: "duckdb.DuckDBPyConnection", ingested: Ingested, label: Label, value: int) -> str:
    """Return the message about a label that is the same in all rows that have it."""
    shown = ", ".join(map(repr, _frequent_values(connection, ingested, label))) or "missing"
    return (
        f"the label {label.name} is {value} in all rows, so that there is nothing to learn. The most frequent "
        f"values of {label.column!r} are {shown}"
    )


def _frequent_values(connection: "duckdb.DuckDBPyConnection", ingested: Ingested, label: Label) -> list[Any]:
    """Return the five most frequent values of the column of a label, the most frequent first."""
    rows = connection.execute(
        f"SELECT {label.source} AS value, count(*) FROM {scan(ingested.files)} WHERE {label.source} IS NOT NULL "
        "GROUP BY value ORDER BY count(*) DESC, value LIMIT 5"
    ).fetchall()
    return [value for value, _ in rows]


def _word(value: object) -> str:
    return re.sub(r"\W+", "_", str(value)).strip("_") or "true"
