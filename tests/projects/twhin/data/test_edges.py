from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from common.errors import ConfigError
from common.reader.files import DataError
from projects.twhin.data.batch import EdgeBatch
from projects.twhin.data.config import OperatorSides, Relation, TwhinDataConfig
from projects.twhin.data.edges import EdgeDataset, check_batching
from projects.twhin.data.relations import Relations

USERS, TWEETS = 900, 500


def relations(operator_sides: OperatorSides = "both") -> Relations:
    """Return relations 0 and 2 (users to tweets) and 1 (users to users): two segments, or three with operators on one
    side."""
    pairs = {"fav": ("user", "tweet"), "follow": ("user", "user"), "reply": ("user", "tweet")}
    return Relations(
        [Relation(name=name, lhs=lhs, rhs=rhs) for name, (lhs, rhs) in pairs.items()],
        {"user": USERS, "tweet": TWEETS},
        operator_sides,
    )


def make_edges(count: int, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    columns = {"lhs": rng.integers(USERS, size=count), "rel": rng.integers(3, size=count)}
    return columns | {"rhs": rng.integers(TWEETS, size=count)}


def write(path: Path, columns: dict[str, Any], row_group_size: int = 20) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def config(path: Path, **changes: Any) -> TwhinDataConfig:
    values = {"data_root": str(path), "global_batch_size": 16, "lanes": 4}
    return TwhinDataConfig.model_validate(values | changes)


def opened(path: Path, **changes: Any) -> EdgeDataset:
    return EdgeDataset.open(config(path, **changes), relations(), "train_data")


def real(batches: list[EdgeBatch]) -> list[tuple[int, int, int]]:
    """Return all edges except padding."""
    columns = [torch.stack([batch.lhs, batch.rel, batch.rhs], 1)[batch.weights == 1] for batch in batches]
    return [(int(lhs), int(rel), int(rhs)) for lhs, rel, rhs in torch.cat(columns).tolist()]


def evaluated(dataset: EdgeDataset, ranks: int = 1) -> list[EdgeBatch]:
    return [each.batch for rank in range(ranks) for each in dataset.reader(rank, ranks).evaluate()]


@pytest.mark.parametrize("operator_sides", ["both", "lhs"])
def test_batches_are_sorted_by_segment_in_stable_order(tmp_path, operator_sides):
    path = write(tmp_path / "a.parquet", columns := make_edges(64))
    dataset = EdgeDataset.open(config(path, lanes=1), relations(operator_sides), "train_data")
    stored = list(zip(*(column.tolist() for column in columns.values()), strict=True))
    for index, batch in enumerate(evaluated(dataset)):
        segment = {"both": {0: 0, 2: 0, 1: 1}, "lhs": {0: 0, 1: 1, 2: 2}}[operator_sides]
        own = stored[16 * index : 16 * index + 16]
        assert real([batch]) == sorted(own, key=lambda edge: segment[edge[1]])
        sizes = [sum(segment[rel] == number for _, rel, _ in own) for number in sorted(set(segment.values()))]
        assert batch.segment_sizes == tuple(sizes)
        assert all(type(size) is int for size in batch.segment_sizes)
        assert {batch.lhs.dtype, batch.rel.dtype, batch.rhs.dtype} == {torch.int64}
        assert batch.weights.dtype == torch.float32


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_edge_is_evaluated_once_and_padding_has_weight_0(tmp_path, ranks):
    path = write(tmp_path / "a.parquet", columns := make_edges(70))
    batches = evaluated(opened(path), ranks)
    assert sorted(real(batches)) == sorted(zip(*(column.tolist() for column in columns.values()), strict=True))
    padding = torch.cat([torch.stack([b.lhs, b.rel, b.rhs], 1)[b.weights == 0] for b in batches])
    assert len(padding) == 80 - 70
    assert not padding.any()
    assert all(sum(batch.segment_sizes) == batch.batch_size == 16 // ranks for batch in batches)


def test_training_reads_every_edge_once_per_epoch_with_local_and_global_batch_sizes(tmp_path):
    path = write(tmp_path / "a.parquet", columns := make_edges(64))
    expected = sorted(zip(*(column.tolist() for column in columns.values()), strict=True))
    for changes in ({}, {"global_batch_size": None, "per_replica_batch_size": 8, "lanes": None}):
        dataset = opened(path, **changes)
        batches = [each.batch for rank in range(2) for each in dataset.reader(rank, 2).train(seed=1)]
        assert {batch.batch_size for batch in batches} == {8}
        assert sorted(real(batches)) == expected


@pytest.mark.parametrize(("offset", "limit"), [(None, 33), (21, None), (0, 20), (39, 2), (19, 60), (99, 1), (30, 999)])
def test_offset_and_limit_count_across_files(tmp_path, offset, limit):
    halves = [make_edges(50, seed=1), make_edges(50, seed=2)]
    for name, half in zip("ab", halves, strict=True):
        write(tmp_path / f"{name}.parquet", half)
    stored = [edge for half in halves for edge in zip(*(column.tolist() for column in half.values()), strict=True)]
    dataset = opened(tmp_path, offset=offset, limit=limit)
    begin = offset or 0
    expected = stored[begin : None if limit is None else begin + limit]
    assert dataset.table.num_rows == len(expected)
    assert sorted(real(evaluated(dataset))) == sorted(expected)


def test_an_offset_beyond_the_data_is_a_config_error(tmp_path):
    write(tmp_path / "a.parquet", make_edges(50))
    with pytest.raises(ConfigError) as caught:
        opened(tmp_path, offset=50)
    for fact in ("train_data.offset is 50", f"{tmp_path} has only 50 edges"):
        assert fact in str(caught.value)


def test_known_edges_and_negatives_follow_the_order_of_the_batch(tmp_path):
    path = write(tmp_path / "a.parquet", make_edges(24))

    def negatives(lhs: torch.Tensor, rel: torch.Tensor, rhs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"lhs": torch.stack([lhs, rel], 1), "rhs": torch.stack([rhs, rel], 1)}

    def known(lhs: torch.Tensor, rel: torch.Tensor, rhs: torch.Tensor) -> dict[str, torch.Tensor]:
        positions = torch.arange(len(rel)).repeat(2)
        return {"lhs": torch.stack([positions, lhs.repeat(2)]), "rhs": torch.stack([positions, rhs.repeat(2)])}

    batches = [each.batch for each in opened(path).reader(0, 1, known=known, negatives=negatives).evaluate()]
    assert [int(batch.weights.sum()) for batch in batches] == [16, 8]
    for batch in batches:
        assert torch.equal(batch.negatives["lhs"], torch.stack([batch.lhs, batch.rel], 1))
        assert torch.equal(batch.negatives["rhs"], torch.stack([batch.rhs, batch.rel], 1))
        # Padding has no known edges.
        real = batch.weights.nonzero().flatten().repeat(2)
        assert torch.equal(batch.known["lhs"], torch.stack([real, batch.lhs[real]]))
        assert torch.equal(batch.known["rhs"], torch.stack([real, batch.rhs[real]]))


ADVICE = "raise num_embeddings or correct the data"


@pytest.mark.parametrize(
    ("column", "edge", "problem"),
    [
        ("rhs", (0, 0, TWEETS), f"found 500, but the table tweet has 500 rows (relation fav); {ADVICE}"),
        ("rhs", (0, 1, USERS), f"found 900, but the table user has 900 rows (relation follow); {ADVICE}"),
        ("lhs", (2**40, 2, 0), f"found {2**40}, but the table user has 900 rows (relation reply); {ADVICE}"),
        ("lhs", (-1, 0, 0), "found -1, but rows are counted from 0"),
        ("rel", (0, 3, 0), "found 3, but model.relations has 3 (ids from 0 to 2)"),
        ("rel", (0, -2, 0), "found -2, but model.relations has 3 (ids from 0 to 2)"),
    ],
)
def test_bad_values_are_reported_with_file_row_group_row_and_column(tmp_path, column, edge, problem):
    columns = make_edges(100)
    for name, value in zip(columns, edge, strict=True):
        columns[name][77] = value
    path = write(tmp_path / "a.parquet", columns)
    with pytest.raises(DataError) as caught:
        evaluated(opened(path))
    for fact in (f"{path}: ", "row group 3, row 17 ", f"column '{column}'", problem):
        assert fact in str(caught.value)
    assert len(real(evaluated(opened(path, limit=60)))) == 60


def test_the_greatest_entities_are_read_and_a_null_is_a_data_error(tmp_path):
    good = {"lhs": [USERS - 1], "rel": pa.array([1], pa.int8()), "rhs": pa.array([USERS - 1], pa.uint16())}
    assert real(evaluated(opened(write(tmp_path / "a.parquet", good)))) == [(USERS - 1, 1, USERS - 1)]
    path = write(tmp_path / "b.parquet", good | {"rhs": pa.array([None], pa.int64())})
    with pytest.raises(DataError, match=r"row 0\b.* column 'rhs': .*\bnull\b"):
        evaluated(opened(path))


@pytest.mark.parametrize(
    ("columns", "facts"),
    [
        ({"lhs": [1], "rhs": [1]}, ["column 'rel'", "lhs, rhs"]),
        ({"lhs": [1], "rel": ["fav"], "rhs": [1]}, ["column 'rel': ", "string", "integers"]),
        ({"lhs": [1.0], "rel": [0], "rhs": [1]}, ["column 'lhs': ", "double", "integers"]),
        ({"lhs": [1], "rel": [True], "rhs": [1]}, ["column 'rel': ", "bool", "integers"]),
    ],
)
def test_errors_that_metadata_show_are_raised_on_opening(tmp_path, columns, facts):
    path = write(tmp_path / "a.parquet", columns)
    with pytest.raises(DataError) as caught:
        opened(path)
    assert str(caught.value).startswith(f"{path}: ")
    for fact in facts:
        assert fact in str(caught.value)


def test_a_data_set_without_files_or_edges_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match=str(tmp_path)):
        opened(tmp_path)
    write(tmp_path / "a.parquet", make_edges(0))
    with pytest.raises(DataError, match=r"1 file.* row"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("changes", "world_size", "facts"),
    [
        (
            {"lanes": None},
            3,
            ["train_data.global_batch_size is 16, which is not a multiple of the 3 processes"],
        ),
        ({"lanes": 3}, 1, ["train_data: ", "global_batch_size", "16", "lanes", "3"]),
        ({"lanes": 4}, 8, ["train_data: ", "lanes", "4", "world size", "8"]),
    ],
)
def test_batch_sizes_and_lanes_that_do_not_fit_are_config_errors(changes, world_size, facts):
    with pytest.raises(ConfigError) as caught:
        check_batching(config(Path("x"), **changes), "train_data", world_size)
    for fact in facts:
        assert fact in str(caught.value)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
def test_a_batch_size_per_process_fits_any_number_of_processes(world_size):
    one = config(Path("x"), global_batch_size=None, per_replica_batch_size=7, lanes=None)
    check_batching(one, "train_data", world_size)
