from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.batch import Batch
from common.errors import ConfigError
from common.files.table_writer import TableColumn, TableWriter
from common.reader.column import Column
from common.reader.files import matching_files
from common.reader.footprint import check_memory
from common.reader.parquet import ParquetTable
from common.reader.reader import BatchReader, PrefetchOptions
from tests.support.little_memory import room_for

MIB = 2**20
ROWS, WIDTH = 8192, 1024  # 32 MiB of float32, in row groups of 1 MiB


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("zeros")
    with TableWriter(path / "a.parquet", [TableColumn("x", "float32", WIDTH)], row_group_size=256) as writer:
        writer.write({"x": np.zeros((ROWS, WIDTH), np.float32)})
    return path


def reader(folder: Path, *, cache: bool = False, batch: int = 8, window: int = 1, **changes: Any) -> BatchReader[Batch]:
    columns: Mapping[Any, Column] = {"x": Column("x", width=WIDTH), "first": Column("x", width=WIDTH, position=0)}
    table = ParquetTable(matching_files(str(folder)), columns, cache=cache)
    prefetch = PrefetchOptions(prefetch_batches=2, decode_threads=1, shuffle_window=window)
    return BatchReader(
        table, lambda *_: Batch(), global_batch_size=batch, lanes=changes.pop("lanes", 4), prefetch=prefetch, **changes
    )


def test_decoded_rows_are_counted(folder: Path) -> None:
    buffers = 3 * MIB  # of one thread that decodes
    assert reader(folder).decoded_bytes == 8 * MIB + buffers  # two row groups for each of four lanes
    assert reader(folder, world_size=2).decoded_bytes == 4 * MIB + buffers
    assert reader(folder, window=1024, lanes=1).decoded_bytes == 2 * (4 + 1) * MIB + buffers
    assert reader(folder, window=2**40).decoded_bytes == 32 * MIB + buffers  # not more than all rows
    assert reader(folder, cache=True, world_size=4).decoded_bytes == 32 * MIB + buffers  # each process keeps all


def test_batches_are_counted(folder: Path) -> None:
    row = 4 * (WIDTH + 1)
    assert reader(folder, batch=8).batch_bytes == 4 * 8 * row
    assert reader(folder, batch=8, world_size=4).batch_bytes == 4 * 2 * row


@pytest.mark.parametrize(
    ("train", "evaluation", "start", "advice"),
    [
        ({"cache": True}, {}, "train_data.cache: reading needs ", "Set cache to false"),
        ({}, {"cache": True}, "validation_data.a.cache: reading needs ", "Set cache to false"),
        ({"window": 2**40}, {}, "train_data: reading needs ", "lower shuffle_window"),
        ({"batch": 4096}, {}, "train_data: reading needs ", "Lower global_batch_size"),
        ({}, {"batch": 4096}, "validation_data.a: reading needs ", "Lower global_batch_size"),
    ],
)
def test_readers_that_need_more_memory_than_there_is_are_refused(
    folder: Path, train: dict[str, Any], evaluation: dict[str, Any], start: str, advice: str
) -> None:
    small = {"train_data": reader(folder), "validation_data.a": reader(folder), "validation_data.b": reader(folder)}
    large = small | {"train_data": reader(folder, **train), "validation_data.a": reader(folder, **evaluation)}
    check_memory(large)
    with room_for(32 * MIB):
        check_memory(small)
        with pytest.raises(ConfigError) as caught:
            check_memory(large)
    assert str(caught.value).startswith(start)
    assert "but the address space of this process (ulimit -v) has " in str(caught.value)
    assert advice in str(caught.value)


def test_caches_add_up_but_evaluation_sets_are_read_one_at_a_time(folder: Path) -> None:
    cached = {name: reader(folder, cache=True) for name in ("train_data", "validation_data.a", "validation_data.b")}
    several = {"train_data": reader(folder)} | {f"validation_data.{index}": reader(folder) for index in range(50)}
    with room_for(64 * MIB):
        check_memory({"train_data": cached["train_data"]})
        check_memory(several)
        with pytest.raises(ConfigError, match="reading needs 105"):
            check_memory(cached)


def test_without_training_each_set_is_read_on_its_own(folder: Path) -> None:
    batches = {f"validation_data.{index}": reader(folder, batch=1024) for index in range(3)}
    with room_for(40 * MIB):
        check_memory({}, trains=False)
        check_memory(batches, trains=False)
        with pytest.raises(ConfigError, match="reading needs"):
            check_memory(batches)
