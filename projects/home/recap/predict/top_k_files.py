"""Stores the best rows of each unit, and merges those of all units, a bounded part of the groups at a time.

A file of a unit is sorted by the hash of the group. A partition is a range of hashes, therefore a range of rows of each
file, and is read without the other rows. Any process may merge any partition.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common.files.durable import atomic_file
from projects.home.recap.predict.top_k import RANK, TopK, best_of_units

PARTITION_BYTES = 64 * 2**20
"""Size of the unmerged rows of a partition, and of those that a merge of a large one adds at a time."""

# Rows that are read together. A partition needs few rows of each unit if there are many units.
_BATCH_ROWS = 1024
_FIRST_HASHES, _NUM_ROWS = b"first hashes", b"rows"


def write_best(path: Path, hashes: NDArray[np.uint64], table: pa.Table) -> None:
    """Write what best_of_unit() returned, as an Arrow file, which appears when it is complete."""
    # The hashes are the first column, whatever the names of the others.
    table = table.add_column(0, "hash", pa.array(hashes)).combine_chunks()
    table = table.replace_schema_metadata(
        {_FIRST_HASHES: hashes[::_BATCH_ROWS].tobytes(), _NUM_ROWS: str(len(table)).encode()}
    )
    with (
        atomic_file(path) as partial,
        pa.OSFile(str(partial), "wb") as file,
        pa.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_table(table, max_chunksize=_BATCH_ROWS)


def count_rows(path: Path) -> int:
    """Return the number of rows of a unit's file."""
    with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
        return int(reader.schema.metadata[_NUM_ROWS])


def num_partitions(units: Sequence[Path], top_k: TopK, partition_bytes: int = PARTITION_BYTES) -> int:
    """Return the number of partitions into which to divide the groups.

    Args:
      units: files of all units.
      top_k: what to select.
      partition_bytes: mean size of a partition.
    """
    if top_k.group_by is None:
        return 1
    return max(1, -(-sum(path.stat().st_size for path in units) // partition_bytes))


def merge_partition(
    units: Sequence[Path], partition: int, partitions: int, top_k: TopK, chunk_bytes: int = PARTITION_BYTES
) -> pa.Table:
    """Return the best rows of the groups of a partition, sorted by group and rank.

    Holds `k` rows of each of these groups and chunk_bytes in memory.

    Args:
      units: files of all units, in the order of the units; at least one.
      partition: the partition, from 0.
      partitions: number of partitions.
      top_k: what to select.
      chunk_bytes: size of the rows that are merged at a time.

    Returns:
      The columns: the one of groups if there is one, RANK, and the others in the order of the first file.
    """
    pending, pending_bytes = [], 0
    for path in units:
        rows, num_bytes = _rows_of(path, partition, partitions)
        pending.append(rows)
        pending_bytes += num_bytes
        if pending_bytes >= chunk_bytes:
            pending, pending_bytes = [best_of_units(pending, top_k)[0]], 0
    table, ranks = best_of_units(pending, top_k)
    table = table.append_column(RANK, pa.array(ranks))
    first = [RANK] if top_k.group_by is None else [top_k.group_by, RANK]
    return table.select([*first, *(name for name in table.column_names if name not in first)])


def _rows_of(path: Path, partition: int, partitions: int) -> tuple[pa.Table, int]:
    """Return the rows of a unit in a partition, and the bytes that they keep in memory."""
    first, last = (
        np.uint64(-(-each * 2**64 // partitions) - offset) for each, offset in ((partition, 0), (partition + 1, 1))
    )
    with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
        hashes = np.frombuffer(reader.schema.metadata[_FIRST_HASHES], np.uint64)
        begin = max(0, int(np.searchsorted(hashes, first)) - 1)
        end = int(np.searchsorted(hashes, last, "right"))
        table = pa.Table.from_batches(map(reader.get_batch, range(begin, end)), reader.schema)
    hashes = table.column(0).to_numpy()
    begin, end = int(np.searchsorted(hashes, first)), int(np.searchsorted(hashes, last, "right"))
    return table.remove_column(0).replace_schema_metadata().slice(begin, end - begin), table.nbytes
