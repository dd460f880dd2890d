"""Maps names that users choose, such as those of tasks and tables, to names of modules."""

from torch import nn

# Attributes of an nn.ModuleDict, such as items and type. It refuses modules of these names.
_ATTRIBUTES = frozenset(dir(nn.ModuleDict()))
_PREFIX = "name/"


def module_key(name: str) -> str:
    """Return the key of an nn.ModuleDict for a user's name, which may be any text.

    The key is the name with "/" for ".", because module names must not contain dots. A name that is an attribute of the
    dictionary also gets a prefix.
    """
    key = name.replace(".", "/")
    return _PREFIX + key if key in _ATTRIBUTES else key


def name_of_key(key: str) -> str:
    """Return the name without dots that module_key() maps to `key`."""
    return key.removeprefix(_PREFIX)
