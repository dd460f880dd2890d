"""Makes the names of columns usable: not empty, unique, printable, without blanks around them."""

import difflib
import itertools
from collections.abc import Collection, Sequence


def clean_names(found: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names to use, and a sentence about each name that was changed.

    Args:
      found: the names in the input, in order.
    """
    names: list[str] = []
    notes: list[str] = []
    stripped: list[str] = []
    printable = [_printable(name) or f"column_{position}" for position, name in enumerate(found, start=1)]
    for position, (name, clean) in enumerate(zip(found, printable, strict=True), start=1):
        if clean in names:
            numbered = (f"{clean}_{number}" for number in itertools.count(2))
            clean = next(each for each in numbered if each not in names and each not in printable)
        names.append(clean)
        if clean == name.strip() != name:
            stripped.append(clean)
        elif clean != name:
            notes.append(f"Column {position}, {name!r} in the input, is named {clean!r}.")
    if stripped:
        notes.append(f"Blanks around the names of {len(stripped)} column(s) were removed, such as {stripped[0]!r}.")
    return names, notes


def no_such_column(name: str, columns: Collection[str]) -> str:
    """Return the end of a message about a column that does not exist, with a similar name if there is one."""
    by_lower = {column.lower(): column for column in columns}
    similar = difflib.get_close_matches(name.lower(), by_lower, n=1)
    question = f" Did you mean {by_lower[similar[0]]!r}?" if similar else ""
    return f"there is no column {name!r}.{question} The columns are {', '.join(columns)}"


def _printable(name: str) -> str:
    return "".join(character if character.isprintable() else "_" for character in " ".join(name.split()))
