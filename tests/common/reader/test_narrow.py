import math

import numpy as np
import pytest
import torch

from common.reader.narrow import first_misfit


@pytest.mark.parametrize(
    ("dtype", "values", "misfit"),
    [
        ("uint8", [[0.0, 255.0], [7.0, 1.0]], None),
        ("uint8", [[0, 255]], None),
        ("uint8", [[1.0, 2.0], [3.0, 2.5]], (1, "found 2.5, but uint8 holds whole numbers from 0 to 255")),
        ("uint8", [[1, 256]], (0, "found 256, ")),
        ("uint8", [[1, 2], [-1, 2]], (1, "found -1, ")),
        ("uint8", [[math.nan]], (0, "found nan, ")),
        ("uint8", [[math.inf]], (0, "found inf, ")),
        ("float16", [[65504.0, -65519.0, 1e-9, math.inf, math.nan]], None),
        ("float16", [[1.0], [65520.0]], (1, "found 65520.0, but float16 holds magnitudes up to 65,504; bfloat16 has ")),
        ("float16", [[-1e30]], (0, "found -1e+30, ")),
        ("bfloat16", [[3e38, -1e-30, math.nan]], None),
        ("float32", [[0.1, 1e300]], None),
        ("bool", [[0.0, -3.5, math.nan]], None),
    ],
)
def test_first_value_that_does_not_fit_a_dtype(dtype, values, misfit):
    found = first_misfit(np.array(values), getattr(torch, dtype))
    if misfit is None:
        assert found is None
    else:
        assert found is not None
        assert found[0] == misfit[0]
        assert found[1].startswith(misfit[1])
