"""Batches that are numbers, for tests of what hands out batches."""

from collections.abc import Callable, Iterator
from typing import Any

from common.reader.files import DataError
from common.reader.order import Position
from common.reader.reader import PositionedBatch


def batches(
    count: int, bad: int | None = None, error: Callable[[str], Exception] = DataError
) -> Iterator[PositionedBatch[Any]]:
    """Yield numbers as batches, and raise an error at number `bad`."""
    for number in range(count):
        if number == bad:
            raise error(f"batch {number} is bad")
        yield PositionedBatch(number, Position(0, (number + 1,)))


def numbers(micro_batches: list[PositionedBatch[Any]] | None) -> list[int]:
    assert micro_batches is not None
    return [item.batch for item in micro_batches]
