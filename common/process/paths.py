"""Paths that a user gives."""

from pathlib import Path

from common.errors import UserError


def user_path(text: str | Path) -> Path:
    """The path, `~` expanded.

    Raises:
      UserError: there is no such user, or it can't be a path.
    """
    if "\0" in str(text):
        raise UserError(f"{str(text)!r}: a path can't hold the character NUL")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{text}: no user of this name has a home directory here") from error
