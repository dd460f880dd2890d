import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import ConfigError
from projects.home.recap.data.masks import read_mask


def written(folder: Path, mask: Any) -> str:
    path = folder / "mask.npy"
    np.save(path, mask)
    return str(path)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int64])
def test_returns_the_positions_of_kept_values(tmp_path, dtype):
    assert read_mask(written(tmp_path, np.array([0, 1, 1, 0, 1], dtype)), 5, "here") == (1, 2, 4)


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        (np.ones(4, bool), "holds 4 values"),
        (np.ones((5, 1), bool), r"holds bool\[5, 1\]"),
        (np.bool_(True), r"holds bool\[\]"),
        (np.ones(5, np.float32), r"holds float32\[5\]"),
        (np.array(list("01101")), r"holds <U1\[5\]"),
        (np.array([0, 1, 2, 1, 0]), "holds 2"),
        (np.array([0, 1, -1, 1, 0], np.int8), "holds -1"),
        (np.array([True, None], object), "Object arrays cannot be loaded"),
    ],
)
def test_an_array_that_is_not_a_mask_is_an_error(tmp_path, mask, found):
    path = written(tmp_path, mask)
    with pytest.raises(
        ConfigError, match=rf"^here: {path}:? {found}.*; expected an \.npy file of 5 booleans \(or integers 0 and 1\)"
    ):
        read_mask(path, 5, "here")


def test_a_mask_that_keeps_nothing_is_an_error(tmp_path):
    path = written(tmp_path, np.zeros(5, bool))
    with pytest.raises(ConfigError, match=f"^here: {path} keeps none of 5 values"):
        read_mask(path, 5, "here")


@pytest.mark.parametrize("cut", [0, 3, 9, 64, 130])
def test_a_truncated_file_is_an_error(tmp_path, cut):
    path = Path(written(tmp_path, np.ones(5, bool)))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ConfigError, match=rf"^here: {path}: .+; expected an \.npy file of 5 booleans"):
        read_mask(str(path), 5, "here")


def test_an_archive_of_arrays_is_an_error(tmp_path):
    np.savez(tmp_path / "mask.npz", mask=np.ones(5, bool))
    with pytest.raises(ConfigError, match=r"mask\.npz: .*; expected an \.npy file of 5 booleans"):
        read_mask(str(tmp_path / "mask.npz"), 5, "here")


def test_a_missing_file_is_an_error(tmp_path):
    path = tmp_path / "mask.npy"
    with pytest.raises(ConfigError) as caught:
        read_mask(str(path), 5, "here")
    assert re.match(rf"here: .*{path}: No such file or directory \(.*{Path.cwd()}\)$", str(caught.value))


@pytest.mark.parametrize(
    "header",
    [b"{'descr':'|b1   \n", b"  {'descr'\n", b"{'descr': (1,2), 'fortran_order': 0, 'shape': 3}\n", b"(((((\n"],
)
def test_a_damaged_header_is_an_error(tmp_path, header):
    path = tmp_path / "mask.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(ConfigError, match=rf"^here: {path}: .*; expected an \.npy file of 5 booleans"):
        read_mask(str(path), 5, "here")
