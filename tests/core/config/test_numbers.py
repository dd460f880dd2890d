from typing import Any

import numpy as np
import pydantic
import pytest
import torch

from core.config.numbers import DecayRate, Float32, Int64, NonNegativeFloat32, PositiveFloat32, PositiveShare, Size


def accepts(kind: Any, value: float) -> bool:
    try:
        pydantic.TypeAdapter(kind).validate_python(value)
    except pydantic.ValidationError:
        return False
    return True


MAGNITUDES = [float(f"1e{exponent}") for exponent in range(-320, 309)]


@pytest.mark.parametrize("kind", [PositiveFloat32, PositiveShare])
def test_an_accepted_positive_number_is_positive_and_finite_in_float32(kind) -> None:
    accepted = [value for value in MAGNITUDES if accepts(kind, value)]
    with np.errstate(all="raise"):
        assert all(0 < np.float32(value) < np.inf for value in accepted)
    assert {1e-37, 1e-12, 1.0} <= {*accepted}
    assert not accepts(kind, 0.0)
    assert not accepts(kind, -1.0)


@pytest.mark.parametrize("kind", [Float32, NonNegativeFloat32, PositiveFloat32])
def test_a_number_that_float32_cannot_hold_is_refused(kind) -> None:
    assert accepts(kind, 3.4e38)
    assert not any(accepts(kind, value) for value in (1e39, 1e300, -1e39))
    assert accepts(kind, 0.0) == (kind is not PositiveFloat32)


def test_a_decay_rate_stays_below_1_in_float32() -> None:
    accepted = [1 - float(f"1e-{digits}") for digits in range(17) if accepts(DecayRate, 1 - float(f"1e-{digits}"))]
    assert all(np.float32(rate) < 1 for rate in accepted)
    assert {0.9, 0.999, 0.999999} <= {*accepted}


def test_the_size_of_a_matrix_fits_into_int64() -> None:
    largest = max(size for exponent in range(64) for size in (2**exponent, 2**exponent + 1) if accepts(Size, size))
    assert largest == 2**24
    assert torch.empty(largest, largest, dtype=torch.float64, device="meta").nbytes <= np.iinfo(np.int64).max


def test_int64() -> None:
    limits = np.iinfo(np.int64)
    assert [accepts(Int64, int(value)) for value in (limits.min, limits.max)] == [True, True]
    assert [accepts(Int64, value) for value in (int(limits.min) - 1, int(limits.max) + 1)] == [False, False]
