"""Rows of row groups reach the columns of a batch: compared with plain indexing."""

import numpy as np
import pytest
import torch

from common.reader.column import Column
from common.reader.gather import empty_column, gather

STORED = np.arange(60, dtype=np.float32).reshape(10, 6)
ROWS = np.array([7, 0, 7, 3])


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (None, STORED[ROWS]),
        (4, STORED[ROWS][:, :4]),
        (np.array([5, 0, 2], np.intp), STORED[ROWS][:, [5, 0, 2]]),
    ],
)
def test_vectors_are_gathered_and_cut(keep, expected):
    column = Column("features", width=6, keep=keep)
    out = empty_column(len(ROWS), STORED, column, pin_memory=False)
    gather(STORED, ROWS, column, out.numpy())
    assert out.shape == expected.shape
    np.testing.assert_array_equal(out.numpy(), expected)


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.float16, np.float64])
def test_plain_columns_keep_their_stored_dtype(dtype):
    stored = np.arange(10).astype(dtype)
    out = empty_column(len(ROWS), stored, Column("label", torch.float32), pin_memory=False)
    gather(stored, ROWS, None, out.numpy())
    assert out.dtype == torch.from_numpy(stored).dtype
    np.testing.assert_array_equal(out.numpy(), stored[ROWS])
