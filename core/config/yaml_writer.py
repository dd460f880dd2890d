"""Writes plain data as YAML that yaml_document reads back unchanged. All configurations are written with it."""

import re
import sys
from typing import Any

import yaml


def to_yaml(data: Any, *, flow: bool = False) -> str:
    """Return a YAML document, which ends with a line break.

    Dollar signs in values are doubled, because the loader substitutes variables. A string that is not a simple word is
    quoted, because YAML readers disagree about `1e5`, `010` and `12:30`.

    Args:
      data: mappings with strings as keys, lists and scalars. Mappings keep their order.
      flow: write on one line, as `{a: 1, b: [2, 3]}`. A scalar is on one line anyway.
    """
    text: str = yaml.dump(
        _escape_dollars(data),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=sys.maxsize,
        default_flow_style=flow,
    )
    return text.removesuffix("...\n")  # PyYAML ends a document that is a plain scalar


class _Dumper(yaml.SafeDumper):
    """Quotes every string that isn't a simple word."""


def _represent_str(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    is_word = re.fullmatch(r"[A-Za-z_/][A-Za-z0-9_./-]*", text) is not None  # PyYAML quotes yes, null and the like
    style = None if is_word else "'" if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_str)


def _escape_dollars(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escape_dollars(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escape_dollars(item) for item in value]
    return value.replace("$", "$$") if isinstance(value, str) else value
