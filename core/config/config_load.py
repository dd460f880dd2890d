"""Reads a YAML file and overrides into a typed configuration, or says what is wrong with them.

Owns: overrides, and the one message that lists every mistake. Not: how YAML is read (yaml_document), nor the rules
that a configuration must keep; its classes declare them (base_config).
"""

import difflib
import json
import logging
import os
import pathlib
import re
import typing
from collections.abc import Collection, Sequence
from typing import Any, TypeVar

import pydantic
import yaml
from pydantic_core import ErrorDetails

from common.errors import ConfigError
from core.config.base_config import BaseConfig
from core.config.yaml_document import KeyPath, YamlDocument, compose, shorten

logger = logging.getLogger(__name__)

_ConfigT = TypeVar("_ConfigT", bound=BaseConfig)


def load_config_from_yaml(
    config_type: type[_ConfigT], yaml_path: str | os.PathLike[str], overrides: Sequence[str] = ()
) -> _ConfigT:
    """The configuration in a YAML file, after the overrides (`path=value`, in their order).

    Raises ConfigError. Its message lists all mistakes: the path of each, its line or override, what was given
    and what is allowed. YAML that does not parse and an override that leads nowhere are reported alone.

    One warning lists the keys that are given but have no effect.
    """
    document = YamlDocument(_read(yaml_path), f"{yaml_path}")
    for override in overrides:
        _apply(override, document)

    config, errors = None, []
    try:
        # As JSON, because in Python data strict pydantic takes no list for a tuple and no string for an enum.
        config = config_type.model_validate_json(json.dumps(document.data))
    except pydantic.ValidationError as error:
        errors = error.errors(include_url=False)
    if config is None or document.mistakes:
        mistakes = _describe(config_type, document, errors)
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise ConfigError("\n  ".join([f"{yaml_path}: {count}", *mistakes]))
    if ignored := _without_effect(config_type, document):
        logger.warning("%s: accepted, but without effect: %s", yaml_path, ", ".join(ignored))
    return config


def _read(yaml_path: str | os.PathLike[str]) -> str:
    try:
        return pathlib.Path(yaml_path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{yaml_path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{yaml_path}: line {line}: not UTF-8 text") from error


# --- Overrides. ---

_EMPTY_MAPPING = yaml.MappingNode("tag:yaml.org,2002:map", [])


def _apply(override: str, document: YamlDocument) -> None:
    """Sets one value. Raises ConfigError if the path leads nowhere."""
    label = f"--set {shorten(override, 200)}"
    keys, text = _split(override, label)
    node = compose(text, label)
    if node is None:
        raise ConfigError(f"{label}: no value after '='; write null, or '' for an empty string")
    value: Any = document.data
    path: KeyPath = ()
    for key in keys:
        if value is None:
            document.put(path, _EMPTY_MAPPING, label)
            value = {}
        if isinstance(value, dict):
            if key not in value and (dotted := next((k for k in value if k.startswith(f"{key}.")), None)):
                raise ConfigError(f"{label}: no '{_show((*path, key))}'; did you mean {_show((*path, dotted))}?")
            path, value = (*path, key), value.get(key)
        elif not isinstance(value, list):
            raise ConfigError(f"{label}: {_show(path)} is {shorten(repr(value))}; nothing is below it")
        elif key in map(str, range(len(value))):
            path, value = (*path, int(key)), value[int(key)]
        elif (index := _named(value, key)) is not None:
            path, value = (*path, index), value[index]
        else:
            problem = f"{_show(path)} has {len(value)} items, counted from 0; there is no item '{key}'"
            raise ConfigError(f"{label}: {problem}" + (f"; write {_show((*path, 0))} for the first" if value else ""))
    document.put(path, node, label)


def _named(items: list[Any], name: str) -> int | None:
    """Position of the item whose `name` it is; None: there is none, or several."""
    found = [index for index, item in enumerate(items) if isinstance(item, dict) and item.get("name") == name]
    return found[0] if len(found) == 1 else None


_SEGMENT = re.compile(r"""(?:^|(?<!^)\.)([^.\[\]="']+)|\[(?:"([^"]*)"|'([^']*)'|([^\]"']+))\]""")


def _split(override: str, label: str) -> tuple[list[str], str]:
    """The keys and the value of `a.b[c.d][0]=value`."""
    keys, end = [], 0
    while match := _SEGMENT.match(override, end):
        keys.append(next(key for key in match.groups() if key is not None))
        end = match.end()
    if keys and override[end : end + 1] == "=":
        return keys, override[end + 1 :]
    problem = f"no path can be read at '{override[end:]}'" if "=" in override else "there is no '='"
    raise ConfigError(f"{label}: {problem}; write PATH=VALUE, such as a.b=1 or tasks[a.b].sizes[0]=1")


def _show(path: KeyPath) -> str:
    shown = ""
    for key in path:
        if isinstance(key, str) and re.fullmatch(r"""[^.\[\]="'\s]+""", key):
            shown += f".{key}" if shown else key
        else:
            shown += f"[{key}]" if re.fullmatch(r"""[^\]"']+""", str(key)) else f"[{json.dumps(key)}]"
    return shown or "(top level)"


# --- The message. ---

_Configs = dict[KeyPath, list[tuple[type[BaseConfig], dict[str, Any]]]]  # several at a path: it is a union


def _walk(hint: Any, data: Any, path: KeyPath, found: _Configs) -> _Configs:
    """Adds to `found` each mapping in `data` that stands where `hint` has a configuration, with its class."""
    origin = typing.get_origin(hint)
    if origin is None and isinstance(hint, type) and issubclass(hint, BaseConfig) and isinstance(data, dict):
        found.setdefault(path, []).append((hint, data))
        for name, field in hint.model_fields.items():
            _walk(field.annotation, data.get(name), (*path, name), found)
    for argument in typing.get_args(hint):
        if not (isinstance(origin, type) and issubclass(origin, Collection)):  # a union
            _walk(argument, data, path, found)
        elif isinstance(data, dict | list):
            for key, item in data.items() if isinstance(data, dict) else enumerate(data):
                _walk(argument, item, (*path, key), found)
    return found


def _without_effect(config: type[BaseConfig], document: YamlDocument) -> list[str]:
    """The keys that are given and nothing reads; what an anchor repeats, once."""
    found: dict[tuple[str, str], str] = {}
    for path, here in _walk(config, document.data, (), {}).items():
        for kind, given in here:
            for name in kind.fields_without_effect():
                if given.get(name) is not None:
                    place = document.origin((*path, name))[-1]
                    found.setdefault((place, name), f"{_show((*path, name))} ({place})")
    return list(found.values())


def _describe(config: type[BaseConfig], document: YamlDocument, errors: Sequence[ErrorDetails]) -> list[str]:
    """A line for each mistake, in the order of the file."""
    configs = _walk(config, document.data, (), {})
    allowed = {path: [name for kind, _ in here for name in kind.model_fields] for path, here in configs.items()}
    found: dict[KeyPath, list[str]] = {}  # what was given; what is wrong (several: a union's members)
    for error in errors:
        path = _locate(error, document.data, allowed)
        given, text = _explain(error, path, document, allowed.get(path[:-1], []))
        texts = found.setdefault(path, [given])
        texts.extend([] if text in texts else [text])
    for path, [(kind, data), *others] in configs.items():
        # pydantic looks at groups only where all fields are right.
        broken = kind.broken_groups([name for name, value in data.items() if value is not None])
        is_meant = not data or data.keys() & kind.model_fields.keys()  # or a union's other member
        if broken and is_meant and not others:
            found[path] = ["", "; ".join(broken)]

    mistakes = dict(document.mistakes)
    for path, (given, *texts) in found.items():
        # What stands above or below something unreadable may be its consequence.
        if not any(all(a == b for a, b in zip(path, other, strict=False)) for other in document.mistakes):
            mistakes[path] = given + " or ".join(texts).replace(" or Input should be", " or")
    lines = []
    for path in sorted(mistakes, key=document.origin):
        place = document.origin(path)[-1]
        lines.append(f"{_show(path)}{f' ({place})' if place else ''}: {mistakes[path]}")
    return lines


def _locate(error: ErrorDetails, data: Any, allowed: dict[KeyPath, list[str]]) -> KeyPath:
    """The path of an error: its loc without the members of unions and the "[key]" that pydantic adds."""
    path: KeyPath = ()
    for position, step in enumerate(error["loc"], start=1):
        if step in data if isinstance(data, dict) else isinstance(data, list) and step in range(len(data)):
            data = data[step]
        elif position < len(error["loc"]) or (error["type"] != "missing" and step not in allowed.get(path, [])):
            continue
        path = (*path, step)
    return path


def _explain(error: ErrorDetails, path: KeyPath, document: YamlDocument, allowed: list[str]) -> tuple[str, str]:
    """What was given ("... given; ", where that can be said in a word), and what is wrong with it."""
    kind, value = error["type"], error["input"]
    if kind == "missing":
        return "", "missing; it has no default"
    if kind == "extra_forbidden":
        allowed = [name for name in dict.fromkeys(allowed) if name != path[-1]]  # another member of a union has it
        close = difflib.get_close_matches(str(path[-1]), allowed, n=1)
        hint = f"did you mean '{close[0]}'? Allowed" if close else "allowed"
        return "", f"unknown key; {hint} here: {', '.join(allowed) or 'nothing'}"
    text = error["msg"].replace("an object", "a mapping").replace("a valid array", "a list")
    if kind in ("value_error", "assertion_error"):
        text = str(error["ctx"]["error"])
    if kind == "string_type" and isinstance(value, bool | int | float):
        text += "; in quotes it is one"
    if error["loc"][-1:] == ("[key]",):
        return "as a key: ", text
    if path in document.given:
        return f"{document.given[path]} given; ", text
    if kind.endswith("_type") and isinstance(value, dict | list):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} given; ", text
    return "", text
