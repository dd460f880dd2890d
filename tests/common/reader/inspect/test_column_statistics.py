import math
import statistics
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common.reader.inspect import column_statistics
from common.reader.inspect.column_statistics import ColumnStatistics

RNG = np.random.default_rng(0)
VALUES: dict[str, NDArray[Any]] = {
    "float32": RNG.normal(size=(100, 7)).astype(np.float32),
    "float16": RNG.normal(size=300).astype(np.float16),
    "mostly zero": np.where(RNG.random(500) < 0.1, RNG.normal(size=500), 0.0),
    "heavy tailed": np.exp(RNG.normal(size=400) * 8),
    "far from zero": (1e8 + RNG.normal(size=400)),
    "uint8": RNG.integers(0, 2, (50, 5)).astype(np.uint8),
    "int64": RNG.integers(-5, 6, 300),
    "ids": RNG.integers(2**59, 2**60, 300),
    "one": np.array([-3.5]),
    "constant": np.full(200, 0.1),
}


def statistics_of(*parts: NDArray[Any]) -> ColumnStatistics:
    found = ColumnStatistics()
    for part in parts:
        found.add(part)
    return found


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 16])
@pytest.mark.parametrize("name", VALUES)
def test_statistics_agree_with_exact_arithmetic(monkeypatch, name, block):
    monkeypatch.setattr(column_statistics, "_BLOCK", block)
    values = VALUES[name]
    exact = [Fraction(value) for value in values.reshape(-1).tolist()]
    mean = sum(exact) / len(exact)
    variance = sum((value - mean) ** 2 for value in exact) / len(exact)
    for found in (statistics_of(values), statistics_of(values[:1], values[1:1], values[1:])):
        assert found.count == len(exact)
        assert found.zeros == exact.count(Fraction(0))
        assert found.not_finite == 0
        assert [found.minimum, found.maximum] == [min(exact), max(exact)]
        assert found.mean == pytest.approx(float(mean), rel=1e-12, abs=1e-12)
        assert found.standard_deviation == pytest.approx(math.sqrt(variance), rel=1e-7, abs=1e-12)


def test_nonfinite_values_are_counted_and_ignored():
    values = np.array([np.nan, 1.0, np.inf, 0.0, -np.inf, 5.0, np.nan], dtype=np.float32)
    found = statistics_of(values, np.array([np.nan]), np.array([], dtype=np.float32))
    assert (found.count, found.not_finite, found.zeros) == (8, 5, 1)
    assert (found.minimum, found.maximum, found.mean) == (0.0, 5.0, 2.0)
    assert found.standard_deviation == pytest.approx(statistics.pstdev([1.0, 0.0, 5.0]))


@pytest.mark.parametrize("values", [np.array([]), np.array([np.nan, np.inf])])
def test_without_a_finite_value_statistics_are_undefined(values):
    found = statistics_of(values)
    assert (found.minimum, found.maximum) == (None, None)
    assert math.isnan(found.mean)
    assert math.isnan(found.standard_deviation)


def test_largest_doubles_overflow_without_a_warning():
    found = statistics_of(np.array([1.7e308, 1.7e308, -1.7e308]))
    assert (found.count, found.not_finite, found.maximum) == (3, 0, 1.7e308)
