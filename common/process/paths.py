"""Checks and expands paths given by the user."""

from pathlib import Path

from common.errors import UserError


def user_path(text: str | Path) -> Path:
    """Return the path with `~` expanded.

    Raises:
      UserError: the text is not a valid path, or `~name` names an unknown user.
    """
    if "\0" in str(text):
        raise UserError(f"{str(text)!r}: a path cannot contain a NUL character")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{text}: no user of this name has a home directory on this machine") from error
