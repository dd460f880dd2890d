"""Mask files: which of a feature's values are used."""

import hashlib
import tokenize
from pathlib import Path

import numpy as np

from common.errors import ConfigError
from common.process.paths import user_path


def read_mask(mask_path: str, width: int, place: str) -> tuple[int, ...]:
    """The positions that a mask keeps, ascending.

    Args:
      mask_path: .npy file with [width] booleans, or integers 0 and 1; what is not 0 is kept.
      width: values that the mask is for.
      place: of the mask's path in the configuration, for messages.

    Raises:
      ConfigError: the file can't be read, holds something else, or keeps nothing.
    """
    file = user_path(mask_path)
    expected = f"an .npy file of {width} booleans, or integers 0 and 1, is expected, one for each value"
    try:
        with file.open("rb") as opened:
            mask = np.lib.format.read_array(opened, allow_pickle=False)
    except OSError as error:
        raise ConfigError(f"{place}: {file} can't be read: {error.strerror} (looked from {Path.cwd()})") from error
    # What numpy's parser of the header raises where it is damaged.
    except (ValueError, MemoryError, SyntaxError, TypeError, OverflowError, tokenize.TokenError) as error:
        raise ConfigError(f"{place}: {file}: {error}; {expected}") from error
    if mask.ndim != 1 or mask.dtype.kind not in "biu":
        raise ConfigError(f"{place}: {file} holds {mask.dtype}{list(mask.shape)}; {expected}")
    if len(mask) != width:
        raise ConfigError(f"{place}: {file} holds {len(mask)} values; {expected}")
    if len(bad := mask[(mask != 0) & (mask != 1)]):
        raise ConfigError(f"{place}: {file} holds {bad[0]}; {expected}")
    kept = np.flatnonzero(mask)
    if len(kept) == 0:
        raise ConfigError(f"{place}: {file} keeps none of {width} values; keep at least one")
    return tuple(kept.tolist())


def mask_digest(mask_path: str) -> str:
    """Of the file's bytes."""
    return hashlib.blake2b(user_path(mask_path).read_bytes(), digest_size=16).hexdigest()
