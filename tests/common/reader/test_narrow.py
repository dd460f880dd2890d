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
        ("uint8", [[1.0, 2.0], [3.0, 2.5]], (1, "2.5 found, whole numbers from 0 to 255 can be uint8")),
        ("uint8", [[1, 256]], (0, "256 found, ")),
        ("uint8", [[1, 2], [-1, 2]], (1, "-1 found, ")),
        ("uint8", [[math.nan]], (0, "nan found, ")),
        ("uint8", [[math.inf]], (0, "inf found, ")),
        ("float16", [[65504.0, -65519.0, 1e-9, math.inf, math.nan]], None),
        ("float16", [[1.0], [65520.0]], (1, "65520.0 found, magnitudes up to 65,504 can be float16; bfloat16 has ")),
        ("float16", [[-1e30]], (0, "-1e+30 found, ")),
        ("bfloat16", [[3e38, -1e-30, math.nan]], None),
        ("float32", [[0.1, 1e300]], None),
        ("bool", [[0.0, -3.5, math.nan]], None),
    ],
)
def test_the_first_value_that_a_type_cannot_hold(dtype, values, misfit):
    found = first_misfit(np.array(values), getattr(torch, dtype))
    if misfit is None:
        assert found is None
    else:
        assert found is not None
        assert found[0] == misfit[0]
        assert found[1].startswith(misfit[1])
