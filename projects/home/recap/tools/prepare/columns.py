"""Defines what ingestion hands on: the staged rows, and what is known of each column.

Ingestion (ingest.py) turns the user's files, CSV or Parquet, into Parquet files with one type per column. The staged
files call their columns c0, c1, ... because DuckDB does not distinguish names that differ only in case; the user's
names are in IngestedColumn.name, in the order of the files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from common.features.config import Feature

ROW = "row"
"""Staged column with the number of the row in the input, int64 from 0: the total order of every query that writes."""

Kind = Literal["number", "numbers", "boolean", "category", "categories", "timestamp", "embedding", "unused"]
"""Kind of a feature (common/features/config.py), or "unused"."""

Role = Literal["feature", "label", "time", "group", "weight"]


@dataclass(frozen=True)
class IngestOptions:
    """Options of the command line about the input.

    Attributes:
      roles: columns that are not ordinary features, by name.
      features: features that the user configured, by name; they overrule the inferred kinds of their columns.
      kinds: kinds that the user chose, by column; they overrule the inferred ones.
      null_values: texts that mean a missing value, besides an empty field.
      delimiter: character between the fields of CSV; None detects tab, comma or semicolon.
      names: names of the columns of CSV files without a header; None reads them from the first line.
      header: the first line of CSV files has names although it looks like data.
      decimal: decimal separator of numbers in text; None detects it per column.
      date_formats: strptime formats of dates in text, by column; the key "" is for all other columns.
    """

    roles: Mapping[str, Role] = field(default_factory=dict)
    features: Mapping[str, Feature] = field(default_factory=dict)
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    null_values: tuple[str, ...] = ()
    delimiter: str | None = None
    names: tuple[str, ...] | None = None
    header: bool = False
    decimal: Literal[".", ","] | None = None
    date_formats: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class IngestedColumn:
    """A column of the input.

    Attributes:
      name: name in the input, without blanks around it. Names are unique, but some may differ only in case.
      staged: name in the staged files; None if the column is not staged, because no kind reads its type.
      role: what the command line says the column is.
      found: type as found, for messages: text for CSV, else the Parquet type.
      type: DuckDB's name of the staged type, such as BIGINT, VARCHAR, DOUBLE[] or TIMESTAMP WITH TIME ZONE.
      kind: kind of the feature, as inferred or as configured; inferred for columns of every role.
      reason: why, as a short phrase for the printed table.
      settings: further keys of an inferred feature that its type demands, such as unit of a timestamp.
      num_nulls: rows without a value, or with NaN.
      num_distinct: number of distinct values without null; of the elements if the column has lists.
      low: lowest value as text, if the type is ordered (of the elements, if lists).
      max_length: most elements of a list; None if the column has no lists.
      features: names of the configured features that read this column.
    """

    name: str
    staged: str | None
    role: Role
    found: str
    type: str
    kind: Kind
    reason: str
    num_nulls: int
    num_distinct: int
    low: str | None = None
    max_length: int | None = None
    settings: Mapping[str, str | int] = field(default_factory=dict)
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ingested:
    """The staged rows.

    Attributes:
      files: staged Parquet files, in the order of the rows; each has ROW and a column per IngestedColumn.
      num_rows: number of rows of all files, at least 1.
      columns: the columns, in the order of the input.
      notes: what happened to the input that the user should know, as sentences.
    """

    files: tuple[Path, ...]
    num_rows: int
    columns: tuple[IngestedColumn, ...]
    notes: tuple[str, ...] = ()
