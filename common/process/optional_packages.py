"""Checks for packages that only some commands need; requirements-serving.txt lists them."""

import importlib.util
from collections.abc import Sequence

from common.errors import UserError


def require_packages(purpose: str, modules: Sequence[str]) -> None:
    """Check that modules can be imported, without importing them.

    Args:
      purpose: what needs them, as the subject of the message's sentence.
      modules: names of top-level modules.

    Raises:
      UserError: one is not installed.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{purpose} needs {', '.join(missing)}, which this environment lacks. Install the packages for export and "
            "search: pip install -r requirements-serving.txt -c constraints.txt"
        )
