"""Checks names that users choose for what is measured, such as tasks and evaluation sets."""

from typing import Annotated

import pydantic


def check_printable(name: str) -> str:
    """Return a name unchanged.

    Raises:
      ValueError: the name is blank, or has characters such as line breaks, which would spoil tables and logs.
    """
    if not name.isprintable() or not name.strip():
        raise ValueError(f"the name {name!r} must not be blank and must have printable characters only")
    return name


def _check_partition(name: str) -> str:
    if not name or "/" in name:
        raise ValueError(
            "the name of a partition must not be empty or contain a slash, because slashes separate the parts of a "
            "metric name. Rename the partition"
        )
    return check_printable(name)


PartitionName = Annotated[str, pydantic.AfterValidator(_check_partition)]
"""Name of an evaluation set in the configuration."""
