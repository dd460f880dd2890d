"""Suggests names that a user may have meant instead of an unknown one."""

import difflib

import pyarrow as pa
import pyarrow.compute as pc

# Limits the search for similar names, because comparing strings takes time.
_MAX_COMPARED_NAMES = 20_000


def similar_names(kind: str, names: pa.Array, unknown: str) -> str:
    """Return a sentence with names that are similar to an unknown one, or with examples.

    Args:
      kind: plural of what has the names, such as "entities".
      names: all names, strings or integers.
      unknown: name that is not among them.
    """
    if pa.types.is_integer(names.type):
        return name_examples(kind, names)
    similar = names.filter(pc.match_substring(names, unknown, ignore_case=True))[:3].to_pylist()
    similar = similar or difflib.get_close_matches(unknown, names[:_MAX_COMPARED_NAMES].to_pylist())
    return f"Similar {kind}: {', '.join(similar)}" if similar else name_examples(kind, names)


def name_examples(kind: str, names: pa.Array) -> str:
    """Return a sentence with the first names, or with the range of integers."""
    if pa.types.is_integer(names.type):
        ends = pc.min_max(names)
        return f"{kind.capitalize()} range from {ends['min']} to {ends['max']}"
    return f"Examples of {kind}: {', '.join(names[:3].to_pylist())}"
