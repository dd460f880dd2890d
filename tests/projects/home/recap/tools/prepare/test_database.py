import os
import signal
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UserError
from common.process.stop_signals import unwind_on_signals
from projects.home.recap.tools.prepare.database import identifier, literal, open_database, scan


def test_columns_whose_names_differ_only_in_case_have_names_by_position(tmp_path):
    files = [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    for file, first in zip(files, (1, 3), strict=True):
        pq.write_table(pa.table({"A": [first], "a": [first + 1]}), file)
    with open_database(tmp_path / "temporary", threads=1) as connection:
        rows = connection.execute(f"SELECT c0, c1 FROM {scan(files, ['c0', 'c1'])} ORDER BY c0").fetchall()
    assert rows == [(1, 2), (3, 4)]


@pytest.mark.parametrize("name", ["it's.parquet", "[1].parquet", "a?b*.parquet", 'a"b.parquet'])
def test_a_path_is_never_a_pattern(tmp_path, name):
    pq.write_table(pa.table({"a": [7]}), tmp_path / name)
    pq.write_table(pa.table({"a": [8]}), tmp_path / "axb1.parquet")
    with open_database(tmp_path / "temporary", threads=1) as connection:
        assert connection.execute(f"SELECT a FROM {scan([tmp_path / name])}").fetchall() == [(7,)]


@pytest.mark.parametrize("text", ["plain", "it's", 'say "x"', "ü\\n"])
def test_names_and_texts_are_quoted(tmp_path, text):
    with open_database(tmp_path, threads=1) as connection:
        result = connection.execute(f"SELECT {literal(text)} AS {identifier(text)}")
        assert (result.description[0][0], result.fetchone()) == (text, (text,))


def test_a_missing_file_is_the_users_error(tmp_path):
    with (
        pytest.raises(UserError, match="cannot read or write files"),
        open_database(tmp_path / "temporary", threads=1) as connection,
    ):
        connection.execute(f"SELECT * FROM {scan([tmp_path / 'missing.parquet'])}")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, None), (signal.SIGTERM, 143)])
def test_a_signal_interrupts_a_query(tmp_path, number, status):
    """The signal may arrive before the query begins, which has the same outcome."""
    before = {each: signal.getsignal(each) for each in signal.valid_signals()}
    unwind_on_signals()
    timer = threading.Timer(0.2, os.kill, (os.getpid(), number))
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)) as raised:
            interrupted_query(tmp_path / "temporary", timer)
        assert getattr(raised.value, "code", None) == status
    finally:
        timer.join()
        for each, handler in before.items():
            if handler is not signal.getsignal(each):
                signal.signal(each, handler)


def interrupted_query(folder: Path, timer: threading.Timer) -> None:
    """Start the timer and a query that takes minutes."""
    with open_database(folder, threads=1) as connection:
        timer.start()
        connection.execute("SELECT count(*) FROM range(100000000) a, range(3000) b WHERE a.range % 7 = b.range")
