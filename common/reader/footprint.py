"""Estimates the memory that reading needs, and refuses readers that do not fit, before anything is decoded."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from common.errors import ConfigError
from common.process.memory import format_bytes, memory_shortage
from common.reader.reader import BatchReader


class _Part(NamedTuple):
    num_bytes: int
    key_path: str
    description: str
    advice: str


def check_memory(readers: Mapping[str, BatchReader[Any]], *, trains: bool = True) -> None:
    """Check that this process and the others on this machine can hold what their readers decode and prefetch.

    Args:
      readers: readers by key path in the configuration. Evaluation sets are read one at a time; those with a cache
        keep it.
      trains: whether the first reader is that of the training data.

    Raises:
      ConfigError: there is less memory than the readers need.
    """
    parts: list[_Part] = []
    working: list[list[_Part]] = []
    for key_path, reader in readers.items():
        rows = f"the {reader.table.num_rows:,} decoded rows of {reader.table.inputs}"
        decoded = _Part(reader.decoded_bytes, f"{key_path}.cache", rows, "Set cache to false")
        if not reader.table.is_cached:
            row_groups = f"the row groups of {reader.table.inputs} that are decoded at the same time"
            decoded = _Part(
                decoded.num_bytes, key_path, row_groups, "Write smaller row groups, or lower shuffle_window or lanes"
            )
        batches = _Part(
            reader.batch_bytes, key_path, "the prefetched batches", "Lower global_batch_size or prefetch_batches"
        )
        if reader.table.is_cached:
            parts.append(decoded)
        working.append([batches] if reader.table.is_cached else [decoded, batches])
    train = working.pop(0) if trains and working else []
    parts += train + max(working, key=_sum, default=[])
    if parts and (shortage := memory_shortage(_sum(parts))):
        largest = max(parts)
        raise ConfigError(
            f"{largest.key_path}: reading {shortage}. Most of it, {format_bytes(largest.num_bytes)}, is for "
            f"{largest.description}. {largest.advice}"
        )


def _sum(parts: list[_Part]) -> int:
    return sum(part.num_bytes for part in parts)
