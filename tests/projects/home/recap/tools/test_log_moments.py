import numpy as np
import pytest

from projects.home.recap.tools.log_moments import Moments


@pytest.mark.parametrize("sizes", [[1], [1, 1], [1000], [3, 500, 1, 96]])
def test_moments_equal_those_of_numpy_for_any_groups(sizes: list[int]) -> None:
    vectors = np.random.default_rng(0).normal([1e6, 0, -3], [1e-3, 1, 0], (sum(sizes), 3))
    moments = Moments()
    for group in np.split(vectors, np.cumsum(sizes)[:-1]):
        moments.add(group)
    assert moments.count == sum(sizes)
    np.testing.assert_allclose(moments.mean, vectors.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.std, vectors.std(0), rtol=1e-6, atol=1e-13)
