import numpy as np
import pyarrow.parquet as pq
import pytest

from projects.twhin.tools.graph_files import EdgeWriter


def test_edges_are_split_into_files_and_row_groups(tmp_path):
    numbers = np.arange(2**20 + 2**19 + 5)
    with EdgeWriter(tmp_path / "train") as writer:
        for begin, end in ((0, 10), (10, 10), (10, 2**20 + 3), (2**20 + 3, len(numbers))):
            part = numbers[begin:end]
            writer.write(part, part % 7, part + 1)
    assert writer.num_edges == len(numbers)
    paths = sorted((tmp_path / "train").iterdir())
    assert [path.name for path in paths] == ["part-00000.parquet", "part-00001.parquet"]
    groups = pq.read_metadata(paths[1])
    assert {groups.row_group(index).num_rows for index in range(groups.num_row_groups - 1)} == {2**14}
    table = pq.read_table(tmp_path / "train")
    for name, expected in (("lhs", numbers), ("rel", numbers % 7), ("rhs", numbers + 1)):
        assert np.array_equal(table.column(name).to_numpy(), expected)


def test_error_leaves_no_file(tmp_path):
    def fail() -> None:
        with EdgeWriter(tmp_path / "train") as writer:
            writer.write(*(np.arange(9),) * 3)
            raise ValueError("interrupted")

    with pytest.raises(ValueError, match="interrupted"):
        fail()
    assert not list((tmp_path / "train").iterdir())
