"""Damages Parquet files as a failing disk or a bug would: bytes of one page change, and everything else stays."""

from pathlib import Path

import pyarrow.parquet as pq


def overwrite_page(path: Path, column: str, group: int = 0, count: int = 10) -> None:
    """Overwrite the last `count` bytes of a column in a row group. They are values, not a header of a page."""
    row_group = pq.read_metadata(path).row_group(group)
    [chunk] = [
        chunk
        for chunk in map(row_group.column, range(row_group.num_columns))
        if chunk.path_in_schema.split(".")[0] == column
    ]
    begin = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    content = bytearray(path.read_bytes())
    end = begin + chunk.total_compressed_size
    content[end - count : end] = bytes(byte ^ 0x15 for byte in content[end - count : end])
    path.write_bytes(content)
