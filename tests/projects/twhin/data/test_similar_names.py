import pyarrow as pa
import pytest

from projects.twhin.data.similar_names import similar_names


@pytest.mark.parametrize(
    ("names", "unknown", "expected"),
    [
        (pa.array(["ann", "joanna", "bob"]), "Ann", "Similar users: ann, joanna"),
        (pa.array(["ann", "joanna", "bob"]), "bobb", "Similar users: bob"),
        (pa.array(["ann", "joanna", "bob", "eve"]), "xyz", "Examples of users: ann, joanna, bob"),
        (pa.array([7, 3, 12]), "4", "Users range from 3 to 12"),
    ],
)
def test_names_that_may_have_been_meant(names, unknown, expected):
    assert similar_names("users", names, unknown) == expected
