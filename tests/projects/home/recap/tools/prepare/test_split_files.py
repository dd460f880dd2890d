import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.reader.parquet_file import has_checksum
from projects.home.recap.tools.prepare.split_files import SAMPLE_ROWS, rows_per_group
from tests.support.split_table import split, table_of, written


def test_a_split_counts_its_rows_labels_and_nulls(tmp_path):
    table = table_of(2000)
    table["number"] = pa.array([0.5, None, float("nan"), 1.0] * 500)
    splits = split(tmp_path / "out", table)
    for name, part in written(splits).items():
        assert splits[name].num_rows == len(part)
        assert splits[name].positives == {"clicked": sum(row[4] for row in part), "bought": sum(row[5] for row in part)}
        assert splits[name].nulls["user"] == sum(row[0] is None for row in part)
        assert splits[name].nulls["number"] == sum(row[1] is None or row[1] != row[1] for row in part)
        assert splits[name].nulls["clicked"] == 0


def test_hashes_are_those_of_all_rows_and_the_sample_is_from_training(tmp_path):
    splits = split(tmp_path / "out", table_of(2000))
    assert pq.read_metadata(tmp_path / "out/hashes.parquet").num_rows == 2000
    train = pq.read_table(splits["train"].file)
    assert pq.read_table(tmp_path / "out/sample.parquet").equals(train)


def test_the_sample_has_rows_at_regular_distances(tmp_path, monkeypatch):
    monkeypatch.setattr("projects.home.recap.tools.prepare.split_files.SAMPLE_ROWS", 100)
    assert SAMPLE_ROWS == 200_000
    monkeypatch.setattr("projects.home.recap.tools.prepare.splits._BATCH_ROWS", 2048)
    splits = split(tmp_path / "out", table_of(9000))
    train = pq.read_table(splits["train"].file)
    assert pq.read_table(tmp_path / "out/sample.parquet").equals(train.take(list(range(0, train.num_rows, 72))))


def test_files_have_checksums_and_row_groups_of_regular_size(tmp_path):
    splits = split(tmp_path / "out", table_of(15_000))
    metadata = pq.read_metadata(splits["train"].file)
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    assert sizes[:-1] == [4096] * (len(sizes) - 1)
    assert len(sizes) == 3
    for index in range(metadata.num_columns):
        column = metadata.row_group(0).column(index)
        assert has_checksum(splits["train"].file, column)
        assert column.compression == "ZSTD"
    schema = pq.read_schema(splits["train"].file)
    assert (schema.field("clicked").type, schema.field("clicked").nullable) == (pa.int8(), False)


@pytest.mark.parametrize(("num_rows", "expected"), [(1, 4096), (240_000, 10_000), (10**9, 65_536)])
def test_row_groups_grow_with_the_table(num_rows, expected):
    assert rows_per_group(num_rows) == expected
