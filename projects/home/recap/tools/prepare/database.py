"""Opens the embedded database, DuckDB, with bounded memory, and writes SQL for it. Knows nothing about the data."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError
from common.process.stop_signals import interruption

if TYPE_CHECKING:
    import duckdb

MEMORY_LIMIT_IN_MIB = 1200
"""Memory that DuckDB uses before it writes temporary files. Python and pyarrow come on top of it."""


@contextlib.contextmanager
def open_database(temporary: Path, threads: int) -> Iterator["duckdb.DuckDBPyConnection"]:
    """Open an empty database in memory, which spills to the directory `temporary`.

    Raises:
      UserError: memory or disk space runs out within the `with` block.
      SystemExit, KeyboardInterrupt: a stop signal interrupts a query (see unwind_on_signals).
    """
    import duckdb

    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{MEMORY_LIMIT_IN_MIB}MiB",
        "temp_directory": str(temporary),
        "threads": threads,
        "preserve_insertion_order": True,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    with duckdb.connect(":memory:", config=settings) as connection:
        try:
            yield connection
        except RuntimeError as error:
            if str(error) == "Query interrupted":
                raise interruption() from None
            raise
        except duckdb.OutOfMemoryException as error:
            raise UserError(
                f"memory or disk space ran out ({_first_line(error)}). Free space in {temporary.parent}, or use "
                "--threads 1, which needs less memory"
            ) from error
        except duckdb.IOException as error:
            raise UserError(f"cannot read or write files in {temporary.parent}: {_first_line(error)}") from error


def only_row(connection: "duckdb.DuckDBPyConnection", query: str) -> tuple[Any, ...]:
    """Return the row of a query that has one."""
    (row,) = connection.execute(query).fetchall()  # a result that is not read to its end keeps the connection busy
    return tuple(row)


def identifier(name: str) -> str:
    """Return the name as SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return the text as SQL."""
    return "'" + text.replace("'", "''") + "'"


def scan(files: Sequence[Path], columns: Sequence[str] | None = None) -> str:
    """Return SQL for the rows of Parquet files.

    Args:
      files: the files, all with the same columns.
      columns: names for the columns, by position; None for those of the files. DuckDB does not distinguish names that
        differ only in case.
    """
    listed = ", ".join(literal(_without_pattern(file)) for file in files)
    names = "" if columns is None else f" AS rows({', '.join(identifier(name) for name in columns)})"
    return f"read_parquet([{listed}]){names}"


def finite(value: str, sql_type: str) -> str:
    """Return SQL of a value of a type, null for NaN and infinities."""
    return f"CASE WHEN isfinite({value}) THEN {value} END" if sql_type in ("FLOAT", "DOUBLE") else value


def _without_pattern(file: Path) -> str:
    """Return a path that DuckDB does not take for a pattern."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in str(file))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
