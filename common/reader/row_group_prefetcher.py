"""Decodes row groups in threads before they are needed. order.py decides which ones are needed."""

import concurrent.futures
from collections.abc import Iterable
from typing import Self

from common.reader.parquet import ParquetTable, RowGroup


class RowGroupPrefetcher:
    """Holds the row groups that are needed now or soon. Leaving the `with` block ends the threads."""

    def __init__(self, table: ParquetTable, threads: int) -> None:
        self._table = table
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._groups: dict[int, concurrent.futures.Future[RowGroup]] = {}

    def want(self, groups: Iterable[int]) -> None:
        """Start to decode `groups` in the given order, and drop all other row groups."""
        wanted = dict.fromkeys(groups)
        for group in self._groups.keys() - wanted:
            self._groups.pop(group).cancel()
        for group in wanted:
            if group not in self._groups:
                self._groups[group] = self._pool.submit(self._table.decode, group)

    def __getitem__(self, group: int) -> RowGroup:
        return self._groups[group].result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
