import pytest

from common.errors import ConfigError
from projects.twhin.data.relations import NamedRelations, OperatorSides, Relations
from tests.support.toy_twhin import MIXED


def mixed(operator_sides: OperatorSides = "both") -> Relations:
    return Relations(MIXED, {"user": 11, "tweet": 7}, operator_sides)


def test_a_segment_is_a_pair_of_tables_and_an_operator():
    relations = mixed()
    # Each linear relation (4, 5) is a segment of its own because it needs its own matrix product.
    assert [segment.relations for segment in relations.segments] == [(0, 7), (1, 2), (3,), (4,), (5,), (6,)]
    assert relations.segment_of.tolist() == [0, 1, 1, 2, 3, 4, 5, 0]


def test_with_operators_on_one_side_every_relation_is_a_segment():
    assert [segment.relations for segment in mixed("lhs").segments] == [(relation,) for relation in range(8)]


def test_rows_of_each_side():
    relations = mixed()
    assert relations.num_entities["lhs"].tolist() == [11, 11, 11, 7, 7, 7, 11, 11]
    assert relations.num_entities["rhs"].tolist() == [11, 7, 7, 11, 7, 7, 11, 11]


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (None, ["No such file"]),
        (b"", ["line 1 is empty"]),
        (b"a\n\nb\n", ["line 2 is empty"]),
        (b"a\nb\na\n", ["line 3: a is already on line 1", "Names must differ"]),
        (b"\xff\n", ["'utf-8' codec"]),
    ],
)
def test_a_bad_file_of_names_is_a_config_error(tmp_path, content, facts):
    path = tmp_path / "names.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        NamedRelations(names_path=str(path), lhs="x", rhs="y").read()
    assert str(caught.value).startswith(f"model.relations.names_path: {path}: ")
    for fact in facts:
        assert fact in str(caught.value)
