"""Row groups are decoded once, in the order in which they are wanted, and dropped when they are not wanted anymore."""

import threading
from typing import Any

import numpy as np
import pytest

from common.reader.files import DataError
from common.reader.row_group_prefetcher import RowGroupPrefetcher


class RecordingTable:
    """Decodes a row group to its number, and records the order."""

    def __init__(self, bad: int | None = None) -> None:
        self.decoded: list[int] = []
        self._bad = bad

    def decode(self, group: int) -> dict[str, Any]:
        self.decoded.append(group)
        if group == self._bad:
            raise DataError(f"row group {group} is bad")
        return {"x": np.array([group])}


def prefetcher(table: Any, threads: int = 1) -> RowGroupPrefetcher:
    return RowGroupPrefetcher(table, threads)


def test_each_wanted_row_group_is_decoded_once_in_order():
    table = RecordingTable()
    with prefetcher(table) as groups:
        groups.want([3, 1, 2, 1])
        assert [groups[group]["x"].item() for group in (1, 2, 3)] == [1, 2, 3]
        groups.want([2, 4])
        assert groups[2]["x"].item() == 2
        assert groups[4]["x"].item() == 4
    assert table.decoded == [3, 1, 2, 4]


def test_a_row_group_that_is_not_wanted_anymore_is_dropped_and_decoded_again_later():
    table = RecordingTable()
    with prefetcher(table) as groups:
        groups.want([1])
        assert groups[1]["x"].item() == 1
        groups.want([2])
        with pytest.raises(KeyError):
            groups[1]
        groups.want([1])
        assert groups[1]["x"].item() == 1
    assert table.decoded.count(1) == 2


def test_an_error_is_raised_at_its_row_group_only():
    with prefetcher(RecordingTable(bad=2), threads=2) as groups:
        groups.want([1, 2, 3])
        assert groups[1]["x"].item() == 1
        with pytest.raises(DataError, match="row group 2 is bad"):
            groups[2]
        assert groups[3]["x"].item() == 3


def test_the_threads_end_with_the_block():
    with prefetcher(RecordingTable(), threads=2) as groups:
        groups.want(range(5))
        assert groups[4]["x"].item() == 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]
