"""YAML text as plain data, with the place of everything in it.

Owns: the dialect of YAML, substitution of `$VAR`, and what the user wrote where. Not: what it should be (config_load).
"""

import json
import os
import re
from collections.abc import Callable
from typing import Any

import yaml

from common.errors import ConfigError

KeyPath = tuple[str | int, ...]
"""Of a value in the data: keys of mappings, indices of lists."""

Origin = tuple[int, int, str]
"""Sorts the file before what was put later, and by lines; its last item says the place in words."""

_Pairs = dict[str, tuple[yaml.Node, yaml.Node]]  # a mapping's nodes of key and value, by key


def shorten(text: str, limit: int = 60) -> str:
    """The text, or its first `limit` - 1 characters and an ellipsis."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


# --- The dialect: PyYAML's YAML 1.1, but 1e-4 is a float, and 010, 12:30 and 2020-01-01 are strings. ---

_STR = "tag:yaml.org,2002:str"
_PLAIN = "plain"  # the tag of a scalar without quotes or tag; what it is shows after substitution
_MAX_NODES = 20_000
_MAX_DEPTH = 100  # pydantic's parser ends at 200
_UNREADABLE = "?"  # stands in the data where a mistake is known already

_PLAIN_SCALAR = re.compile(
    r"""(?P<null> ~ | null | Null | NULL | )
    | (?P<bool> [Yy]es | YES | [Nn]o | NO | [Oo]n | ON | [Oo]ff | OFF | [Tt]rue | TRUE | [Ff]alse | FALSE)
    | (?P<int> [-+]? (?: 0 | [1-9][0-9_]* | 0x[0-9a-fA-F]+ | 0b[01]+ ))
    | (?P<float> [-+]? (?: [0-9][0-9_]* (?: \.[0-9_]* | (?=[eE]) ) | \.[0-9][0-9_]* ) (?: [eE][-+]?[0-9]+ )?
               | [-+]? \.(?: inf | Inf | INF ) | \.(?: nan | NaN | NAN ))""",
    re.VERBOSE,
)


def _to_int(text: str) -> int:
    if len(text) > 100 or not -(2**63) <= (value := int(text.replace("_", ""), 0)) < 2**64:
        raise ValueError("an integer of more than 64 bits")
    return value


_CONVERT: dict[str, Callable[[str], Any]] = {
    "null": lambda _: None,
    "bool": lambda text: text.lower() in ("yes", "on", "true"),
    "int": _to_int,
    "float": lambda text: float(re.sub(r"\.(?=[in])", "", text.replace("_", "").lower())),  # .inf is inf
    "str": str,
}
_VARIABLE = re.compile(r"\$(?: (\$) | ([A-Za-z_]\w*) | \{([A-Za-z_]\w*)\} | )", re.VERBOSE | re.ASCII)


class _Loader(yaml.SafeLoader):
    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        """The tag of a node that has none; a plain scalar's type is left open."""
        if kind is yaml.ScalarNode:
            return _PLAIN if implicit[0] else _STR
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]


def compose(text: str, source: str) -> yaml.Node | None:
    """The nodes of a YAML document, None for an empty one. `source` (a file, an override) is for errors."""
    try:
        return _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = " ".join(filter(None, [error.context, error.problem]))
        raise ConfigError(f"{source}: {place}not YAML: {problem}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{source}: line {line}: the character {error.character:#x} is not allowed") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: nested too deeply") from error


def _kind(tag: str, text: str) -> str:
    """What a scalar is: null, bool, int, float or str."""
    match = _PLAIN_SCALAR.fullmatch(text) if tag == _PLAIN else None
    return (match.lastgroup or "str") if match else "str"


def _substitute(text: str) -> str:
    """Replaces `$VAR` and `${VAR}` from the environment, and `$$` by a dollar. Raises ValueError."""

    def value(match: re.Match[str]) -> str:
        name = match[2] or match[3]
        if name is None and not match[1]:
            raise ValueError("after $ must come NAME or {NAME}; a dollar sign is written $$")
        if name is not None and name not in os.environ:
            raise ValueError(f"the environment variable {name} is not set (a dollar sign is written $$)")
        return os.environ[name] if name else "$"

    return _VARIABLE.sub(value, text)


# --- What the user wrote. ---


class YamlDocument:
    """The mappings, lists and scalars of a file and of what replaces parts of it; aliases are copies.

    Attributes:
      data: what a YAML reader gives, variables substituted. "?" stands where a mistake is.
      given: scalars as the user wrote them, for messages.
      mistakes: what can't be read, in words.
    """

    def __init__(self, text: str, source: str) -> None:
        """Reads a file's text, a mapping. Raises ConfigError, beginning with `source`, where there is none."""
        root = compose(text, source)
        if root is None:
            raise ConfigError(f"{source}: the file is empty")
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{source}: the top level must be a mapping, lines of 'key: value'")
        self.given: dict[KeyPath, str] = {}
        self.mistakes: dict[KeyPath, str] = {}
        self._origins: dict[KeyPath, Origin] = {(): (0, 0, "")}
        self._source = source
        self._num_puts = 0
        self._num_nodes = 0
        self.data: dict[str, Any] = self._build(root, (), ())

    def origin(self, path: KeyPath) -> Origin:
        """Where a value, or else the nearest one above it, stands."""
        return self._origins[path] if path in self._origins else self.origin(path[:-1])

    def put(self, path: KeyPath, node: yaml.Node, source: str) -> None:
        """Sets the value at `path`, whose holder exists. `source` says in words where the node comes from."""
        self._source = source
        self._num_puts += 1
        for record in (self._origins, self.given, self.mistakes):
            for old in [old for old in record if old[: len(path)] == path]:
                del record[old]
        self._origins[path] = self._num_puts, 0, source
        holder: Any = self.data
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = self._build(node, path, ())

    def _origin(self, node: yaml.Node) -> Origin:
        line = node.start_mark.line + 1
        return self._num_puts, line, self._source if self._num_puts else f"line {line}"

    def _count(self, nodes: int) -> None:
        """Stops what a few lines of aliases of aliases would multiply to."""
        self._num_nodes += nodes
        if self._num_nodes > _MAX_NODES:
            raise ConfigError(
                f"{self._source}: more than {_MAX_NODES:,} keys and values, those behind an alias counted at each use"
            )

    def _build(self, node: yaml.Node, path: KeyPath, parents: tuple[yaml.Node, ...]) -> Any:
        """The data of a node, anew for each alias of it."""
        self._count(1)
        if node in parents or len(parents) == _MAX_DEPTH:
            self.mistakes[path] = "the anchor contains itself" if node in parents else "nested too deeply"
            return _UNREADABLE
        if node.tag not in (_PLAIN, _STR, "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"):
            self.mistakes[path] = f"the tag {node.tag.replace('tag:yaml.org,2002:', '!!')} is not supported"
            return _UNREADABLE
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        is_mapping = isinstance(node, yaml.MappingNode)
        data: dict[Any, Any] = {}
        items = {index: (item, item) for index, item in enumerate(node.value)}
        for key, (start, child) in (self._pairs(node, path, parents) if is_mapping else items).items():
            self._origins[*path, key] = self._origin(start)
            data[key] = self._build(child, (*path, key), (*parents, node))
        return data if is_mapping else list(data.values())

    def _pairs(self, mapping: yaml.Node, path: KeyPath, parents: tuple[yaml.Node, ...]) -> _Pairs:
        """The nodes of a mapping, the merged ones first; its own override them."""
        self._count(len(mapping.value))
        own: _Pairs = {}
        merged: _Pairs = {}
        seen: dict[str, yaml.Node] = {}
        for key, value in mapping.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            kind = _kind(key.tag, name)
            if not isinstance(key, yaml.ScalarNode):
                self.mistakes[*path, name] = "a key must be a string"
            elif kind != "str":
                self.mistakes[*path, name] = f"YAML reads this key as {kind}; write it in quotes: '{name}'"
            elif name in seen:
                self.mistakes[*path, name] = f"duplicate key, also on line {seen[name].start_mark.line + 1}"
            seen[name] = key
            if name != "<<" or key.tag != _PLAIN:
                own[name] = key, value
                continue
            self._origins[*path, name] = self._origin(key)
            for source in reversed(value.value if isinstance(value, yaml.SequenceNode) else [value]):
                if len(parents) == _MAX_DEPTH:
                    self.mistakes[*path, name] = "nested too deeply"
                elif isinstance(source, yaml.MappingNode) and source not in (*parents, mapping):
                    merged |= self._pairs(source, path, (*parents, mapping))
                else:
                    self.mistakes[*path, name] = "only mappings can be merged, and none into itself"
        return merged | own

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        written = shorten(node.value if node.tag == _PLAIN else repr(node.value))
        try:
            text = _substitute(node.value)
            if text != text.encode(errors="replace").decode():
                raise ValueError("not valid Unicode")
            kind = _kind(node.tag, text)
            value = _CONVERT[kind](text)
        except ValueError as error:
            self.mistakes[path] = f"{written} given; {error}"
            return _UNREADABLE
        given = shorten(repr(value) if kind == "str" else text)
        if kind in ("bool", "null") and text != json.dumps(value):
            given = f"{given or 'nothing'} (in YAML {json.dumps(value)})"
        self.given[path] = given if text == node.value else f"{given} (from {written})"
        return value
