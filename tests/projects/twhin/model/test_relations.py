from projects.twhin.model.relations import Relations
from tests.support.toy_twhin import model_config


def test_segments_are_pairs_of_tables_and_an_operator():
    relations = Relations(model_config())
    # The linear ones (4, 5) are alone: a matrix product each.
    assert [segment.relations for segment in relations.segments] == [(0, 7), (1, 2), (3,), (4,), (5,), (6,)]
    assert relations.segment_of.tolist() == [0, 1, 1, 2, 3, 4, 5, 0]


def test_with_one_operator_every_relation_is_a_segment():
    relations = Relations(model_config(operator_sides="lhs"))
    assert [segment.relations for segment in relations.segments] == [(relation,) for relation in range(8)]


def test_rows_of_each_side():
    relations = Relations(model_config())
    assert relations.num_entities["lhs"].tolist() == [11, 11, 11, 7, 7, 7, 11, 11]
    assert relations.num_entities["rhs"].tolist() == [11, 7, 7, 11, 7, 7, 11, 11]
