"""Loads a YAML file with overrides into a typed configuration, or reports what is wrong with them.

Owns overrides and the message that lists all errors. Does not own reading YAML (yaml_document), or the rules for a
configuration, which its classes declare (base_config).
"""

import dataclasses
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
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from common.errors import ConfigError
from core.config.base_config import BaseConfig
from core.config.yaml_document import KeyPath, YamlDocument, compose, shorten

logger = logging.getLogger(__name__)

_ConfigT = TypeVar("_ConfigT", bound=BaseConfig)


def load_config_from_yaml(
    config_type: type[_ConfigT], yaml_path: str | os.PathLike[str], overrides: Sequence[str] = ()
) -> _ConfigT:
    """Load the configuration in a YAML file and apply the overrides (`key_path=value`) in order.

    Logs one warning that lists the keys that are set but have no effect.

    Raises:
      ConfigError: the message lists all errors, each with its key path, its line or override, the value found and what
        is allowed. YAML that does not parse and an override with an invalid key path are reported alone.
    """
    document = YamlDocument(_read(yaml_path), f"{yaml_path}")
    for override in overrides:
        _apply(override, document)

    config, errors = None, []
    try:
        # Validate JSON: in Python data, strict pydantic rejects a list for a tuple and a string for an enum.
        config = config_type.model_validate_json(json.dumps(document.data))
    except pydantic.ValidationError as error:
        errors = error.errors(include_url=False)
    if config is None or document.errors:
        lines = _describe(config_type, document, errors)
        count = "1 error" if len(lines) == 1 else f"{len(lines)} errors"
        raise ConfigError("\n  ".join([f"{yaml_path}: {count}", *lines]))
    if ignored := _without_effect(config_type, document):
        logger.warning("%s: these keys are accepted but have no effect: %s", yaml_path, ", ".join(ignored))
    return config


def _read(yaml_path: str | os.PathLike[str]) -> str:
    try:
        return pathlib.Path(yaml_path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{yaml_path}: cannot read this file: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{yaml_path}: line {line}: the text is not valid UTF-8") from error


# --- Overrides. ---

_EMPTY_MAPPING = yaml.MappingNode("tag:yaml.org,2002:map", [])


def _apply(override: str, document: YamlDocument) -> None:
    """Apply one override. Raises ConfigError if the key path does not exist."""
    label = f"--set {shorten(override, 200)}"
    if override != override.encode(errors="replace").decode():
        raise ConfigError(f"{label}: the text is not valid UTF-8")
    keys, text = _split(override, label)
    node = compose(text, label)
    if node is None:
        raise ConfigError(f"{label}: no value after '='; write null, or '' for the empty string")
    value: Any = document.data
    key_path: KeyPath = ()
    for key in keys:
        if value is None:
            document.put(key_path, _EMPTY_MAPPING, label)
            value = {}
        if isinstance(value, dict):
            if key not in value and (dotted := next((k for k in value if k.startswith(f"{key}.")), None)):
                missing, suggested = _show((*key_path, key)), _show((*key_path, dotted))
                raise ConfigError(f"{label}: there is no '{missing}'; did you mean {suggested}?")
            key_path, value = (*key_path, key), value.get(key)
        elif not isinstance(value, list):
            raise ConfigError(f"{label}: {_show(key_path)} is {shorten(repr(value))}, which has no keys")
        elif key in map(str, range(len(value))):
            key_path, value = (*key_path, int(key)), value[int(key)]
        elif (index := _index_of(value, key)) is not None:
            key_path, value = (*key_path, index), value[index]
        else:
            problem = f"{_show(key_path)} has {len(value)} items, numbered from 0; there is no item '{key}'"
            hint = f"; write {_show((*key_path, 0))} for the first" if value else ""
            raise ConfigError(f"{label}: {problem}{hint}")
    document.put(key_path, node, label)


def _index_of(items: list[Any], name: str) -> int | None:
    """Return the index of the only item whose `name` is `name`, or None if there is no such item or more than one."""
    matches = [index for index, item in enumerate(items) if isinstance(item, dict) and item.get("name") == name]
    return matches[0] if len(matches) == 1 else None


_SEGMENT = re.compile(r"""(?:^|(?<!^)\.)([^.\[\]="']+)|\[(?:"([^"]*)"|'([^']*)'|([^\]"']+))\]""")


def _split(override: str, label: str) -> tuple[list[str], str]:
    """Split `a.b[c.d][0]=value` into the keys and the text of the value."""
    keys, end = [], 0
    while match := _SEGMENT.match(override, end):
        keys.append(next(key for key in match.groups() if key is not None))
        end = match.end()
    if keys and override[end : end + 1] == "=":
        return keys, override[end + 1 :]
    problem = f"the key path is invalid at '{override[end:]}'" if "=" in override else "there is no '='"
    raise ConfigError(f"{label}: {problem}; write PATH=VALUE, such as a.b=1 or tasks[a.b].sizes[0]=1")


def _show(key_path: KeyPath) -> str:
    shown = ""
    for key in key_path:
        if isinstance(key, str) and re.fullmatch(r"""[^.\[\]="'\s]+""", key):
            shown += f".{key}" if shown else key
        else:
            shown += f"[{key}]" if re.fullmatch(r"""[^\]"']+""", str(key)) else f"[{json.dumps(key)}]"
    return shown or "(top level)"


# --- The message. ---


@dataclasses.dataclass
class _Found:
    """The parts of the data for which the type hints expect configurations.

    Attributes:
      configs: each mapping with its class, by key path. Several classes belong to a union.
      discriminators: the key that selects the class of a mapping, by key path of the mapping.
    """

    configs: dict[KeyPath, list[tuple[type[BaseConfig], dict[str, Any]]]] = dataclasses.field(default_factory=dict)
    discriminators: dict[KeyPath, str] = dataclasses.field(default_factory=dict)


def _find(config: type[BaseConfig], document: YamlDocument) -> _Found:
    found = _Found()
    _walk(config, document.data, (), found)
    return found


def _walk(hint: Any, data: Any, key_path: KeyPath, found: _Found) -> None:
    """Add to `found` each mapping in `data` for which the type hint expects a configuration."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is None and isinstance(hint, type) and issubclass(hint, BaseConfig) and isinstance(data, dict):
        found.configs.setdefault(key_path, []).append((hint, data))
        for name, field in hint.model_fields.items():
            _walk(field.annotation, data.get(name), (*key_path, name), found)
    discriminator = next((a.discriminator for a in arguments if isinstance(a, FieldInfo)), None)
    if isinstance(data, dict) and isinstance(discriminator, str):
        found.discriminators[key_path] = discriminator
        classes = typing.get_args(arguments[0])
        tags = (typing.get_args(each.model_fields[discriminator].annotation) for each in classes)
        tag = data.get(discriminator)
        arguments = tuple(each for each, own in zip(classes, tags, strict=True) if tag in own)
    for argument in arguments:
        if not (isinstance(origin, type) and issubclass(origin, Collection)):  # a union
            _walk(argument, data, key_path, found)
        elif isinstance(data, dict | list):
            for key, item in data.items() if isinstance(data, dict) else enumerate(data):
                _walk(argument, item, (*key_path, key), found)


def _without_effect(config: type[BaseConfig], document: YamlDocument) -> list[str]:
    """Return the keys that are set but that nothing reads. Lists a key that an anchor repeats only once."""
    ignored: dict[tuple[str, str], str] = {}
    for key_path, classes in _find(config, document).configs.items():
        for config_class, data in classes:
            for name in config_class.fields_without_effect():
                if data.get(name) is not None:
                    origin = document.origin((*key_path, name))[-1]
                    ignored.setdefault((origin, name), f"{_show((*key_path, name))} ({origin})")
    return list(ignored.values())


def _describe(config: type[BaseConfig], document: YamlDocument, errors: Sequence[ErrorDetails]) -> list[str]:
    """Return one line per error, in the order of the file."""
    found = _find(config, document)
    allowed = {
        key_path: [name for config_class, _ in classes for name in config_class.model_fields]
        for key_path, classes in found.configs.items()
    }
    problems: dict[KeyPath, list[str]] = {}  # the subject, then its problems (several for the members of a union)
    for error in errors:
        key_path = _locate(error, document.data, allowed, found.discriminators)
        subject, problem = _explain(error, key_path, document, allowed.get(key_path[:-1], []))
        texts = problems.setdefault(key_path, [subject])
        texts.extend([] if problem in texts else [problem])
    for key_path, [(config_class, data), *others] in found.configs.items():
        # pydantic checks groups only if all fields are valid.
        broken = config_class.broken_groups([name for name, value in data.items() if value is not None])
        # Otherwise the data may belong to another member of a union.
        fits_class = not data or data.keys() & config_class.model_fields.keys()
        if broken and fits_class and not others:
            problems[key_path] = ["", "; ".join(broken)]

    messages = dict(document.errors)
    for key_path, (subject, *texts) in problems.items():
        # A problem above or below an unreadable value may be only a consequence of it.
        if not any(all(a == b for a, b in zip(key_path, other, strict=False)) for other in document.errors):
            messages[key_path] = subject + " or ".join(texts).replace(" or Input should be", " or")
    lines = []
    for key_path in sorted(messages, key=document.origin):
        origin = document.origin(key_path)[-1]
        lines.append(f"{_show(key_path)}{f' ({origin})' if origin else ''}: {messages[key_path]}")
    return lines


def _locate(
    error: ErrorDetails, data: Any, allowed: dict[KeyPath, list[str]], discriminators: dict[KeyPath, str]
) -> KeyPath:
    """Return the key path of an error: its loc without the union members and the "[key]" that pydantic adds."""
    key_path: KeyPath = ()
    is_tag = False
    for position, key in enumerate(error["loc"], start=1):
        if is_tag:
            is_tag = False
            continue
        if key in data if isinstance(data, dict) else isinstance(data, list) and key in range(len(data)):
            data = data[key]
        elif position < len(error["loc"]) or (error["type"] != "missing" and key not in allowed.get(key_path, [])):
            continue
        key_path = (*key_path, key)
        is_tag = key_path in discriminators
    if error["type"] in ("union_tag_not_found", "union_tag_invalid"):
        key_path = (*key_path, discriminators[key_path])
    return key_path


def _explain(error: ErrorDetails, key_path: KeyPath, document: YamlDocument, allowed: list[str]) -> tuple[str, str]:
    """Return the subject of the message ("... is invalid: ", or "" if the value is too long), and the problem."""
    kind, value = error["type"], error["input"]
    if kind == "union_tag_not_found":
        assert isinstance(value, dict)
        close = difflib.get_close_matches(str(key_path[-1]), value, n=1)
        return "", f"missing; it selects what else is allowed here{f'. Rename {close[0]!r}' if close else ''}"
    if kind == "missing":
        return "", "missing; it has no default"
    if kind == "extra_forbidden":
        allowed = [name for name in dict.fromkeys(allowed) if name != key_path[-1]]  # another union member has the key
        close = difflib.get_close_matches(str(key_path[-1]), allowed, n=1)
        hint = f"did you mean '{close[0]}'? Allowed" if close else "allowed"
        return "", f"unknown key; {hint} here: {', '.join(allowed) or 'no keys'}"
    if kind == "union_tag_invalid":
        *names, last = error["ctx"]["expected_tags"].split(", ")
        return f"{document.written.get(key_path, value)} is invalid: ", f"Input should be {', '.join(names)} or {last}"
    text = error["msg"].replace("an object", "a mapping").replace("a valid array", "a list")
    if kind in ("value_error", "assertion_error"):
        text = str(error["ctx"]["error"])
    if kind == "string_type" and isinstance(value, bool | int | float):
        text += "; put it in quotes"
    if error["loc"][-1:] == ("[key]",):
        return "the key is invalid: ", text
    if key_path in document.written:
        return f"{document.written[key_path]} is invalid: ", text
    if kind.endswith("_type") and isinstance(value, dict | list):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} is invalid: ", text
    return "", text
