import pytest

from projects.home.recap.tools.prepare.names import clean_names, no_such_column


@pytest.mark.parametrize(
    ("found", "names"),
    [
        (["a", "b c", "ü.é", "A"], ["a", "b c", "ü.é", "A"]),
        ([" a", "b\t", "c  d"], ["a", "b", "c d"]),
        (["", "a", " "], ["column_1", "a", "column_3"]),
        (["a", "a", "a"], ["a", "a_2", "a_3"]),
        (["a", "a", "a_2"], ["a", "a_3", "a_2"]),
        (["a_2", "a", "a "], ["a_2", "a", "a_3"]),
        (["a\nb", "c\x00d", "e\u200bf"], ["a b", "c_d", "e_f"]),
        (["", "column_1"], ["column_1", "column_1_2"]),
    ],
)
def test_names_are_unique_printable_and_not_empty(found, names):
    assert clean_names(found)[0] == names


def test_each_change_is_reported():
    assert clean_names(["a", "", " a", "b"])[1] == [
        "Column 2, '' in the input, is named 'column_2'.",
        "Column 3, ' a' in the input, is named 'a_2'.",
    ]


def test_a_similar_name_is_proposed() -> None:
    assert no_such_column("clickd", ["Shown", "Clicked"]).startswith(
        "there is no column 'clickd'. Did you mean 'Clicked'? The columns are Shown, Clicked"
    )
    assert no_such_column("xyz", ["Shown"]) == "there is no column 'xyz'. The columns are Shown"
