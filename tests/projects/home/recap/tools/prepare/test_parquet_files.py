import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UserError
from common.reader.files import DataError
from tests.support.ingestion import Table, ingested

D = datetime.date(2026, 1, 31)
T = datetime.datetime(2026, 1, 31, 10, 20, 30)


def table_of(folder: Path, *columns: pa.Array, **options: Any) -> Table:
    """Return the ingested table of the files part-0, part-1, ..., each with the column x."""
    files = [folder / f"part-{index}.parquet" for index in range(len(columns))]
    for file, column in zip(files, columns, strict=True):
        pq.write_table(pa.table({"x": column}), file)
    return ingested(*files, **options)


@pytest.mark.parametrize(
    ("values", "found", "sql_type", "expected"),
    [
        (pa.array([1, None], pa.int8()), "int8", "TINYINT", [1, None]),
        (pa.array([1, 2**40], pa.int64()), "int64", "BIGINT", [1, 2**40]),
        (pa.array([1, 2**63 - 1], pa.uint64()), "uint64", "UBIGINT", [1, 2**63 - 1]),
        (pa.array([1, 2**63], pa.uint64()), "uint64", "VARCHAR", ["1", str(2**63)]),
        (pa.array([1.5, None]), "double", "DOUBLE", [1.5, None]),
        (pa.array([1.5, None], pa.float16()), "halffloat", "FLOAT", [1.5, None]),
        (pa.array([True, None]), "bool", "BOOLEAN", [True, None]),
        (pa.array(["012", "7"]), "string", "VARCHAR", ["012", "7"]),
        (pa.array(["2026-01-31", "NULL"]), "string", "VARCHAR", ["2026-01-31", "NULL"]),
        (pa.array(["a", "b"], pa.large_string()), "large_string", "VARCHAR", ["a", "b"]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), "dictionary", "VARCHAR", ["a", "b", "a"]),
        (pa.array([Decimal("1.25")], pa.decimal128(10, 2)), "decimal128(10, 2)", "DECIMAL(10,2)", [Decimal("1.25")]),
        (pa.array([Decimal(7)], pa.decimal128(38, 0)), "decimal128(38, 0)", "BIGINT", [7]),
        (pa.array([Decimal(10**30)], pa.decimal128(38, 0)), "decimal128(38, 0)", "VARCHAR", [str(10**30)]),
        (pa.array([D]), "date32[day]", "DATE", [D]),
        (pa.array([T], pa.timestamp("us")), "timestamp[us]", "TIMESTAMP", [T]),
        (pa.array([T], pa.timestamp("ms", "Europe/Berlin")), "timestamp[ms, tz=", "TIMESTAMP WITH TIME ZONE", None),
        (pa.array([[1, 2], [], None, [None]]), "list<element: int64>", "BIGINT[]", [[1, 2], [], None, [None]]),
        (pa.array([["a"], []]), "list<element: string>", "VARCHAR[]", [["a"], []]),
        (pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)), "fixed_size_list", "FLOAT[]", [[1.0, 2.0]]),
        (pa.array([[2**63]], pa.list_(pa.uint64())), "list", "VARCHAR[]", [[str(2**63)]]),
        (pa.array([["a", "b"], ["a"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))), "list", "VARCHAR[]", None),
        (pa.array([None, None], pa.null()), "null", "VARCHAR", [None, None]),
    ],
)
def test_columns_keep_their_types(tmp_path, values, found, sql_type, expected):
    table = table_of(tmp_path, values)
    column = table.column("x")
    assert column.found.startswith(found)
    assert column.type == sql_type
    if expected is not None:
        assert table.values("x") == expected


@pytest.mark.parametrize(
    "values",
    [
        pa.array([{"a": 1}]),
        pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
        pa.array([b"\x00\xff"]),
        pa.array([[[1]]]),
        pa.array([[{"a": 1}]]),
        pa.array([datetime.time(1)], pa.time64("us")),
        pa.array([datetime.timedelta(1)], pa.duration("us")),
        pa.array([Decimal(1)], pa.decimal256(50, 0)),
    ],
)
def test_a_type_that_no_kind_reads_is_unused(tmp_path, values):
    pq.write_table(pa.table({"x": values, "y": pa.array([1])}), tmp_path / "part.parquet")
    table = ingested(tmp_path / "part.parquet")
    column = table.column("x")
    assert (column.staged, column.kind) == (None, "unused")
    assert "which no kind reads" in column.reason
    assert table.values("y") == [1]
    with pytest.raises(UserError, match=r"--time: the column 'x' is .*, but it must be integer or number or time"):
        ingested(tmp_path / "part.parquet", roles={"x": "time"})


def test_timestamps_of_96_bits_are_read(tmp_path):
    values = pa.table({"x": pa.array([T, None], pa.timestamp("ns"))})
    pq.write_table(values, tmp_path / "part.parquet", use_deprecated_int96_timestamps=True)
    table = ingested(tmp_path / "part.parquet")
    assert table.column("x").kind == "timestamp"
    assert [value and value.replace(tzinfo=None) for value in table.values("x")] == [T, None]


@pytest.mark.parametrize(
    ("first", "second", "sql_type", "expected"),
    [
        (pa.array([1], pa.int32()), pa.array([2**40]), "BIGINT", [1, 2**40]),
        (pa.array([1]), pa.array([None, 2.5]), "DOUBLE", [1.0, None, 2.5]),
        (pa.array([None], pa.null()), pa.array([3]), "BIGINT", [None, 3]),
        (pa.array(["a"]), pa.array(["b"]).dictionary_encode(), "VARCHAR", ["a", "b"]),
        (pa.array([[]], pa.list_(pa.null())), pa.array([["a"]]), "VARCHAR[]", [[], ["a"]]),
        (pa.array([T], pa.timestamp("ms")), pa.array([T], pa.timestamp("us")), "TIMESTAMP", [T, T]),
    ],
)
def test_files_with_types_that_fit_have_one(tmp_path, first, second, sql_type, expected):
    table = table_of(tmp_path, first, second)
    assert table.column("x").type == sql_type
    assert table.values("x") == expected


def test_files_with_other_types_or_columns_are_errors(tmp_path):
    with pytest.raises(DataError, match=r"'x' is int64 in .*part-0\.parquet, but string in .*part-1\.parquet"):
        table_of(tmp_path, pa.array([1]), pa.array(["a"]))
    pq.write_table(pa.table({"z": [1]}), tmp_path / "part-1.parquet")
    with pytest.raises(DataError, match=r"part-1\.parquet lacks the column 'x', which .*part-0\.parquet has"):
        ingested(tmp_path / "part-0.parquet", tmp_path / "part-1.parquet")


def test_integers_that_a_float_cannot_hold_are_an_error(tmp_path):
    with pytest.raises(DataError, match=r"part-0\.parquet: the column 'x' cannot be read as double"):
        table_of(tmp_path, pa.array([2**53 + 1]), pa.array([0.5]))


def test_columns_are_matched_by_name(tmp_path):
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"b": ["y"], "a": [2]}), tmp_path / "2.parquet")
    table = ingested(tmp_path / "1.parquet", tmp_path / "2.parquet")
    assert (table.values("a"), table.values("b")) == ([1, 2], ["x", "y"])


def test_names_that_differ_only_in_case_or_occur_twice_are_columns(tmp_path):
    columns = [pa.array([1]), pa.array([2]), pa.array([3]), pa.array([4])]
    pq.write_table(pa.Table.from_arrays(columns, names=["a", "A", "a", "b.c d"]), tmp_path / "1.parquet")
    table = ingested(tmp_path / "1.parquet")
    assert {name: table.values(name) for name in table.kinds()} == {"a": [1], "A": [2], "a_2": [3], "b.c d": [4]}
    assert table.ingested.notes == ("Column 3, 'a' in the input, is named 'a_2'.",)


def test_text_is_read_as_times_where_options_say_so(tmp_path):
    values = pa.array(["2026-01-31", "2026-02-01"])
    assert table_of(tmp_path, values, roles={"x": "time"}).column("x").type == "DATE"
    assert table_of(tmp_path, values, date_formats={"x": "%Y-%m-%d"}).column("x").type == "TIMESTAMP"


def test_null_values_are_those_of_text_in_parquet_too(tmp_path):
    assert table_of(tmp_path, pa.array(["a", " ?"]), null_values=("?",)).values("x") == ["a", None]


def test_a_damaged_file_is_an_error(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"x\.parquet: cannot read this file as Parquet"):
        ingested(tmp_path / "x.parquet")
