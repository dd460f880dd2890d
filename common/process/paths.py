"""Checks and expands paths given by the user."""

import os
import sys
from pathlib import Path

from common.errors import UserError


def user_path(text: str | Path) -> Path:
    """Return the path with `~` expanded.

    Raises:
      UserError: the text is empty or not a valid path, `~name` names an unknown user, or the locale's encoding of
        file names lacks a character.
    """
    if not str(text):
        raise UserError("a path is empty; write . for the current directory")
    if "\0" in str(text):
        raise UserError(f"{str(text)!r}: a path cannot contain a NUL character")
    try:
        path = Path(text).expanduser()
        os.fsencode(path)
    except RuntimeError as error:
        raise UserError(f"{text}: no user of this name has a home directory on this machine") from error
    except UnicodeEncodeError as error:
        raise UserError(
            f"{text}: the encoding of file names in this locale ({sys.getfilesystemencoding()}) lacks "
            f"{error.object[error.start]!r}. Set PYTHONUTF8=1, or a locale such as LC_ALL=C.UTF-8"
        ) from error
    return path
