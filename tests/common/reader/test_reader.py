import collections
import dataclasses
import gc
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
from common.errors import ConfigError, UserError
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
# Number of rows of each row group of each file.
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
        """Return the ids of the rows that are not padding."""
        return self.id[self.mask == 1].tolist()


def make_batch(columns: Columns, mask: torch.Tensor) -> Rows:
    return Rows(columns["id"], columns["vector"], columns["label"], mask)


def write(folder: Path, layout: list[list[int]], bad_label_at: int | None = None) -> ParquetTable:
    """Write rows with the ids 0, 1, 2, ... in stored order; the other columns are functions of the id."""
    schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float64(), 2)), ("label", pa.int8())])
    ids = itertools.count()
    for index, groups in enumerate(layout):
        with pq.ParquetWriter(folder / f"part-{index}.parquet", schema) as writer:
            for rows in groups:
                group_ids = list(itertools.islice(ids, rows))
                vectors = [[id, -0.5 * id] for id in group_ids]
                labels = [2 if id == bad_label_at else id % 2 for id in group_ids]
                writer.write_table(pa.table([group_ids, vectors, labels], schema=schema))
    return ParquetTable(matching_files(str(folder)), COLUMNS)


@pytest.fixture(params=LAYOUTS)
def table(request, tmp_path) -> ParquetTable:
    return write(tmp_path, LAYOUTS[request.param])


@pytest.fixture
def even(tmp_path) -> ParquetTable:
    return write(tmp_path, LAYOUTS["even"])


def reader(table: ParquetTable, rank: int = 0, ranks: int = 1, lanes: int = LANES, batch: int = BATCH):
    return BatchReader(table, make_batch, global_batch_size=batch, lanes=lanes, rank=rank, world_size=ranks)


@pytest.mark.parametrize(("rank", "ranks"), [(2, 2), (9, 1), (-1, 2), (0, 0)])
def test_a_rank_outside_its_world_is_refused(even, rank, ranks):
    with pytest.raises(UserError, match=rf"rank {rank} is outside a world of {ranks} "):
        reader(even, rank, ranks)


def by_lane(ranks: list[list[PositionedBatch[Rows]]], lanes: int = LANES) -> list[list[list[int]]]:
    """Return the ids of each global batch, lane by lane, collected from the shares of all ranks."""
    batches = []
    for shares in zip(*ranks, strict=True):
        assert len({share.position for share in shares}) == 1, "all ranks are at the same position"
        by_lane_ids: list[list[int]] = [[]] * lanes
        for rank, share in enumerate(shares):
            own = range(rank, lanes, len(ranks))
            pairs = zip(share.batch.id.chunk(len(own)), share.batch.mask.chunk(len(own)), strict=True)
            for lane, (ids, mask) in zip(own, pairs, strict=True):
                by_lane_ids[lane] = ids[mask == 1].tolist()
        batches.append(by_lane_ids)
    return batches


def train(table: ParquetTable, ranks: int = 1, seed: int = 1, position: Position | None = None, num_epochs: int = 1):
    return [
        list(reader(table, rank, ranks).train(seed=seed, position=position, num_epochs=num_epochs))
        for rank in range(ranks)
    ]


def flat(batches: list[list[list[int]]]) -> list[int]:
    return [id for batch in batches for lane in batch for id in lane]


# Contents of a batch.


def test_values_belong_to_their_row(table):
    for item in [*reader(table).evaluate(), *reader(table).train(seed=1)] if table.num_rows >= BATCH else []:
        batch = item.batch
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
    # All ranks have the same number of batches, no more than needed, and all batches have the same size.
    assert {len(share) for share in shares} == {math.ceil(math.ceil(table.num_rows / LANES) / (BATCH // LANES))}
    assert {item.batch.batch_size for share in shares for item in share} == {BATCH // ranks}


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_evaluation_has_the_same_global_batches_on_any_number_of_ranks(table, ranks):
    one = by_lane([list(reader(table).evaluate())])
    assert by_lane([list(reader(table, rank, ranks).evaluate()) for rank in range(ranks)]) == one


def test_padding_rows_are_masked_and_zero(table):
    num_padding = 0
    for rank in range(4):
        for item in reader(table, rank, 4).evaluate():
            batch = item.batch
            assert set(batch.mask.tolist()) <= {0.0, 1.0}
            padding = batch.mask == 0
            num_padding += int(padding.sum())
            assert not batch.id[padding].any()
            assert not batch.vector[padding].any()
            assert not batch.label[padding].any()
    batches = len(list(reader(table).evaluate()))
    assert num_padding == batches * BATCH - table.num_rows


def test_one_lane_evaluates_in_stored_order(table):
    batches = list(reader(table, lanes=1, batch=5).evaluate())
    ids = [item.batch.ids() for item in batches]
    assert ids == [list(range(start, min(start + 5, table.num_rows))) for start in range(0, table.num_rows, 5)]


def test_evaluation_is_repeatable_during_training(even):
    the_reader = reader(even)
    training = the_reader.train(seed=1, num_epochs=None)
    first = by_lane([list(the_reader.evaluate())])
    started = [next(training) for _ in range(3)]
    assert by_lane([list(the_reader.evaluate())]) == first
    started += [next(training)]
    training.close()
    assert by_lane([started]) == by_lane(train(even))[:4]


def test_position_counts_the_rows_taken(table):
    taken = 0
    for item in reader(table).evaluate():
        taken += len(item.batch.ids())
        assert sum(item.position.cursors) == taken


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
    for item in train(training_table)[0]:
        assert item.batch.mask.tolist() == [1] * BATCH


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_any_number_of_ranks_trains_on_the_same_global_batches(training_table, ranks):
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
def test_resume_at_any_batch_continues_like_an_uninterrupted_run(training_table, before, after):
    """This includes the end of an epoch and a different number of ranks."""
    shares = train(training_table, before, num_epochs=2)
    uninterrupted = by_lane(shares)
    positions = [Position.start(LANES), *(item.position for item in shares[0])]
    assert len(set(positions)) == len(positions)
    for done, position in enumerate(positions):
        resumed = by_lane(train(training_table, after, position=position, num_epochs=2))
        assert resumed == uninterrupted[done:]


def test_remaining_batches_agree_with_the_batches_read(training_table):
    the_reader = reader(training_table)
    items = train(training_table, num_epochs=3)[0]
    assert len(items) == 3 * the_reader.batches_per_epoch
    for done, position in enumerate([Position.start(LANES), *(item.position for item in items)]):
        assert the_reader.remaining_batches(position, 3) == len(items) - done
        assert the_reader.remaining_batches(position, None) == float("inf")
    assert the_reader.remaining_batches(items[-1].position, 1) == 0, "num_epochs is less than the epochs read"


def test_no_batches_if_num_epochs_is_less_than_the_epochs_read(even):
    last = train(even, num_epochs=2)[0][-1].position
    assert train(even, position=last, num_epochs=1) == [[]]


def test_no_limit_of_epochs(even):
    batches = reader(even).train(seed=1, num_epochs=None)
    taken = [next(batches) for _ in range(10)]
    batches.close()
    assert by_lane([taken]) == by_lane(train(even, num_epochs=3))[:10]
    assert taken[-1].position.epoch == 2


def test_fewer_rows_than_a_global_batch_are_refused(tmp_path):
    the_reader = reader(write(tmp_path, [[23]]))
    message = f"{tmp_path}: 23 rows, fewer than one global batch of 24; add data or lower global_batch_size"
    for refused in (the_reader.check_trainable, lambda: the_reader.train(seed=1, num_epochs=None)):
        with pytest.raises(DataError) as caught:
            refused()
        assert str(caught.value) == message


def test_exactly_one_global_batch_can_be_trained_on(tmp_path):
    table = write(tmp_path, [[24]])
    reader(table).check_trainable()
    assert sorted(flat(by_lane(train(table)))) == list(range(24))


@pytest.mark.parametrize(("lanes", "batch", "ranks"), [(5, 24, 1), (12, 24, 5)])
def test_lanes_that_do_not_fit_are_refused(even, lanes, batch, ranks):
    with pytest.raises(ConfigError, match="is not a multiple of"):
        reader(even, 0, ranks, lanes, batch)


# Decoding.


class CountingTable(ParquetTable):
    def __init__(self, table: ParquetTable) -> None:
        super().__init__(matching_files(table.inputs), COLUMNS)
        self.decoded: collections.Counter[int] = collections.Counter()

    def decode(self, group: int) -> RowGroup:
        self.decoded[group] += 1
        return super().decode(group)


@pytest.mark.parametrize("ranks", [1, 3])
def test_row_group_is_decoded_once_per_lane_and_not_per_batch(training_table, ranks):
    """The end of a lane splits at most one row group."""
    counting = CountingTable(training_table)
    for rank in range(ranks):
        list(reader(counting, rank, ranks).train(seed=1))
    with_rows = int((training_table.rows_per_group > 0).sum())
    assert sum(counting.decoded.values()) <= with_rows + LANES - 1


def test_bad_row_is_reported_at_its_batch(tmp_path):
    """Row 19 of 24 is in the third row group of the second file; batches of 3 are read in stored order."""
    table = write(tmp_path, [[3] * 4, [3] * 4], bad_label_at=19)
    batches = reader(table, lanes=1, batch=3).evaluate()
    assert [next(batches).batch.ids() for _ in range(6)] == [[i, i + 1, i + 2] for i in range(0, 18, 3)]
    with pytest.raises(DataError) as caught:
        next(batches)
    assert str(caught.value) == (
        f"{tmp_path / 'part-1.parquet'}: row group 2, row 1 (both counted from 0): column 'label': "
        "found 2, but a label must be 0 or 1"
    )
    batches.close()


def test_exception_in_make_batch_reaches_the_consumer(even):
    def broken(columns: Columns, _: torch.Tensor) -> Rows:
        return make_batch(columns, columns["no such"])

    batches: Iterator[PositionedBatch[Rows]] = BatchReader(
        even, broken, global_batch_size=BATCH, lanes=LANES
    ).evaluate()
    with pytest.raises(KeyError, match="no such"):
        next(batches)


# Prefetching and shuffling.


def ids_of(
    options: PrefetchOptions, table: ParquetTable, ranks: int = 1, position: Position | None = None
) -> list[Any]:
    """Return the global batches of two epochs, lane by lane."""
    shares = [
        BatchReader(
            table, make_batch, global_batch_size=BATCH, lanes=LANES, rank=rank, world_size=ranks, prefetch=options
        ).train(seed=1, num_epochs=2, position=position)
        for rank in range(ranks)
    ]
    return by_lane([list(share) for share in shares])


def test_prefetching_changes_no_batch(training_table):
    expected = ids_of(PrefetchOptions(), training_table)
    for options in (
        PrefetchOptions(prefetch_batches=1, decode_threads=1),
        PrefetchOptions(prefetch_batches=50, decode_threads=5),
    ):
        assert ids_of(options, training_table) == expected


@dataclasses.dataclass(frozen=True)
class Config:
    prefetch_batches: int
    decode_threads: int
    shuffle_window: int | None


def test_prefetch_options_from_a_configuration():
    assert PrefetchOptions.from_config(Config(3, 4, 50)) == PrefetchOptions(3, 4, 50)
    assert PrefetchOptions.from_config(Config(3, 4, None)) == PrefetchOptions(3, 4, 1)


@pytest.mark.parametrize("shuffle_window", [20, 1000])
def test_shuffling_does_not_depend_on_ranks_or_a_resume(training_table, shuffle_window):
    options = PrefetchOptions(shuffle_window=shuffle_window)
    one = ids_of(options, training_table)
    per_epoch = len(one) // 2
    for epoch in (one[:per_epoch], one[per_epoch:]):
        assert len(set(flat(epoch))) == per_epoch * BATCH
    assert ids_of(options, training_table, ranks=4) == one
    resumed = BatchReader(training_table, make_batch, global_batch_size=BATCH, lanes=LANES, prefetch=options)
    first = next(iter(resumed.train(seed=1)))
    assert ids_of(options, training_table, ranks=2, position=first.position) == one[1:]
    if shuffle_window == 1000 and len(training_table.rows_per_group) > 1:
        assert one != ids_of(PrefetchOptions(), training_table)


def test_cached_table_does_not_read_files_again(tmp_path):
    write(tmp_path, LAYOUTS["even"])
    table = ParquetTable(matching_files(str(tmp_path)), COLUMNS, cache=True)
    epochs = train(table, num_epochs=2)
    evaluated = [item.batch.ids() for item in reader(table).evaluate()]
    for path in tmp_path.iterdir():
        path.unlink()
    assert by_lane(train(table, num_epochs=2)) == by_lane(epochs)
    assert [item.batch.ids() for item in reader(table).evaluate()] == evaluated


def test_bad_row_that_is_decoded_ahead_is_reported_when_it_is_needed(tmp_path):
    """One lane is read in stored order, and the second row group is decoded while the first is read."""
    table = write(tmp_path, [[6, 6]], bad_label_at=6)
    batches = reader(table, lanes=1, batch=3).evaluate()
    assert [next(batches).batch.ids() for _ in range(2)] == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(DataError, match="row group 1, row 0"):
        next(batches)


def test_closed_reader_leaves_no_thread(even):
    before = set(threading.enumerate())
    batches = reader(even).train(seed=1, num_epochs=None)
    next(batches)
    assert set(threading.enumerate()) > before
    batches.close()
    assert set(threading.enumerate()) == before


# Sampling.


class OddRows:
    """Keeps only the rows with label 1, whose ids are odd."""

    rows_read_per_kept = 2
    columns = ("label", "id")

    def choose(self, stored: RowGroup, keep: int, rng: np.random.Generator) -> tuple[Any, Any]:
        chosen = np.flatnonzero(stored["label"])[:keep]
        assert (stored["id"] % 2 == stored["label"]).all()
        return chosen, rng.random(len(chosen)).astype(np.float32)


def sampled(table: ParquetTable, ranks: int, mode: str = "train", position: Position | None = None):
    readers = [
        BatchReader(
            table, make_batch, global_batch_size=BATCH, lanes=LANES, rank=rank, world_size=ranks, sampling=OddRows()
        )
        for rank in range(ranks)
    ]
    return [list(r.train(seed=1, position=position) if mode == "train" else r.evaluate()) for r in readers]


def test_sampling_reads_more_rows_and_keeps_the_chosen_ones(even):
    (batches,) = sampled(even, 1)
    assert len(batches) == even.num_rows // (2 * BATCH)
    for item in batches:
        kept = item.batch.mask != 0
        assert torch.equal(item.batch.id[kept] % 2, torch.ones(int(kept.sum()), dtype=torch.int64))
        assert torch.equal(item.batch.vector[kept][:, 1], -0.5 * item.batch.id[kept])
        assert not item.batch.id[~kept].any()
    (evaluated,) = sampled(even, 1, "evaluate")
    ids = [int(id) for item in evaluated for id in item.batch.id[item.batch.mask != 0]]
    assert sorted(ids) == list(range(1, even.num_rows, 2))


@pytest.mark.parametrize("ranks", [2, 4])
def test_sampling_does_not_depend_on_ranks_or_a_resume(even, ranks):
    def rows(shares: list[list[PositionedBatch[Rows]]]) -> list[set[tuple[int, float]]]:
        return [
            {pair for share in batch for pair in zip(share.batch.id.tolist(), share.batch.mask.tolist(), strict=True)}
            for batch in zip(*shares, strict=True)
        ]

    one = sampled(even, 1)
    assert rows(sampled(even, ranks)) == rows(one)
    assert rows(sampled(even, ranks, position=one[0][0].position)) == rows(one)[1:]


def test_too_few_rows_to_sample_a_global_batch(tmp_path):
    table = write(tmp_path, [[2 * BATCH - 1]])
    with pytest.raises(
        DataError, match=f"{2 * BATCH - 1} rows, fewer than one global batch of 24, which is sampled from 48 rows"
    ):
        sampled(table, 1)


def test_what_was_read_is_freed_without_the_garbage_collector(training_table):
    """Arrays do not make the collector run, so cycles with the row orders of past epochs would fill the memory."""
    gc.collect()
    gc.disable()
    try:
        batches = reader(training_table)
        train(training_table, num_epochs=3)
        for _ in batches.evaluate():
            pass
        unfinished = batches.train(seed=0, num_epochs=None)
        next(unfinished)
        unfinished.close()
        del batches, unfinished
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        names = {type(item).__module__.split(".")[0] for item in gc.garbage}
        assert not names & {"common", "numpy", "torch", "pyarrow"}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
