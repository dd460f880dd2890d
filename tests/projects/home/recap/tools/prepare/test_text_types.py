import datetime

import pytest

from common.reader.files import DataError
from tests.support.ingestion import ingested, ingested_column, ingested_text

UTC = datetime.UTC
DAY = datetime.date
TIME = datetime.datetime


@pytest.mark.parametrize(
    ("values", "sql_type", "expected"),
    [
        (["1", "-2", "0", ""], "BIGINT", [1, -2, 0, None]),
        (["012", "345"], "VARCHAR", ["012", "345"]),
        (["-07", "3"], "VARCHAR", ["-07", "3"]),
        (["1", "2.5", "-.5", "3.", "1e3"], "DOUBLE", [1.0, 2.5, -0.5, 3.0, 1000.0]),
        (["0.5", "00.5"], "VARCHAR", ["0.5", "00.5"]),
        (["1", "+4930123"], "VARCHAR", ["1", "+4930123"]),
        (["1_000", "2"], "VARCHAR", ["1_000", "2"]),
        (["0x1F", "2"], "VARCHAR", ["0x1F", "2"]),
        (["9007199254740993", "1"], "BIGINT", [2**53 + 1, 1]),
        (["9223372036854775807", "-9223372036854775808"], "BIGINT", [2**63 - 1, -(2**63)]),
        (["9223372036854775808", "1"], "VARCHAR", ["9223372036854775808", "1"]),
        (["18446744073709551616", "1.5"], "VARCHAR", ["18446744073709551616", "1.5"]),
        (["1e308", "1"], "DOUBLE", [1e308, 1.0]),
        (["1e400", "1"], "VARCHAR", ["1e400", "1"]),
        (["inf", "1"], "VARCHAR", ["inf", "1"]),
        ([" 1", "2 ", "  3  "], "BIGINT", [1, 2, 3]),
        ([" 1.5", "2"], "DOUBLE", [1.5, 2.0]),
        ([" a", "b "], "VARCHAR", [" a", "b "]),
        (["1", "NULL", "3"], "BIGINT", [1, None, 3]),
        (["1.5", "nan", "NaN", "?", " ?", "n/a"], "DOUBLE", [1.5, None, None, None, None, None]),
        (["1", '""', '"3"'], "BIGINT", [1, None, 3]),
        (["a", '""', ""], "VARCHAR", ["a", "", None]),
        (["NULL", "NULL"], "VARCHAR", ["NULL", "NULL"]),
        (["a", "NULL", "?"], "VARCHAR", ["a", "NULL", "?"]),
        (["1", "x12"], "VARCHAR", ["1", "x12"]),
        (["", ""], "VARCHAR", [None, None]),
        (["true", "False", ""], "BOOLEAN", [True, False, None]),
        (["t", "f"], "BOOLEAN", [True, False]),
        (["yes", "NO", "?"], "BOOLEAN", [True, False, None]),
        (["y", "n"], "BOOLEAN", [True, False]),
        (["yes", "yes"], "VARCHAR", ["yes", "yes"]),
        (["yes", "f"], "VARCHAR", ["yes", "f"]),
        (["1,5", "2", "-0,25"], "DOUBLE", [1.5, 2.0, -0.25]),
        (["1,500", "2,5"], "DOUBLE", [1.5, 2.5]),
        (["1,234,567", "12"], "DOUBLE", [1234567.0, 12.0]),
        (["1,234.5", "12"], "DOUBLE", [1234.5, 12.0]),
        (["2026-01-31", "2026-02-28"], "DATE", [DAY(2026, 1, 31), DAY(2026, 2, 28)]),
        (["2026/1/31", "2026/02/28"], "DATE", [DAY(2026, 1, 31), DAY(2026, 2, 28)]),
        (["2026/1/31 1:02", "2026/02/28"], "TIMESTAMP", [TIME(2026, 1, 31, 1, 2), TIME(2026, 2, 28)]),
        (["2026/1-31", "2026/02/28"], "VARCHAR", ["2026/1-31", "2026/02/28"]),
        (["20260131", "20260228"], "BIGINT", [20260131, 20260228]),
        (["[1]", "NULL", "?"], "BIGINT[]", [[1], None, None]),
        (["2026-02-30", "2026-02-28"], "VARCHAR", ["2026-02-30", "2026-02-28"]),
        (["2026-01-31 10:20:30", "2026-02-28"], "TIMESTAMP", [TIME(2026, 1, 31, 10, 20, 30), TIME(2026, 2, 28)]),
        (["2026-01-31T10:20", "null"], "TIMESTAMP", [TIME(2026, 1, 31, 10, 20), None]),
        (["2026-01-31T10:20:30.25"], "TIMESTAMP", [TIME(2026, 1, 31, 10, 20, 30, 250000)]),
        (
            ["2026-01-31T10:20:30Z", "2026-01-31 10:20:30 UTC", "2026-01-31 10:20:30", "2026-01-31"],
            "TIMESTAMP WITH TIME ZONE",
            [TIME(2026, 1, 31, 10, 20, 30, tzinfo=UTC)] * 3 + [TIME(2026, 1, 31, tzinfo=UTC)],
        ),
        (
            ["2026-01-31T10:20:30+02:00", "2026-01-31T10:20:30-0130", "2026-01-31T10:20:30 +02"],
            "TIMESTAMP WITH TIME ZONE",
            [
                TIME(2026, 1, 31, 8, 20, 30, tzinfo=UTC),
                TIME(2026, 1, 31, 11, 50, 30, tzinfo=UTC),
                TIME(2026, 1, 31, 8, 20, 30, tzinfo=UTC),
            ],
        ),
        (["13/02/2026", "01/02/2026"], "TIMESTAMP", [TIME(2026, 2, 13), TIME(2026, 2, 1)]),
        (["02/13/2026", "01/02/2026"], "TIMESTAMP", [TIME(2026, 2, 13), TIME(2026, 1, 2)]),
        (["2.13.2026 9:05", "1.2.2026 21:06:07"], "TIMESTAMP", [TIME(2026, 2, 13, 9, 5), TIME(2026, 1, 2, 21, 6, 7)]),
        (
            ["2/13/2026 9:05 PM", "1-2-2026 9:06:07 am"],
            "TIMESTAMP",
            [TIME(2026, 2, 13, 21, 5), TIME(2026, 1, 2, 9, 6, 7)],
        ),
        (["02/02/2026", "03/03/2026"], "TIMESTAMP", [TIME(2026, 2, 2), TIME(2026, 3, 3)]),
        (["13/02/2026", "02/13/2026"], "VARCHAR", ["13/02/2026", "02/13/2026"]),
        (["[1,2]", "[]", "[ 3 ]", ""], "BIGINT[]", [[1, 2], [], [3], None]),
        (["[1.5, 2]", "[null]"], "DOUBLE[]", [[1.5, 2.0], [None]]),
        (["[012]", "[3]"], "VARCHAR[]", [["012"], ["3"]]),
        (["[1, x]", "['b, c']"], "VARCHAR[]", [["1", "x"], ["b, c"]]),
        (['"[""a"", ""b""]"', "[]"], "VARCHAR[]", [["a", "b"], []]),
        (["[1,2", "[]"], "VARCHAR", ["[1,2", "[]"]),
    ],
)
def test_the_type_of_text_fits_all_values(tmp_path, values, sql_type, expected):
    table = ingested_column(tmp_path, values)
    assert table.column("x").type == sql_type
    assert table.values("x") == expected


def test_a_late_value_decides(tmp_path):
    """One value after the rows that are sampled."""
    values = [str(number) for number in range(20_000)]
    table = ingested_column(tmp_path, [*values, "x12"])
    assert table.column("x").type == "VARCHAR"
    assert table.values("x") == [*values, "x12"]
    (note,) = table.ingested.notes
    assert note.startswith("x: 1 of 20,001 values are not numbers, such as 'x12' (")
    assert "table.csv, line 20002)" in note
    assert "--null_values 'x12'" in note


def test_a_late_fraction_makes_integers_numbers(tmp_path):
    table = ingested_column(tmp_path, [*(str(number) for number in range(20_000)), "0.5"])
    assert table.column("x").type == "DOUBLE"
    assert table.values("x")[-2:] == [19_999.0, 0.5]


def test_texts_that_are_missing_values_are_reported(tmp_path):
    table = ingested_column(tmp_path, ["1", "NULL", "NULL", " ?"])
    assert table.ingested.notes == (
        "x: 3 values are taken as missing ('NULL', ' ?'), because all others are integers.",
    )


def test_null_values_are_missing_in_any_column(tmp_path):
    table = ingested_text(tmp_path, "x,y\n1,a\n-999,unknown\nx,-999\n", null_values=("-999", "x", "unknown"))
    assert (table.values("x"), table.values("y")) == ([1, None, None], ["a", None, None])
    assert table.ingested.notes == ()


@pytest.mark.parametrize(
    ("value", "message", "choices"),
    [
        ("01/02/2026", "dates with the day first and dates with the month first", {"date_formats": {"x": "%m/%d/%Y"}}),
        ("1,234", "numbers with a decimal comma and numbers with commas between thousands", {"decimal": ","}),
    ],
)
def test_an_ambiguous_value_is_an_error_that_says_how_to_choose(tmp_path, value, message, choices):
    with pytest.raises(DataError) as raised:
        ingested_column(tmp_path, ["", value])
    assert f"table.csv, line 3: x is {value!r}" in str(raised.value)
    assert message in str(raised.value)
    assert {"date_formats": "'x=%d/%m/%Y'", "decimal": "','"}[next(iter(choices))] in str(raised.value)
    assert ingested_column(tmp_path, ["", value], **choices).column("x").type in ("TIMESTAMP", "DOUBLE")


@pytest.mark.parametrize(
    ("text", "date_formats", "expected"),
    [
        ("01/02/2026", {"x": "%d/%m/%Y"}, TIME(2026, 2, 1)),
        ("01/02/2026", {"x": "%m/%d/%Y"}, TIME(2026, 1, 2)),
        ("01/02/2026", {"": "%m/%d/%Y"}, TIME(2026, 1, 2)),
        ("20260102", {"x": "%Y%m%d"}, TIME(2026, 1, 2)),
        ("2 Jan 2026 03:04", {"x": "%d %b %Y %H:%M"}, TIME(2026, 1, 2, 3, 4)),
        ("02/Jan/2026:03:04:05 +0100", {"x": "%d/%b/%Y:%H:%M:%S %z"}, TIME(2026, 1, 2, 2, 4, 5, tzinfo=UTC)),
    ],
)
def test_date_format_states_how_dates_are_written(tmp_path, text, date_formats, expected):
    assert ingested_column(tmp_path, [text], date_formats=date_formats).values("x") == [expected]


def test_a_date_that_does_not_have_the_format_is_an_error(tmp_path):
    with pytest.raises(
        DataError, match=r"table\.csv, line 3: x is '2026-01-02', but --date_format x=%d/%m/%Y requires"
    ):
        ingested_column(tmp_path, ["31/01/2026", "2026-01-02"], date_formats={"x": "%d/%m/%Y"})


def test_decimal_states_what_a_comma_is(tmp_path):
    assert ingested_column(tmp_path, ["1,234"], decimal=",").values("x") == [1.234]
    assert ingested_column(tmp_path, ["1,234"], decimal=".").values("x") == [1234.0]


def test_two_files_have_one_type(tmp_path):
    (tmp_path / "one.csv").write_text("x,y\n1,2\n")
    (tmp_path / "two.csv").write_text("x,y\na,2\n")
    table = ingested(tmp_path / "one.csv", tmp_path / "two.csv")
    assert (table.values("x"), table.values("y")) == (["1", "a"], [2, 2])
