"""Copies rows of decoded row groups into the columns of a batch."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common.reader.column import Column


def empty_column(rows: int, stored: NDArray[Any], column: Column | None, pin_memory: bool) -> torch.Tensor:
    """Allocate a column of a batch with the stored dtype, [rows] or [rows, values]."""
    width = stored.shape[1:] if column is None or column.num_kept is None else (column.num_kept,)
    dtype = torch.from_numpy(np.empty(0, stored.dtype)).dtype
    # A column that is converted later is copied anyway, so page-locked memory would be wasted on it.
    pin_memory = pin_memory and (column is None or dtype == column.batch_dtype)
    return torch.empty((rows, *width), dtype=dtype, pin_memory=pin_memory)


def gather(stored: NDArray[Any], rows: NDArray[np.int64], column: Column | None, out: NDArray[Any]) -> None:
    """Copy rows to `out`. Uses numpy, because torch takes five times as long for a few dozen rows."""
    keep = column.keep if column is not None else None
    if keep is None:
        # All rows are in range; mode="clip" lets numpy write to `out` without a buffer.
        stored.take(rows, axis=0, out=out, mode="clip")
    elif isinstance(keep, int):
        out[:] = stored[rows, :keep]
    else:
        stored.take(rows, axis=0).take(keep, axis=1, out=out, mode="clip")
