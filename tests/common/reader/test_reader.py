import collections
import dataclasses
import itertools
import math
import threading
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from common.batch import Batch
from common.errors import ConfigError
from common.reader.column import Column
from common.reader.files import DataError, matching_files
from common.reader.order import Position
from common.reader.parquet import ParquetTable, RowGroup
from common.reader.reader import BatchReader, Columns, PositionedBatch, PrefetchOptions

COLUMNS: dict[Hashable, Column] = {
    "id": Column("id", torch.int64),
    "vector": Column("vector", width=2),
    "label": Column("label", torch.int8, values="label"),
}
# Rows of each row group of each file: many, empty ones, one huge, one row, a file of nothing.
LAYOUTS = {
    "even": [[8] * 6, [8] * 6],
    "ragged": [[7, 1, 0, 30], [0], [2, 2, 0, 11, 29]],
    "one group": [[71]],
    "one row": [[1]],
    "fewer rows than lanes": [[2, 0], [3]],
    "single rows": [[1] * 40],
}
LANES, BATCH = 12, 24


@dataclasses.dataclass(frozen=True)
class Rows(Batch):
    id: torch.Tensor
    vector: torch.Tensor
    label: torch.Tensor
    mask: torch.Tensor

    def ids(self) -> list[int]:
        """Of the rows that are rows of the table."""
        return self.id[self.mask == 1].tolist()


def make_batch(columns: Columns, mask: torch.Tensor) -> Rows:
    return Rows(columns["id"], columns["vector"], columns["label"], mask)


def write(folder: Path, layout: list[list[int]], bad_label_at: int | None = None) -> ParquetTable:
    """Rows with the ids 0, 1, 2, ... in stored order, and all else a function of the id."""
    schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float64(), 2)), ("label", pa.int8())])
    ids = itertools.count()
    for index, groups in enumerate(layout):
        with pq.ParquetWriter(folder / f"part-{index}.parquet", schema) as writer:
            for rows in groups:
                of_group = list(itertools.islice(ids, rows))
                vectors = [[id, -0.5 * id] for id in of_group]
                labels = [2 if id == bad_label_at else id % 2 for id in of_group]
                writer.write_table(pa.table([of_group, vectors, labels], schema=schema))
    return ParquetTable(matching_files(str(folder)), COLUMNS)


@pytest.fixture(params=LAYOUTS)
def table(request, tmp_path) -> ParquetTable:
    return write(tmp_path, LAYOUTS[request.param])


@pytest.fixture
def even(tmp_path) -> ParquetTable:
    return write(tmp_path, LAYOUTS["even"])


def reader(table: ParquetTable, rank: int = 0, ranks: int = 1, lanes: int = LANES, batch: int = BATCH):
    return BatchReader(table, make_batch, global_batch_size=batch, lanes=lanes, rank=rank, world_size=ranks)


def by_lane(ranks: list[list[PositionedBatch[Rows]]], lanes: int = LANES) -> list[list[list[int]]]:
    """The ids of each global batch, lane by lane, put together from the shares of all ranks."""
    batches = []
    for shares in zip(*ranks, strict=True):
        assert len({share.position for share in shares}) == 1, "all ranks stand at the same position"
        stretches: list[list[int]] = [[]] * lanes
        for rank, share in enumerate(shares):
            own = range(rank, lanes, len(ranks))
            pairs = zip(share.batch.id.chunk(len(own)), share.batch.mask.chunk(len(own)), strict=True)
            for lane, (ids, mask) in zip(own, pairs, strict=True):
                stretches[lane] = ids[mask == 1].tolist()
        batches.append(stretches)
    return batches


def train(table: ParquetTable, ranks: int = 1, seed: int = 1, position: Position | None = None, num_epochs: int = 1):
    return [
        list(reader(table, rank, ranks).train(seed=seed, position=position, num_epochs=num_epochs))
        for rank in range(ranks)
    ]


def flat(batches: list[list[list[int]]]) -> list[int]:
    return [id for batch in batches for lane in batch for id in lane]


# What a batch holds.


def test_values_belong_to_their_row(table):
    for placed in [*reader(table).evaluate(), *reader(table).train(seed=1)] if table.num_rows >= BATCH else []:
        batch = placed.batch
        assert (batch.id.dtype, batch.vector.dtype, batch.label.dtype) == (torch.int64, torch.float32, torch.int8)
        assert torch.equal(batch.vector, torch.stack([batch.id, -0.5 * batch.id], dim=1))
        assert torch.equal(batch.label, batch.id % 2)
        assert batch.vector.shape == (BATCH, 2)
        assert batch.vector.is_contiguous()


# Evaluation.


@pytest.mark.parametrize("ranks", [1, 4, 12])
def test_evaluation_reads_every_row_once_on_any_number_of_ranks(table, ranks):
    shares = [list(reader(table, rank, ranks).evaluate()) for rank in range(ranks)]
    assert sorted(flat(by_lane(shares))) == list(range(table.num_rows))
    # No more batches than it takes, equally many on all ranks, all of the same size.
    assert {len(share) for share in shares} == {math.ceil(math.ceil(table.num_rows / LANES) / (BATCH // LANES))}
    assert {placed.batch.batch_size for share in shares for placed in share} == {BATCH // ranks}


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_evaluation_has_the_same_global_batches_on_any_number_of_ranks(table, ranks):
    one = by_lane([list(reader(table).evaluate())])
    assert by_lane([list(reader(table, rank, ranks).evaluate()) for rank in range(ranks)]) == one


def test_rows_that_fill_up_are_masked_and_zero(table):
    filled = 0
    for rank in range(4):
        for placed in reader(table, rank, 4).evaluate():
            batch = placed.batch
            assert set(batch.mask.tolist()) <= {0.0, 1.0}
            out = batch.mask == 0
            filled += int(out.sum())
            assert not batch.id[out].any()
            assert not batch.vector[out].any()
            assert not batch.label[out].any()
    batches = len(list(reader(table).evaluate()))
    assert filled == batches * BATCH - table.num_rows


def test_one_lane_evaluates_in_stored_order(table):
    batches = list(reader(table, lanes=1, batch=5).evaluate())
    ids = [placed.batch.ids() for placed in batches]
    assert ids == [list(range(start, min(start + 5, table.num_rows))) for start in range(0, table.num_rows, 5)]


def test_evaluation_comes_out_the_same_again_beside_training(even):
    the_reader = reader(even)
    training = the_reader.train(seed=1, num_epochs=None)
    first = by_lane([list(the_reader.evaluate())])
    begun = [next(training) for _ in range(3)]
    assert by_lane([list(the_reader.evaluate())]) == first
    begun += [next(training)]
    training.close()
    assert by_lane([begun]) == by_lane(train(even))[:4]


def test_position_tells_how_many_rows_were_taken(table):
    taken = 0
    for placed in reader(table).evaluate():
        taken += len(placed.batch.ids())
        assert sum(placed.position.cursors) == taken


# Training.


@pytest.fixture(params=[name for name, files in LAYOUTS.items() if sum(map(sum, files)) >= BATCH])
def training_table(request, tmp_path) -> ParquetTable:
    return write(tmp_path, LAYOUTS[request.param])


def test_an_epoch_repeats_no_row_and_drops_less_than_a_batch(training_table):
    ids = flat(by_lane(train(training_table)))
    assert len(set(ids)) == len(ids)
    assert set(ids) <= set(range(training_table.num_rows))
    assert 0 <= training_table.num_rows - len(ids) < BATCH


def test_training_batches_are_full(training_table):
    for placed in train(training_table)[0]:
        assert placed.batch.mask.tolist() == [1] * BATCH


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_all_numbers_of_ranks_train_on_the_same_global_batches(training_table, ranks):
    assert by_lane(train(training_table, ranks, num_epochs=2)) == by_lane(train(training_table, num_epochs=2))


def test_order_is_a_function_of_seed_and_epoch(even):
    per_epoch = reader(even).batches_per_epoch
    both = by_lane(train(even, seed=1, num_epochs=2))
    assert both == by_lane(train(even, seed=1, num_epochs=2))
    assert both != by_lane(train(even, seed=2, num_epochs=2))
    first, second = both[:per_epoch], both[per_epoch:]
    assert first != second
    assert first == by_lane(train(even, seed=1, num_epochs=1))
    assert sorted(flat(first)) == sorted(flat(second)) == list(range(96))
    assert flat(first) != sorted(flat(first))


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 3), (4, 2)])
def test_a_resume_anywhere_goes_on_as_if_nothing_had_happened(training_table, before, after):
    """At every batch, the ends of epochs included, also on another number of ranks."""
    shares = train(training_table, before, num_epochs=2)
    uninterrupted = by_lane(shares)
    positions = [Position.start(LANES), *(placed.position for placed in shares[0])]
    assert len(set(positions)) == len(positions)
    for done, position in enumerate(positions):
        resumed = by_lane(train(training_table, after, position=position, num_epochs=2))
        assert resumed == uninterrupted[done:]


def test_remaining_batches_are_those_that_come(training_table):
    the_reader = reader(training_table)
    placed = train(training_table, num_epochs=3)[0]
    assert len(placed) == 3 * the_reader.batches_per_epoch
    for done, position in enumerate([Position.start(LANES), *(item.position for item in placed)]):
        assert the_reader.remaining_batches(position, 3) == len(placed) - done
        assert the_reader.remaining_batches(position, None) == float("inf")
    assert the_reader.remaining_batches(placed[-1].position, 1) == 0, "fewer epochs than were made"


def test_fewer_epochs_than_were_made_is_the_end(even):
    last = train(even, num_epochs=2)[0][-1].position
    assert train(even, position=last, num_epochs=1) == [[]]


def test_no_limit_of_epochs(even):
    batches = reader(even).train(seed=1, num_epochs=None)
    taken = [next(batches) for _ in range(10)]
    batches.close()
    assert by_lane([taken]) == by_lane(train(even, num_epochs=3))[:10]
    assert taken[-1].position.epoch == 2


def test_fewer_rows_than_a_batch_can_not_be_trained_on(tmp_path):
    the_reader = reader(write(tmp_path, [[23]]))
    message = f"{tmp_path}: 23 rows, fewer than one global batch of 24; add data or lower global_batch_size"
    for refused in (the_reader.check_trainable, lambda: the_reader.train(seed=1, num_epochs=None)):
        with pytest.raises(DataError) as caught:
            refused()
        assert str(caught.value) == message


def test_exactly_one_batch_can_be_trained_on(tmp_path):
    table = write(tmp_path, [[24]])
    reader(table).check_trainable()
    assert sorted(flat(by_lane(train(table)))) == list(range(24))


@pytest.mark.parametrize(("lanes", "batch", "ranks"), [(5, 24, 1), (12, 24, 5)])
def test_what_does_not_fit_is_refused(even, lanes, batch, ranks):
    with pytest.raises(ConfigError, match="is not a multiple of"):
        reader(even, 0, ranks, lanes, batch)


# How it reads.


class CountingTable(ParquetTable):
    def __init__(self, table: ParquetTable) -> None:
        super().__init__(matching_files(table.inputs), COLUMNS)
        self.decoded: collections.Counter[int] = collections.Counter()

    def decode(self, group: int) -> RowGroup:
        self.decoded[group] += 1
        return super().decode(group)


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_row_group_is_decoded_once_a_lane_that_has_rows_of_it(training_table, ranks):
    """And not once a batch. A lane's end cuts one row group at most."""
    counting = CountingTable(training_table)
    for rank in range(ranks):
        list(reader(counting, rank, ranks).train(seed=1))
    with_rows = int((training_table.rows_per_group > 0).sum())
    assert sum(counting.decoded.values()) <= with_rows + LANES - 1


def test_bad_data_is_told_at_its_batch(tmp_path):
    """Row 19 of 24, in the second file's third row group; batches of 3 in stored order."""
    table = write(tmp_path, [[3] * 4, [3] * 4], bad_label_at=19)
    batches = reader(table, lanes=1, batch=3).evaluate()
    assert [next(batches).batch.ids() for _ in range(6)] == [[i, i + 1, i + 2] for i in range(0, 18, 3)]
    with pytest.raises(DataError) as caught:
        next(batches)
    assert str(caught.value) == (
        f"{tmp_path / 'part-1.parquet'}: row group 2, row 1 (both counted from 0): column 'label': "
        "2 found, a label is 0 or 1"
    )
    batches.close()


def test_a_mistake_in_make_batch_reaches_the_consumer(even):
    def broken(columns: Columns, _: torch.Tensor) -> Rows:
        return make_batch(columns, columns["no such"])

    batches: Iterator[PositionedBatch[Rows]] = BatchReader(
        even, broken, global_batch_size=BATCH, lanes=LANES
    ).evaluate()
    with pytest.raises(KeyError, match="no such"):
        next(batches)


# How much is held ready, and how rows are shuffled.


def ids_of(
    reading: PrefetchOptions, table: ParquetTable, ranks: int = 1, position: Position | None = None
) -> list[Any]:
    """The global batches of two epochs, lane by lane."""
    shares = [
        BatchReader(
            table, make_batch, global_batch_size=BATCH, lanes=LANES, rank=rank, world_size=ranks, reading=reading
        ).train(seed=1, num_epochs=2, position=position)
        for rank in range(ranks)
    ]
    return by_lane([list(share) for share in shares])


def test_what_is_held_ready_changes_no_batch(training_table):
    expected = ids_of(PrefetchOptions(), training_table)
    for reading in (
        PrefetchOptions(prefetch_batches=1, decode_threads=1),
        PrefetchOptions(prefetch_batches=50, decode_threads=5),
    ):
        assert ids_of(reading, training_table) == expected


@pytest.mark.parametrize("window", [20, 1000])
def test_a_shuffle_window_is_the_same_on_any_number_of_ranks_and_after_a_resume(training_table, window):
    reading = PrefetchOptions(shuffle_window=window)
    one = ids_of(reading, training_table)
    per_epoch = len(one) // 2
    for epoch in (one[:per_epoch], one[per_epoch:]):
        assert len(set(flat(epoch))) == per_epoch * BATCH
    assert ids_of(reading, training_table, ranks=4) == one
    resumed = BatchReader(training_table, make_batch, global_batch_size=BATCH, lanes=LANES, reading=reading)
    first = next(iter(resumed.train(seed=1)))
    assert ids_of(reading, training_table, ranks=2, position=first.position) == one[1:]
    if window == 1000 and len(training_table.rows_per_group) > 1:
        assert one != ids_of(PrefetchOptions(), training_table)


def test_what_was_decoded_is_kept(tmp_path):
    write(tmp_path, LAYOUTS["even"])
    table = ParquetTable(matching_files(str(tmp_path)), COLUMNS, cache=True)
    epochs = train(table, num_epochs=2)
    evaluated = [placed.batch.ids() for placed in reader(table).evaluate()]
    for path in tmp_path.iterdir():
        path.unlink()
    assert by_lane(train(table, num_epochs=2)) == by_lane(epochs)
    assert [placed.batch.ids() for placed in reader(table).evaluate()] == evaluated


def test_a_bad_row_that_is_decoded_ahead_is_told_when_it_is_needed(tmp_path):
    """One lane in stored order; the second row group is decoded while the first is read."""
    table = write(tmp_path, [[6, 6]], bad_label_at=6)
    batches = reader(table, lanes=1, batch=3).evaluate()
    assert [next(batches).batch.ids() for _ in range(2)] == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(DataError, match="row group 1, row 0"):
        next(batches)


def test_a_reader_that_is_closed_leaves_no_thread(even):
    before = set(threading.enumerate())
    batches = reader(even).train(seed=1, num_epochs=None)
    next(batches)
    assert set(threading.enumerate()) > before
    batches.close()
    assert set(threading.enumerate()) == before


# Sampling.


class OddOnes:
    """Keeps the rows with label 1, and of the others none."""

    rows_read_per_kept = 2
    columns = ("label", "id")

    def choose(self, stored: RowGroup, keep: int, rng: np.random.Generator) -> tuple[Any, Any]:
        chosen = np.flatnonzero(stored["label"])[:keep]
        assert (stored["id"] % 2 == stored["label"]).all()
        return chosen, rng.random(len(chosen)).astype(np.float32)


def sampled(table: ParquetTable, ranks: int, how: str = "train", position: Position | None = None):
    readers = [
        BatchReader(
            table, make_batch, global_batch_size=BATCH, lanes=LANES, rank=rank, world_size=ranks, sampling=OddOnes()
        )
        for rank in range(ranks)
    ]
    return [list(r.train(seed=1, position=position) if how == "train" else r.evaluate()) for r in readers]


def test_sampling_reads_more_rows_and_keeps_those_chosen(even):
    (batches,) = sampled(even, 1)
    assert len(batches) == even.num_rows // (2 * BATCH)
    for placed in batches:
        kept = placed.batch.mask != 0
        assert torch.equal(placed.batch.id[kept] % 2, torch.ones(int(kept.sum()), dtype=torch.int64))
        assert torch.equal(placed.batch.vector[kept][:, 1], -0.5 * placed.batch.id[kept])
        assert not placed.batch.id[~kept].any()
    (evaluated,) = sampled(even, 1, "evaluate")
    ids = [int(id) for placed in evaluated for id in placed.batch.id[placed.batch.mask != 0]]
    assert sorted(ids) == list(range(1, even.num_rows, 2))


@pytest.mark.parametrize("ranks", [2, 4])
def test_sampling_is_the_same_on_any_number_of_ranks_and_after_a_resume(even, ranks):
    def rows(shares: list[list[PositionedBatch[Rows]]]) -> list[set[tuple[int, float]]]:
        return [
            {pair for share in batch for pair in zip(share.batch.id.tolist(), share.batch.mask.tolist(), strict=True)}
            for batch in zip(*shares, strict=True)
        ]

    one = sampled(even, 1)
    assert rows(sampled(even, ranks)) == rows(one)
    assert rows(sampled(even, ranks, position=one[0][0].position)) == rows(one)[1:]


def test_too_few_rows_to_sample_a_batch_from(tmp_path):
    table = write(tmp_path, [[2 * BATCH - 1]])
    with pytest.raises(DataError, match=f"{2 * BATCH - 1} rows, fewer than one global batch of 24, for which 48 are"):
        sampled(table, 1)
