from typing import Any

import pydantic
import pytest

from tests.support.encoded_rows import parse_features


@pytest.mark.parametrize(
    ("features", "problem"),
    [
        (
            {"x": {"kind": "number", "indicator": True}, "x.missing": {"kind": "boolean"}},
            "x and x.missing both make a binary value named x.missing",
        ),
        (
            {"x[1]": {"kind": "number"}, "x": {"kind": "numbers", "length": 2}},
            "x[1] and x both make a number named x[1]",
        ),
        (
            {"t": {"kind": "timestamp", "age": {"before": "u"}}, "t.age": {"kind": "number"}},
            "t and t.age both make a number named t.age",
        ),
        (
            {"t": {"kind": "timestamp"}, "t.day_of_week": {"kind": "category", "num_values": 7, "table": "d"}},
            "t and t.day_of_week both make categories named t.day_of_week",
        ),
        (
            {"t": {"kind": "timestamp"}, "d": {"kind": "category", "num_values": 7, "table": "t.day_of_week"}},
            "d and t both make an embedding table named t.day_of_week",
        ),
    ],
)
def test_features_whose_parts_have_the_same_name_are_refused(features, problem):
    with pytest.raises(pydantic.ValidationError) as caught:
        parse_features(features)
    assert problem in str(caught.value)


def test_names_that_only_look_alike_are_accepted():
    features: dict[str, dict[str, Any]] = {
        "x": {"kind": "number"},
        "x.missing": {"kind": "boolean"},
        "x[0]": {"kind": "category", "num_values": 2},
        "y": {"kind": "numbers", "length": 1},
        "y[1]": {"kind": "number"},
        "a": {"kind": "category", "hash_buckets": 5, "table": "t"},
        "b": {"kind": "categories", "hash_buckets": 5, "table": "t"},
        "t": {"kind": "timestamp", "hour_of_day": False, "day_of_week": False, "age": {"before": "x"}},
    }
    assert list(parse_features(features)) == list(features)
