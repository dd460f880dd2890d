import itertools
import re

import numpy as np
import pytest

from common.errors import ConfigError
from common.reader.order import Order, Position, check_lanes

GROUPS = np.array([7, 0, 13, 1, 0, 40, 22])  # 83 rows in all


def read_lane(order: Order, lane: int, take: int) -> list[list[tuple[int, int]]]:
    """Return the batches of a lane, each a list of (row group, row), empty after the end of the lane."""
    batches = []
    for cursor in range(0, order.num_batches * take, take):
        pieces = list(order.pieces(lane, cursor))
        batches.append([(piece.group, int(row)) for piece in pieces for row in piece.rows])
    return batches


def all_rows(groups) -> list[tuple[int, int]]:
    return [(group, row) for group, count in enumerate(groups) for row in range(count)]


def flat(lanes) -> list[tuple[int, int]]:
    return [row for lane in lanes for batch in lane for row in batch]


@pytest.mark.parametrize("groups", [GROUPS, np.array([1]), np.array([0, 1]), np.array([5, 6]), np.arange(30)])
@pytest.mark.parametrize(("lanes", "batch"), [(1, 1), (1, 8), (4, 4), (4, 8), (6, 12), (8, 64)])
@pytest.mark.parametrize("seed", [None, 3])
def test_without_drop_last_every_row_is_read_once(groups, lanes, batch, seed):
    order = Order(groups, lanes, batch, seed=seed, drop_last=False)
    read = [read_lane(order, lane, batch // lanes) for lane in range(lanes)]
    assert sorted(flat(read)) == all_rows(groups)
    lengths = [order.lane_length(lane) for lane in range(lanes)]
    assert lengths == [sum(map(len, lane)) for lane in read]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("groups", [GROUPS, np.array([64]), np.array([1]), np.arange(30)])
@pytest.mark.parametrize(("lanes", "batch"), [(1, 1), (1, 8), (4, 8), (6, 12), (8, 64)])
def test_with_drop_last_all_batches_are_full_and_less_than_one_is_dropped(groups, lanes, batch):
    order = Order(groups, lanes, batch, seed=3)
    read = [read_lane(order, lane, batch // lanes) for lane in range(lanes)]
    rows = flat(read)
    assert len(set(rows)) == len(rows)
    assert set(rows) <= set(all_rows(groups))
    assert 0 <= groups.sum() - len(rows) < batch
    assert all(len(rows) == batch // lanes for lane in read for rows in lane)


def test_order_without_a_seed_is_stored_order():
    order = Order(GROUPS, 1, 10, seed=None, drop_last=False)
    assert flat([read_lane(order, 0, 10)]) == all_rows(GROUPS)


def test_order_depends_only_on_seed_and_epoch():
    orders = {
        (seed, epoch): flat([read_lane(Order(GROUPS, 1, 1, seed=seed, epoch=epoch), 0, 1)])
        for seed, epoch in itertools.product((0, 1), (0, 1))
    }
    for (seed, epoch), rows in orders.items():
        np.random.seed(epoch)  # the global generator has no effect
        assert flat([read_lane(Order(GROUPS, 1, 1, seed=seed, epoch=epoch), 0, 1)]) == rows
    assert len({tuple(rows) for rows in orders.values()}) == 4
    assert len({tuple(dict.fromkeys(group for group, _ in rows)) for rows in orders.values()}) == 4, (
        "the order of groups differs too"
    )


def test_groups_and_their_rows_are_shuffled():
    rows = flat([read_lane(Order(np.full(50, 20), 1, 1, seed=0), 0, 1)])
    groups = [group for group, _ in itertools.groupby(rows, key=lambda row: row[0])]
    assert sorted(groups) == list(range(50)), "each group is read contiguously"
    assert groups != sorted(groups)
    within = {group: [row for g, row in rows if g == group] for group in groups}
    assert len({tuple(order) for order in within.values()}) == 50, "groups have different orders"


def test_lanes_are_consecutive_parts_of_one_sequence():
    one = flat([read_lane(Order(GROUPS, 1, 12, seed=9), 0, 12)])
    four = Order(GROUPS, 4, 12, seed=9)
    assert flat([read_lane(four, lane, 3) for lane in range(4)]) == one


def test_pieces_end_where_row_groups_end():
    pieces = list(Order(np.array([3, 0, 2, 5]), 1, 8, seed=None, drop_last=False).pieces(0, 1))
    assert [(piece.group, piece.rows.tolist()) for piece in pieces] == [(0, [1, 2]), (2, [0, 1]), (3, [0, 1, 2, 3])]


def test_no_pieces_after_the_end_of_a_lane():
    order = Order(np.array([10]), 2, 4, seed=None, drop_last=False)
    assert list(order.pieces(0, 5)) == []
    assert list(order.pieces(0, 50)) == [], "no rows of the next lane either"


def test_start_is_before_the_first_row_of_every_lane():
    assert Position.start(3) == Position(epoch=0, cursors=(0, 0, 0))


@pytest.mark.parametrize(("lanes", "batch", "world_size"), [(12, 768, world) for world in (1, 2, 3, 4, 6, 12)])
def test_valid_numbers_of_lanes(lanes, batch, world_size):
    check_lanes(lanes, batch, world_size)


@pytest.mark.parametrize(
    ("lanes", "batch", "world_size", "message"),
    [
        (5, 12, 1, "global_batch_size 12 is not a multiple of lanes 5"),
        (24, 12, 1, "global_batch_size 12 is not a multiple of lanes 24"),
        (
            4,
            12,
            3,
            "lanes 4 is not a multiple of the world size 3: .* a multiple of 3 that divides global_batch_size 12$",
        ),
        (4, 8, 3, r"lanes 4 .* global_batch_size 8 \(which is itself not a multiple of 3\)"),
    ],
)
def test_invalid_numbers_of_lanes(lanes, batch, world_size, message):
    with pytest.raises(ConfigError, match=re.compile(message)):
        check_lanes(lanes, batch, world_size)


# Spans of several row groups.


@pytest.mark.parametrize("shuffle_window", [1, 5, 21, 83, 1000])
def test_span_is_the_fewest_whole_row_groups_with_enough_rows(shuffle_window):
    order = Order(GROUPS, 1, 1, seed=4, shuffle_window=shuffle_window)
    spans = [order.groups(span) for span in range(len(order._spans) - 1)]
    assert sorted(group for span in spans for group in span) == list(range(len(GROUPS)))
    sizes = [int(GROUPS[span].sum()) for span in spans]
    assert all(size >= shuffle_window for size in sizes[:-1])
    assert all(size - GROUPS[span[-1]] < shuffle_window for size, span in zip(sizes, spans, strict=True)), "no larger"


def test_rows_of_a_span_are_shuffled_together():
    groups = np.full(40, 10)
    rows = flat([read_lane(Order(groups, 1, 1, seed=0, shuffle_window=100), 0, 1)])
    assert sorted(rows) == all_rows(groups)
    for begin in range(0, 400, 100):
        span = rows[begin : begin + 100]
        assert len({group for group, _ in span}) == 10
        assert len({group for group, _ in span[:20]}) >= 7, "by chance, 20 rows have fewer than 7 groups once in 10^4"


@pytest.mark.parametrize("shuffle_window", [1, 15, 50])
@pytest.mark.parametrize(("lanes", "batch"), [(1, 8), (4, 8), (6, 12)])
def test_with_spans_every_row_is_read_once_and_from_the_current_spans(shuffle_window, lanes, batch):
    order = Order(GROUPS, lanes, batch, seed=3, shuffle_window=shuffle_window, drop_last=False)
    rows = []
    for lane in range(lanes):
        for cursor in range(0, order.num_batches * order.rows_per_take, order.rows_per_take):
            pieces = list(order.pieces(lane, cursor))
            current = [group for span in order.spans(lane, cursor) for group in order.groups(span)]
            assert {piece.group for piece in pieces} <= set(current)
            rows += [(piece.group, int(row)) for piece in pieces for row in piece.rows]
    assert sorted(rows) == all_rows(GROUPS)


def test_spans_end_with_the_lane():
    order = Order(np.full(8, 10), 4, 8, seed=None, drop_last=False)
    assert [list(order.spans(1, cursor)) for cursor in (0, 8, 10, 18, 20)] == [[2, 3], [2, 3], [3], [3], []]
    assert list(order.spans(0, 9)) == [0, 1], "a batch is taken from both, and none from the next lane"
