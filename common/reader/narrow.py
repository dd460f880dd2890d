"""Which values narrower types can hold."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def first_misfit(values: NDArray[Any], dtype: torch.dtype) -> tuple[int, str] | None:
    """The row of the first value that a type can't hold, and what is wrong; None where all fit.

    uint8 holds whole numbers from 0 to 255; float16 what rounds to a finite number (values that are not finite stay
    so). Other types hold everything: bool whether a value is not 0, and bfloat16 has the range of float32.

    Args:
      values: numbers, [rows] or [rows, width].
      dtype: the type.
    """
    if dtype == torch.uint8:
        good = (values >= 0) & (values <= np.iinfo(np.uint8).max) & (values == np.floor(values))
        allowed = "whole numbers from 0 to 255 can be uint8"
    elif dtype == torch.float16:
        with np.errstate(over="ignore"):
            good = np.isfinite(values.astype(np.float16)) | ~np.isfinite(values)
        allowed = f"magnitudes up to {np.finfo(np.float16).max:,.0f} can be float16; bfloat16 has float32's range"
    else:
        return None
    if good.all():
        return None
    index = tuple(np.argwhere(~good)[0])
    return int(index[0]), f"{values[index]} found, {allowed}"
