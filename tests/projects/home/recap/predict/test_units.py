"""Units cover all rows once, in order, and are bounded."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.reader.column import Column
from common.reader.files import matching_files
from common.reader.parquet import ParquetTable
from projects.home.recap.predict.units import split_into_units


def write(path: Path, groups: list[int]) -> None:
    schema = pa.schema([("x", pa.float32())])
    with pq.ParquetWriter(path, schema) as writer:
        for rows in groups:
            writer.write_table(pa.table({"x": pa.array([0.0] * rows, pa.float32())}))


@pytest.mark.parametrize(
    ("files", "limit", "units"),
    [
        ([[3, 3, 3]], 6, [(0, [0, 1], 0, 6), (0, [2], 6, 3)]),
        ([[3], [3]], 100, [(0, [0], 0, 3), (1, [1], 3, 3)]),
        ([[2, 50, 2, 2]], 4, [(0, [0], 0, 2), (0, [1], 2, 50), (0, [2, 3], 52, 4)]),
        ([[0, 2, 0], [], [0], [1]], 4, [(0, [0, 1, 2], 0, 2), (3, [4], 2, 1)]),
        ([[5, 0, 5]], 5, [(0, [0, 1], 0, 5), (0, [2], 5, 5)]),
    ],
)
def test_units_are_row_groups_of_one_file_up_to_the_limit(tmp_path, files, limit, units):
    for index, groups in enumerate(files):
        write(tmp_path / f"{index}.parquet", groups)
    table = ParquetTable(matching_files(str(tmp_path)), {"x": Column("x")})
    found = split_into_units(table, limit)
    assert [unit.index for unit in found] == list(range(len(units)))
    assert [(int(u.path.stem), list(u.groups), u.first_row, u.num_rows) for u in found] == units
