from projects.twhin.data.config import OperatorSides
from projects.twhin.data.relations import Relations
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
