import ast
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.reader.files import READ_ERRORS, DataError
from common.reader.parquet_file import create_parquet, has_checksum, open_parquet, read_footer
from tests.support.damage import overwrite_page
from tests.support.root import ROOT

LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {"compression": "none", "use_dictionary": False},
    "dictionary": {"compression": "snappy", "use_dictionary": True},
    "zstd": {"compression": "zstd", "use_dictionary": False},
    "version 2": {"compression": "zstd", "data_page_version": "2.0"},
}
TABLE = pa.table(
    {
        "x": pa.array(np.arange(50, dtype=np.int64) % 7),
        "binary": pa.array([bytes([row] * 8) for row in range(50)], pa.binary(8)),
        "list": pa.array([[row, 0.5] for row in range(50)], pa.list_(pa.float32(), 2)),
        "text": pa.array([f"name {row}" for row in range(50)]),
    }
)


@pytest.fixture(params=LAYOUTS)
def options(request) -> dict[str, Any]:
    return LAYOUTS[request.param]


def write(path: Path, options: dict[str, Any]) -> bytes:
    with create_parquet(path, TABLE.schema, **options) as writer:
        writer.write_table(TABLE)
    return path.read_bytes()


def test_what_was_written_is_read(tmp_path, options):
    write(tmp_path / "a.parquet", options)
    with open_parquet(tmp_path / "a.parquet") as file:
        assert file.read().equals(TABLE)


@pytest.mark.parametrize("column", TABLE.column_names)
def test_an_overwritten_page_is_an_error(tmp_path, options, column):
    path = tmp_path / "a.parquet"
    write(path, options)
    overwrite_page(path, column)
    with open_parquet(path) as file, pytest.raises(READ_ERRORS):
        file.read(columns=[column])
    with open_parquet(path) as file, pytest.raises(READ_ERRORS):
        file.read_row_group(0, columns=[column], use_threads=False)
    with open_parquet(path) as file, pytest.raises(READ_ERRORS):
        list(file.iter_batches(8, columns=[column]))


def test_no_overwritten_byte_changes_a_value_silently(tmp_path, options):
    path = tmp_path / "a.parquet"
    content = write(path, options)
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    detected = 0
    for position in range(4, footer, 7):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x40]) + content[position + 1 :])
        try:
            with open_parquet(path) as file:
                found = file.read()
        except READ_ERRORS:
            detected += 1
        else:
            assert found.equals(TABLE)
    assert detected > 20


@pytest.mark.parametrize("protected", [True, False])
@pytest.mark.parametrize("column", range(4))
def test_pages_of_other_programs_may_lack_checksums(tmp_path, options, protected, column):
    path = tmp_path / "a.parquet"
    pq.write_table(TABLE, path, write_page_checksum=protected, **options)
    with open_parquet(path) as file:
        assert file.read().equals(TABLE)
        assert has_checksum(path, file.metadata.row_group(0).column(column)) == protected


def test_no_other_module_opens_or_writes_parquet_files():
    """A call of pyarrow without the option for checksums would miss damaged pages."""
    calls = {"ParquetFile", "ParquetWriter", "ParquetDataset", "read_table", "write_table", "read_pandas"}
    found = {
        str(path.relative_to(ROOT))
        for top in ("common", "core", "projects")
        for path in (ROOT / top).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in calls
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in ("pq", "parquet")
    }
    assert found == {"common/reader/parquet_file.py"}


@pytest.mark.parametrize("read", [open_parquet, read_footer])
def test_a_name_that_is_not_utf8_is_an_error(tmp_path, read):
    path = tmp_path / os.fsdecode(b"caf\xe9.parquet")
    pq.write_table(TABLE, tmp_path / "café.parquet")
    assert read(tmp_path / "café.parquet")
    (tmp_path / "café.parquet").rename(path)
    with pytest.raises(DataError, match=r"caf\udce9\.parquet: the path is not valid UTF-8"):
        read(path)
