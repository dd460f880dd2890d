import datetime
import math
from collections.abc import Sequence
from typing import Any

import pytest

from common.errors import UserError
from projects.home.recap.tools.prepare.columns import Ingested
from projects.home.recap.tools.prepare.database import open_database, scan
from projects.home.recap.tools.prepare.labels import Label, LabelRule, any_is_null, check_labels, define_labels
from tests.support.staged import staged

NAN = math.nan


@pytest.fixture
def connection(tmp_path):
    with open_database(tmp_path / "temporary", threads=1) as connection:
        yield connection


def values_of(connection: Any, ingested: Ingested, labels: Sequence[Label]) -> Any:
    """The values of the labels, by row."""
    columns = ", ".join(label.sql for label in labels)
    return connection.execute(f"SELECT {columns} FROM {scan(ingested.files)} ORDER BY row").fetchall()


def test_columns_of_0_and_1_are_labels_whatever_their_type(connection, tmp_path):
    table = {
        "integers": [0, 1, None],
        "floats": [0.0, 1.0, NAN],
        "booleans": [False, True, None],
        "texts": ["0", "1", None],
        "words": ["False", " true", None],
    }
    ingested = staged(tmp_path, table)
    labels = define_labels(ingested, list(table), [])
    assert [label.name for label in labels] == list(table)
    nulls = check_labels(connection, ingested, labels)
    assert values_of(connection, ingested, labels) == [(0,) * 5, (1,) * 5, (None,) * 5]
    assert (nulls.rows, nulls.by_label) == (1, dict.fromkeys(table, 1))


def test_rows_without_any_label_are_counted_once(connection, tmp_path):
    ingested = staged(tmp_path, {"a": [0, None, None, 1], "b": [1, None, 0, 1]})
    labels = define_labels(ingested, ["a", "b"], [])
    nulls = check_labels(connection, ingested, labels)
    assert (nulls.rows, nulls.by_label) == (2, {"a": 2, "b": 1})
    query = f"SELECT row FROM {scan(ingested.files)} WHERE {any_is_null(labels)} ORDER BY row"
    assert connection.execute(query).fetchall() == [(1,), (2,)]


@pytest.mark.parametrize(
    ("values", "rule", "expected"),
    [
        ([1, 4, 5, None], "liked rating >= 4", [0, 1, 1, None]),
        ([1, 4, 5, None], "liked rating > 4", [0, 0, 1, None]),
        ([1, 4, 5, None], "low rating < 4", [1, 0, 0, None]),
        ([1, 4, 5, None], "low rating <= 4", [1, 1, 0, None]),
        ([1, 4, 5, None], "four rating == 4", [0, 1, 0, None]),
        ([1.0, 4.5, NAN], "high rating >= 4.5", [0, 1, None]),
        ([2**60, 2**60 + 1], f"exact rating == {2**60 + 1}", [0, 1]),
        (["<=50K", ">50K", None], "rich rating == >50K", [0, 1, None]),
        (["<=50K", ">50K", None], "rich rating != <=50K", [0, 1, None]),
        (["it's", "no"], "its rating == it's", [1, 0]),
        ([" >50K", " <=50K", ">50K "], "rich rating == >50K", [1, 0, 1]),
        ([True, False, None], "yes rating == true", [1, 0, None]),
        ([datetime.date(2026, 1, 1), None], "known rating != null", [1, 0]),
        ([1.0, NAN, None], "unknown rating == null", [0, 1, 1]),
        ([["a"], None], "known rating != null", [1, 0]),
        (["a", "b"], "rating rating == b", [0, 1]),
    ],
)
def test_a_comparison_defines_a_label(connection, tmp_path, values, rule, expected):
    ingested = staged(tmp_path, {"rating": values, "other": values})
    labels = define_labels(ingested, [], [LabelRule(*rule.split())])
    assert [label.name for label in labels] == [rule.split()[0]]
    assert check_labels(connection, ingested, labels).rows == expected.count(None)
    assert [value for (value,) in values_of(connection, ingested, labels)] == expected


@pytest.mark.parametrize(
    ("values", "suggestion"),
    [
        ([1, 2, 3, 5], "such as --label rating_is_high rating '>=' 5"),
        ([2, 1, 0, 5], "such as --label rating_is_positive rating '>' 0"),
        ([0.5, 1.0], "such as --label rating_is_high rating '>=' 1.0"),
        (["<=50K", "<=50K", ">50K"], "such as --label rating_is_50K rating == '>50K'"),
    ],
)
def test_other_values_are_an_error_that_says_how_to_make_a_label(connection, tmp_path, values, suggestion):
    ingested = staged(tmp_path, {"rating": values})
    with pytest.raises(UserError, match="values are neither 0 nor 1") as caught:
        check_labels(connection, ingested, define_labels(ingested, ["rating"], []))
    assert suggestion in str(caught.value)


@pytest.mark.parametrize(("value", "text"), [("60K", "0"), ("50K", "1")])
def test_a_label_that_is_always_the_same_is_an_error_that_lists_values(connection, tmp_path, value, text):
    ingested = staged(tmp_path, {"Annual pay": [" 50K", None, " 50K"]})
    labels = define_labels(ingested, [], [LabelRule("rich", "Annual pay", "==", value)])
    with pytest.raises(UserError, match=f"the label rich is {text} in all rows.*of 'Annual pay' are ' 50K'"):
        check_labels(connection, ingested, labels)


@pytest.mark.parametrize(
    ("names", "rules", "problem"),
    [
        (["nothing"], [], "there is no column 'nothing'. The columns are text, number, flag, day"),
        ([], ["liked nothing == 1"], "there is no column 'nothing'"),
        (["flag", "flag"], [], "two labels are named flag"),
        (["flag"], ["flag flag == 1"], "two labels are named flag"),
        ([], ["text number == 1"], "the column 'text' exists"),
        ([], ["liked number =< 1"], "the operator must be one of == != > >= < <="),
        ([], ["liked number == four"], "'four' is not a number"),
        ([], ["liked number == nan"], "'nan' is not a number"),
        ([], ["liked number < null"], "null can only be compared with == or !="),
        ([], ["liked text > a"], "which can be compared only with == or != and a text"),
        ([], ["liked flag == 2"], "which can be compared only with == or != and true or false"),
        ([], ["liked day == 2026-01-01"], "which can be compared only with == or != and null"),
        (["day"], [], "a label is 0 or 1"),
        ([], ["mean number == 1"], "is reserved"),
    ],
)
def test_wrong_labels_are_errors(tmp_path, names, rules, problem):
    table = {"text": ["a"], "number": [1], "flag": [True], "day": [datetime.date(2026, 1, 1)]}
    with pytest.raises(UserError) as caught:
        define_labels(staged(tmp_path, table), names, [LabelRule(*rule.split()) for rule in rules])
    assert problem in str(caught.value)
