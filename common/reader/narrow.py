"""Checks whether values fit a narrower dtype."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def first_misfit(values: NDArray[Any], dtype: torch.dtype) -> tuple[int, str] | None:
    """Return the row and a description of the first value that does not fit a dtype, or None if all values fit.

    uint8 holds whole numbers from 0 to 255. float16 holds values that round to a finite number, and it keeps NaN and
    infinities. Every value fits the other dtypes: bool records whether a value is non-zero, and bfloat16 has the range
    of float32.

    Args:
      values: numbers, [rows] or [rows, width].
      dtype: the narrower dtype.
    """
    if dtype == torch.uint8:
        good = (values >= 0) & (values <= np.iinfo(np.uint8).max) & (values == np.floor(values))
        allowed = "uint8 holds whole numbers from 0 to 255"
    elif dtype == torch.float16:
        with np.errstate(over="ignore"):
            good = np.isfinite(values.astype(np.float16)) | ~np.isfinite(values)
        allowed = f"float16 holds magnitudes up to {np.finfo(np.float16).max:,.0f}; bfloat16 has the range of float32"
    else:
        return None
    if good.all():
        return None
    index = tuple(np.argwhere(~good)[0])
    return int(index[0]), f"found {values[index]}, but {allowed}"
