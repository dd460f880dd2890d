import numpy as np
import torch

from projects.twhin.data.relations import SIDES
from projects.twhin.model.negatives import draw_negatives
from projects.twhin.model.relations import build_relations
from tests.support.toy_twhin import edge_batch, model_config, random_edges

ROWS = {"user": 11, "tweet": 7}


def test_negatives_have_the_right_counts_and_ranges():
    config = model_config()
    relations = build_relations(config)
    batch = edge_batch(relations, random_edges(config, 40))
    torch.manual_seed(0)
    negatives = draw_negatives(batch, relations, 5000, 9)
    assert negatives.uniform.keys() == negatives.in_batch.keys() == {(s, table) for s in SIDES for table in ROWS}
    for (_, table), ids in negatives.uniform.items():
        counts = np.bincount(ids.numpy(), minlength=ROWS[table])
        assert len(ids) == 5000
        assert len(counts) == ROWS[table]
        assert (abs(counts * ROWS[table] / 5000 - 1) < 0.25).all()
    edges = {
        (side, table): sum(getattr(config.relation_list[rel], side) == table for rel in batch.rel.tolist())
        for side, table in negatives.in_batch
    }
    for key, positions in negatives.in_batch.items():
        assert len(set(positions.tolist())) == 9
        assert 0 <= positions.min() <= positions.max() < edges[key]


def test_every_edge_of_the_batch_is_drawn_with_the_same_probability():
    config = model_config()
    relations = build_relations(config)
    batch = edge_batch(relations, [(0, 0, 0)] * 6)
    torch.manual_seed(0)
    drawn = [draw_negatives(batch, relations, 0, 2).in_batch["lhs", "user"] for _ in range(600)]
    assert (abs(np.bincount(torch.cat(drawn).numpy(), minlength=6) / 200 - 1) < 0.3).all()


def test_small_and_empty_batches_give_fewer_in_batch_negatives():
    config = model_config()
    relations = build_relations(config)
    negatives = draw_negatives(edge_batch(relations, [(0, 0, 1), (2, 1, 3)]), relations, 4, 50)
    sizes = {key: len(positions) for key, positions in negatives.in_batch.items()}
    assert sizes == {("lhs", "user"): 2, ("lhs", "tweet"): 0, ("rhs", "user"): 1, ("rhs", "tweet"): 1}
    assert {len(ids) for ids in negatives.uniform.values()} == {4}
    assert not len(draw_negatives(edge_batch(relations, []), relations, 0, 50).uniform["lhs", "user"])


def test_the_same_seed_gives_the_same_negatives():
    config = model_config()
    relations = build_relations(config)
    batch = edge_batch(relations, random_edges(config, 40))
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(draw_negatives(batch, relations, 8, 8))
    torch.testing.assert_close(drawn[0].uniform, drawn[1].uniform)
    torch.testing.assert_close(drawn[0].in_batch, drawn[1].in_batch)
