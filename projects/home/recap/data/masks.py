"""Mask files, which select the values of a feature that are used."""

import tokenize
from pathlib import Path

import numpy as np

from common.errors import ConfigError
from common.process.paths import user_path


def read_mask(mask_path: str, width: int, key_path: str) -> tuple[int, ...]:
    """Return the positions that a mask keeps, ascending.

    Args:
      mask_path: .npy file with [width] booleans, or integers 0 and 1. True and 1 keep the value.
      width: number of values that the mask applies to.
      key_path: configuration key that names the mask, for messages.

    Raises:
      ConfigError: the file cannot be read, holds something else, or keeps nothing.
    """
    file = user_path(mask_path)
    expected = f"expected an .npy file of {width} booleans (or integers 0 and 1), one for each value"
    try:
        with file.open("rb") as opened:
            mask = np.lib.format.read_array(opened, allow_pickle=False)
    except OSError as error:
        raise ConfigError(
            f"{key_path}: cannot read {file}: {error.strerror} (current directory: {Path.cwd()})"
        ) from error
    # Numpy's header parser raises all of these for a damaged header.
    except (ValueError, MemoryError, SyntaxError, TypeError, OverflowError, tokenize.TokenError) as error:
        raise ConfigError(f"{key_path}: {file}: {error}; {expected}") from error
    if mask.ndim != 1 or mask.dtype.kind not in "biu":
        raise ConfigError(f"{key_path}: {file} holds {mask.dtype}{list(mask.shape)}; {expected}")
    if len(mask) != width:
        raise ConfigError(f"{key_path}: {file} holds {len(mask)} values; {expected}")
    if len(bad := mask[(mask != 0) & (mask != 1)]):
        raise ConfigError(f"{key_path}: {file} holds {bad[0]}; {expected}")
    kept = np.flatnonzero(mask)
    if len(kept) == 0:
        raise ConfigError(f"{key_path}: {file} keeps none of {width} values. Keep at least one")
    return tuple(kept.tolist())
