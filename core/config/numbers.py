"""Defines types of configured numbers that the float32 and int64 arithmetic of a model can represent."""

from typing import Annotated

import pydantic

# Bounds of the normal numbers of float32, rounded inward.
_SMALLEST, _LARGEST = 1e-37, 3.4e38
_LARGEST_BELOW_1 = 0.9999999


def _check_finite(value: float) -> float:
    if abs(value) > _LARGEST:
        raise ValueError(f"the magnitude must be at most {_LARGEST:g}, because float32 cannot hold more")
    return value


def _check_nonzero(value: float) -> float:
    if abs(value) < _SMALLEST:
        raise ValueError(f"the magnitude must be at least {_SMALLEST:g}, because a smaller number is 0 in float32")
    return value


def _check_below_1(value: float) -> float:
    if value > _LARGEST_BELOW_1:
        raise ValueError(f"must be at most {_LARGEST_BELOW_1}, because a number nearer to 1 is 1 in float32")
    return value


_Finite = pydantic.AfterValidator(_check_finite)
_Nonzero = pydantic.AfterValidator(_check_nonzero)

Float32 = Annotated[float, _Finite]
"""A number that float32 can represent."""

NonNegativeFloat32 = Annotated[float, pydantic.Field(ge=0), _Finite]
"""A number >= 0 that float32 can represent. A very small one becomes 0."""

PositiveFloat32 = Annotated[float, pydantic.Field(gt=0), _Finite, _Nonzero]
"""A number > 0 that float32 can represent and that does not become 0."""

PositiveShare = Annotated[float, pydantic.Field(gt=0, le=1), _Nonzero]
"""A share in (0, 1] that does not become 0 in float32."""

DecayRate = Annotated[float, pydantic.Field(ge=0, lt=1), pydantic.AfterValidator(_check_below_1)]
"""Decay rate of an exponential average, in [0, 1), that does not become 1 in float32."""

Size = Annotated[int, pydantic.Field(gt=0, le=2**24)]
"""Size of one dimension of a layer. The product of two sizes stays within int64."""

NumRows = Annotated[int, pydantic.Field(gt=0, le=10**12)]
"""Number of rows of a table."""

Int64 = Annotated[int, pydantic.Field(ge=-(2**63), lt=2**63)]
"""A whole number that int64 can represent."""
