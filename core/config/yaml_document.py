"""Reads YAML text as plain data and records where each value comes from.

Owns the YAML dialect, the substitution of `$VAR`, and the origin of each value. Does not own validation (config_load).
"""

import json
import os
import re
from collections.abc import Callable
from typing import Any

import yaml

from common.errors import ConfigError

KeyPath = tuple[str | int, ...]
"""Path to a value in the data: keys of mappings and indices of lists."""

Origin = tuple[int, int, str]
"""Origin of a value. Sorts the file before overrides, and by line. The last item describes the origin in words."""

_Pairs = dict[str, tuple[yaml.Node, yaml.Node]]  # key node and value node of a mapping, by key


def shorten(text: str, limit: int = 60) -> str:
    """Return the text if it is short, or its first `limit` - 1 characters and an ellipsis."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


# --- The dialect: YAML 1.1 as PyYAML reads it, but 1e-4 is a float, and 010, 12:30 and 2020-01-01 are strings. ---

_STR = "tag:yaml.org,2002:str"
_PLAIN = "plain"  # tag of a scalar without quotes and without a tag; its type is known after substitution
_MAX_NODES = 200_000
_MAX_DEPTH = 100  # pydantic's parser allows 200
_UNREADABLE = "?"  # placeholder for a value with an error that is already recorded

_PLAIN_SCALAR = re.compile(
    r"""(?P<null> ~ | null | Null | NULL | )
    | (?P<bool> [Yy]es | YES | [Nn]o | NO | [Oo]n | ON | [Oo]ff | OFF | [Tt]rue | TRUE | [Ff]alse | FALSE)
    | (?P<int> [-+]? (?: 0 | [1-9][0-9_]* | 0x[0-9a-fA-F]+ | 0b[01]+ ))
    | (?P<float> [-+]? (?: [0-9][0-9_]* (?: \.[0-9_]* | (?=[eE]) ) | \.[0-9][0-9_]* ) (?: [eE][-+]?[0-9]+ )?
               | [-+]? \.(?: inf | Inf | INF ) | \.(?: nan | NaN | NAN ))""",
    re.VERBOSE,
)


def _to_int(text: str) -> int:
    problem = "integers are limited to 64 bits"
    try:
        value = int(text.replace("_", ""), 0)
    except ValueError:  # Python refuses thousands of digits
        raise ValueError(problem) from None
    if not -(2**63) <= value < 2**64:
        raise ValueError(problem)
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
        """Return the tag for a node without a tag. Leaves the type of a plain scalar open."""
        if kind is yaml.ScalarNode:
            return _PLAIN if implicit[0] else _STR
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]


def compose(text: str, source: str) -> yaml.Node | None:
    """Parse a YAML document into nodes, or return None if it is empty.

    `source` (a file or an override) is the start of error messages. Raises ConfigError.
    """
    try:
        return _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = " ".join(filter(None, [error.context, error.problem]))
        if mark and text[: mark.index].endswith("$") and text[mark.index : mark.index + 1] == "{":
            variable = text[mark.index + 1 :].partition("}")[0]
            problem += f". Inside {{ }} and [ ], write ${variable} instead of ${{{variable}}}"
        raise ConfigError(f"{source}: {position}invalid YAML: {problem}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{source}: line {line}: the character {error.character:#x} is not allowed") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: the YAML is nested too deeply") from error


def _kind(tag: str, text: str) -> str:
    """Return the type of a scalar: null, bool, int, float or str."""
    match = _PLAIN_SCALAR.fullmatch(text) if tag == _PLAIN else None
    return (match.lastgroup or "str") if match else "str"


def _substitute(text: str) -> str:
    """Replace `$VAR` and `${VAR}` with values from the environment, and `$$` with a dollar sign. Raises ValueError."""

    def value(match: re.Match[str]) -> str:
        name = match[2] or match[3]
        if name is None and not match[1]:
            raise ValueError("write a variable as $NAME or ${NAME}, and a dollar sign as $$")
        if name is not None and name not in os.environ:
            raise ValueError(f"the environment variable {name} is not set (write a dollar sign as $$)")
        return os.environ[name] if name else "$"

    return _VARIABLE.sub(value, text)


# --- The document. ---


class YamlDocument:
    """The data of a YAML file after overrides. Aliases are copies.

    Attributes:
      data: mappings, lists and scalars with variables substituted. A value with an error is "?".
      written: scalars as the user wrote them, by key path, for messages.
      errors: descriptions of values that cannot be read, by key path.
    """

    def __init__(self, text: str, source: str) -> None:
        """Read the text of a file. Raises ConfigError, starting with `source`, if it does not contain a mapping."""
        root = compose(text, source)
        if root is None:
            comment = next((line for line in text.splitlines() if line.startswith("#")), None)
            raise ConfigError(f"{source}: the file is empty" + (f", apart from comments: {comment}" if comment else ""))
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{source}: the top level must be a mapping (lines of 'key: value')")
        self.written: dict[KeyPath, str] = {}
        self.errors: dict[KeyPath, str] = {}
        self._origins: dict[KeyPath, Origin] = {(): (0, 0, "")}
        self._source = source
        self._num_puts = 0
        self._num_nodes = 0
        self.data: dict[str, Any] = self._build(root, (), ())

    def origin(self, key_path: KeyPath) -> Origin:
        """Return the origin of the value at `key_path`, or of its nearest ancestor if it has none."""
        return self._origins[key_path] if key_path in self._origins else self.origin(key_path[:-1])

    def put(self, key_path: KeyPath, node: yaml.Node, source: str) -> None:
        """Set the value at `key_path`, whose parent exists. `source` describes the origin of the node in words."""
        self._source = source
        self._num_puts += 1
        for record in (self._origins, self.written, self.errors):
            for old in [old for old in record if old[: len(key_path)] == key_path]:
                del record[old]
        self._origins[key_path] = self._num_puts, 0, source
        parent: Any = self.data
        for key in key_path[:-1]:
            parent = parent[key]
        parent[key_path[-1]] = self._build(node, key_path, ())

    def _origin(self, node: yaml.Node) -> Origin:
        line = node.start_mark.line + 1
        return self._num_puts, line, self._source if self._num_puts else f"line {line}"

    def _count(self, nodes: int) -> None:
        """Count nodes and raise ConfigError if there are too many, because nested aliases multiply."""
        self._num_nodes += nodes
        if self._num_nodes > _MAX_NODES:
            raise ConfigError(
                f"{self._source}: more than {_MAX_NODES:,} keys and values (each use of an alias counts again)"
            )

    def _build(self, node: yaml.Node, key_path: KeyPath, parents: tuple[yaml.Node, ...]) -> Any:
        """Return the data of a node. Each alias of the node gets its own copy."""
        self._count(1)
        if node in parents or len(parents) == _MAX_DEPTH:
            self.errors[key_path] = "the anchor contains itself" if node in parents else "the YAML is nested too deeply"
            return _UNREADABLE
        if node.tag not in (_PLAIN, _STR, "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"):
            self.errors[key_path] = f"the tag {node.tag.replace('tag:yaml.org,2002:', '!!')} is not supported"
            return _UNREADABLE
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, key_path)
        is_mapping = isinstance(node, yaml.MappingNode)
        data: dict[Any, Any] = {}
        items = {index: (item, item) for index, item in enumerate(node.value)}
        for key, (start, child) in (self._pairs(node, key_path, parents) if is_mapping else items).items():
            self._origins[*key_path, key] = self._origin(start)
            data[key] = self._build(child, (*key_path, key), (*parents, node))
        return data if is_mapping else list(data.values())

    def _pairs(self, mapping: yaml.Node, key_path: KeyPath, parents: tuple[yaml.Node, ...]) -> _Pairs:
        """Return the key and value nodes of a mapping: merged ones first, then its own, which override them."""
        self._count(len(mapping.value))
        own: _Pairs = {}
        merged: _Pairs = {}
        seen: dict[str, yaml.Node] = {}
        for key, value in mapping.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            kind = _kind(key.tag, name)
            if not isinstance(key, yaml.ScalarNode):
                self.errors[*key_path, name] = "a key must be a string"
            elif kind != "str":
                self.errors[*key_path, name] = (
                    f"YAML reads this key as {kind}, but a key must be a string; quote it: '{name}'"
                )
            elif name in seen:
                self.errors[*key_path, name] = f"duplicate key, also on line {seen[name].start_mark.line + 1}"
            seen[name] = key
            if name != "<<" or key.tag != _PLAIN:
                own[name] = key, value
                continue
            self._origins[*key_path, name] = self._origin(key)
            for source in reversed(value.value if isinstance(value, yaml.SequenceNode) else [value]):
                if len(parents) == _MAX_DEPTH:
                    self.errors[*key_path, name] = "the YAML is nested too deeply"
                elif isinstance(source, yaml.MappingNode) and source not in (*parents, mapping):
                    merged |= self._pairs(source, key_path, (*parents, mapping))
                else:
                    self.errors[*key_path, name] = "only a mapping can be merged, and not into itself"
        return merged | own

    def _scalar(self, node: yaml.ScalarNode, key_path: KeyPath) -> Any:
        original = shorten(node.value if node.tag == _PLAIN else repr(node.value))
        try:
            text = _substitute(node.value)
            if text != text.encode(errors="replace").decode():
                raise ValueError("the text must be valid Unicode")
            kind = _kind(node.tag, text)
            value = _CONVERT[kind](text)
        except ValueError as error:
            self.errors[key_path] = f"{original} is invalid: {error}"
            return _UNREADABLE
        shown = shorten(repr(value) if kind == "str" else text)
        if kind in ("bool", "null") and text != json.dumps(value):
            shown = f"{shown or 'nothing'} ({json.dumps(value)} in YAML)"
        self.written[key_path] = shown if text == node.value else f"{shown} (from {original})"
        return value
