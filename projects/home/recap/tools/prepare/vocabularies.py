"""Counts the values of categories in the training data, and writes vocabularies of the frequent ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.features.config import MAX_VALUES
from common.features.vocabulary import write_vocabulary
from projects.home.recap.tools.prepare.database import finite, only_row, scan
from projects.home.recap.tools.prepare.split_files import Split

if TYPE_CHECKING:
    import duckdb

_COUNTS = "value_counts"


@dataclass(frozen=True)
class ValueCounts:
    """Counts of the values of a category in the training data. Nulls are not counted.

    Attributes:
      num_values: number of distinct values.
      num_frequent: number of distinct values that occur at least min_count times.
      num_occurrences: number of occurrences of all values; several per row if the column has lists.
      num_covered: number of occurrences of the MAX_VALUES most frequent of the frequent values.
    """

    num_values: int
    num_frequent: int
    num_occurrences: int
    num_covered: int


class ValueCounter:
    """Counts the values of one column after the other. The counts of the last one can be written as a vocabulary."""

    def __init__(self, connection: "duckdb.DuckDBPyConnection", train: Split, columns: Sequence[str]) -> None:
        """Choose the training data.

        Args:
          connection: the database.
          train: the training data.
          columns: names of all its columns, in order.
        """
        self._connection = connection
        self._rows = scan([train.file], [f"v{index}" for index in range(len(columns))])
        self._sql_names = {name: f"v{index}" for index, name in enumerate(columns)}

    def count(self, column: str, sql_type: str, min_count: int) -> ValueCounts:
        """Count the values of a column.

        Args:
          column: name of the column.
          sql_type: its type. The elements of lists are counted. Whole floats and booleans are counted as integers.
          min_count: occurrences from which on a value is frequent.
        """
        source, element_type = self._sql_names[column], sql_type
        if sql_type.endswith("]"):
            source, element_type = f"unnest({source})", sql_type[: sql_type.rindex("[")]
        value = "value" if element_type == "VARCHAR" else f"CAST({finite('value', element_type)} AS BIGINT)"
        self._connection.execute(
            f"CREATE OR REPLACE TEMP TABLE {_COUNTS} AS SELECT {value} AS value, count(*) AS count FROM "
            f"(SELECT {source} AS value FROM {self._rows}) WHERE {value} IS NOT NULL GROUP BY ALL"
        )
        frequent = f"count >= {min_count}"
        row = only_row(
            self._connection,
            f"SELECT count(*), count(*) FILTER ({frequent}), coalesce(sum(count), 0), "
            f"(SELECT coalesce(sum(count), 0) FROM (SELECT count FROM {_COUNTS} WHERE {frequent} ORDER BY count DESC "
            f"LIMIT {MAX_VALUES})) FROM {_COUNTS}",
        )
        return ValueCounts(*(int(number) for number in row))

    def write_vocabulary(self, path: Path, min_count: int) -> int:
        """Write the frequent values that count() found, at most MAX_VALUES, the most frequent first.

        Values with the same count are in ascending order, strings by their UTF-8 bytes.

        Returns:
          The number of values written.
        """
        table = self._connection.sql(
            f"SELECT value, count FROM {_COUNTS} WHERE count >= {min_count} ORDER BY count DESC, value "
            f"LIMIT {MAX_VALUES}"
        ).to_arrow_table()
        values = table.column("value").combine_chunks()
        write_vocabulary(path, values, table.column("count").to_numpy().astype(np.int64))
        return len(values)
