import gzip
from typing import Any

import pydantic
import pytest

from common.errors import UserError
from common.features.config import Feature, Features
from common.reader.files import DataError
from projects.home.recap.tools.prepare import row_writer
from tests.support.ingestion import ingested, ingested_column, ingested_text


def features(**settings: Any) -> dict[str, Feature]:
    adapter: pydantic.TypeAdapter[dict[str, Feature]] = pydantic.TypeAdapter(Features)
    return adapter.validate_python(settings)


def test_a_table_is_staged_in_order_with_all_columns(tmp_path):
    table = ingested_text(tmp_path, 'name,Name, a.b ,\n012,x,1,\nb,"y\nz",2.5,\n')
    assert table.values("name") == ["012", "b"]
    assert table.values("Name") == ["x", "y\nz"]
    assert table.values("a.b") == [1.0, 2.5]
    assert table.values("column_4") == [None, None]
    assert table.column("column_4").reason == "empty in each row"
    assert table.ingested.notes == (
        "Column 4, '' in the input, is named 'column_4'.",
        "Blanks around the names of 1 column(s) were removed, such as 'a.b'.",
    )


def test_rows_of_several_files_are_numbered_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(row_writer, "ROWS_PER_FILE", 2)
    for index in range(3):
        rows = "".join(f"{5 * index + row}\n" for row in range(5 * (index != 1)))
        (tmp_path / f"{index}.csv.gz").write_bytes(gzip.compress(f"x\n{rows}".encode()))
    table = ingested(tmp_path)
    assert table.values("x") == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
    assert len(table.ingested.files) > 1


def test_a_place_is_that_in_its_own_file(tmp_path):
    (tmp_path / "1.csv").write_text("x,y\n1,2\n3,4\n")
    (tmp_path / "2.csv").write_text('y,x\n1,"2\n"\n'.replace("y,x", "x,y") + "13/13/2026,1\n")
    with pytest.raises(
        DataError,
        match=r"2\.csv, line 4: x is '13/13/2026', but --time requires integers or numbers or dates or times; 3 of",
    ):
        ingested(tmp_path, roles={"x": "time"})


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("x,z\n1,2\n", r"2\.csv, line 1: the columns differ from those of .*1\.csv: 'z' stands in place of 'y'"),
        ("x,y,z\n1,2,3\n", r"2\.csv, line 1: the columns differ from those of .*1\.csv: 'z' stands in place of None"),
        ("x\ty\n1\t2\n", r"2\.csv: the delimiter is '\\t', but that of .*1\.csv is ','"),
        ("", r"2\.csv: this file is empty"),
    ],
)
def test_files_have_the_same_columns(tmp_path, second, message):
    (tmp_path / "1.csv").write_text("x,y\n1,2\n")
    (tmp_path / "2.csv").write_text(second)
    with pytest.raises(DataError, match=message):
        ingested(tmp_path)


def test_no_rows_are_an_error(tmp_path):
    with pytest.raises(DataError, match=r"table\.csv: there are columns, but no rows"):
        ingested_text(tmp_path, "x,y\n")


def test_names_of_a_table_without_a_header(tmp_path):
    table = ingested_text(tmp_path, "39, State-gov\n50, ?\n", names=("age", "work"))
    assert (table.values("age"), table.values("work")) == ([39, 50], [" State-gov", " ?"])


@pytest.mark.parametrize(
    ("settings", "values", "expected"),
    [
        ({"kind": "category", "num_values": 9}, ["1", "2"], [1, 2]),
        ({"kind": "category", "hash_buckets": 9}, ["1.10", "2.0"], ["1.10", "2.0"]),
        ({"kind": "category", "hash_buckets": 9}, ["01/02/2026", "yes"], ["01/02/2026", "yes"]),
        ({"kind": "number"}, ["true", "false"], [True, False]),
        ({"kind": "timestamp", "unit": "seconds"}, ["1", "2"], [1, 2]),
        ({"kind": "categories", "hash_buckets": 9}, ["[1]", ""], [[1], None]),
        ({"kind": "number"}, ["", ""], [None, None]),
    ],
)
def test_a_configured_feature_overrules_inference(tmp_path, settings, values, expected):
    table = ingested_column(tmp_path, values, features=features(f={"column": "x", **settings}))
    assert table.values("x") == expected
    column = table.column("x")
    assert (column.kind, column.reason, column.features) == (settings["kind"], "configured", ("f",))


@pytest.mark.parametrize(
    ("settings", "values", "message"),
    [
        ({"kind": "number"}, ["1", "x"], r"line 3: x is 'x', but the feature f \(kind: number\) requires"),
        ({"kind": "boolean"}, ["true", "0.5"], r"line 3: x is '0.5', but the feature f \(kind: boolean\) requires"),
        ({"kind": "timestamp"}, ["5"], r"line 2: x is '5', but the feature f \(kind: timestamp\) requires"),
        ({"kind": "numbers"}, ["[1", "[2]"], r"line 2: x is '\[1', but the feature f \(kind: numbers\) requires lists"),
        ({"kind": "number", "column": "z"}, ["1"], r"the feature f .*: there is no column 'z'. The columns are x, y"),
        (
            {"kind": "timestamp", "unit": "days", "age": {"before": "z"}},
            ["1"],
            r"the feature f .*, age\.before: there is no column 'z'",
        ),
    ],
)
def test_a_value_that_a_configured_feature_cannot_read_is_an_error(tmp_path, settings, values, message):
    with pytest.raises(UserError, match=message):
        ingested_column(tmp_path, values, features=features(f={"column": "x", **settings}))


def test_a_chosen_kind_overrules_inference(tmp_path):
    assert ingested_column(tmp_path, ["1.10", "2.0"], kinds={"x": "category"}).values("x") == ["1.10", "2.0"]
    assert ingested_column(tmp_path, ["01/02/2026"], kinds={"x": "unused"}).values("x") == ["01/02/2026"]
    with pytest.raises(UserError, match="line 3: x is 'a', but --kind x number requires"):
        ingested_column(tmp_path, ["1", "a"], kinds={"x": "number"})
    with pytest.raises(UserError, match="--kind x text: the kinds are number, numbers, boolean, "):
        ingested_column(tmp_path, ["1"], kinds={"x": "text"})
    with pytest.raises(UserError, match="--kind z number: there is no column 'z'"):
        ingested_column(tmp_path, ["1"], kinds={"z": "number"})


def test_a_chosen_kind_has_the_keys_that_it_needs(tmp_path):
    chosen = {"kinds": {"x": "timestamp"}}
    assert ingested_column(tmp_path, ["1700000000", "1700000001"], **chosen).column("x").settings == {"unit": "seconds"}
    assert ingested_column(tmp_path, ["2026-01-01"], **chosen).column("x").settings == {"hour_of_day": False}
    assert ingested_column(tmp_path, ["1700000000"], kinds={"x": "number"}).column("x").settings == {}
    assert ingested_column(tmp_path, ["[1,2]"], kinds={"x": "embedding"}).column("x").settings == {"length": 2}
    with pytest.raises(UserError, match="--kind x timestamp: the kind needs a unit"):
        ingested_column(tmp_path, ["17"], **chosen)
    with pytest.raises(UserError, match="--kind x numbers: the kind needs vectors of one length"):
        ingested_column(tmp_path, ["[1,2]", "[1]"], kinds={"x": "numbers"})


@pytest.mark.parametrize(("role", "option"), [("label", "--labels"), ("time", "--time"), ("group", "--group")])
def test_columns_with_a_role(tmp_path, role, option):
    table = ingested_column(tmp_path, ["1", "2"], roles={"x": role})
    assert (table.column("x").role, table.column("y").role) == (role, "feature")
    with pytest.raises(UserError, match=f"{option}: there is no column 'z'. The columns are x, y"):
        ingested_column(tmp_path, ["1", "2"], roles={"z": role})


def test_the_same_input_gives_the_same_files_on_any_number_of_threads(tmp_path):
    rows = "".join(f"{row},t{row % 97},{row / 7}\n" for row in range(30_000))
    one, two = (ingested_text(tmp_path, f"x,y,z\n{rows}", threads=threads) for threads in (1, 4))
    assert one.ingested.columns == two.ingested.columns
    assert one.digests == two.digests


def test_texts_that_may_mean_a_missing_value_are_noted_once(tmp_path):
    text = "job,land,age\n ?,de,?\nnurse,?,4\n?,fr,5\n"
    assert ingested_text(tmp_path, text).ingested.notes == (
        "age: 1 values are taken as missing ('?'), because all others are integers.",
        "'?' is a value like others in job, land. If it means a missing value, add --null_values '?'.",
    )
    table = ingested_text(tmp_path, text, null_values=("?",))
    assert table.ingested.notes == ()
    assert table.values("job") == [None, "nurse", None]


def test_a_leading_zero_is_the_reason_why_a_value_is_no_number(tmp_path):
    with pytest.raises(UserError, match="'05957' has a leading zero, which makes it text") as caught:
        ingested_column(tmp_path, ["05957", "10001"], kinds={"x": "number"})
    assert "null_values" not in str(caught.value)


def test_a_time_that_is_none_is_an_error_that_names_the_option_for_dates(tmp_path):
    with pytest.raises(UserError, match=r"dates or times.*--date_format"):
        ingested_column(tmp_path, ["thai", "greek"], roles={"x": "time"})
