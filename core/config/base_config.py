"""The base class of every configuration, and the errors that a user causes.

Owns: strictness, groups of fields that exclude each other, keys that are known but not used, printing as YAML. Not:
reading YAML (config_load).
"""

import re
import sys
from collections.abc import Collection
from typing import Annotated, Any, ClassVar, Self, TypeVar

import pydantic
import yaml

# --- Keys of another program's YAML, for which nothing here does what they say. ---


def _refuse(value: Any) -> None:
    if not (value is None or value is False or value in ([], {})):
        raise ValueError("not supported yet; leave it out, or null")


NotSupportedYet = Annotated[None, pydantic.BeforeValidator(_refuse), pydantic.Field(exclude=True)]
"""Type of a field whose feature does not exist yet: it may be null, false or empty, and is null then."""

_T = TypeVar("_T")
WithoutEffect = Annotated[_T | None, pydantic.Field(exclude=True, json_schema_extra={"without_effect": True})]
"""WithoutEffect[T]: type of a field that is a T or null and read by nothing; the loader warns where it is not null.

Neither kind of field is printed, or part of what makes a run this run."""


class BaseConfig(pydantic.BaseModel):
    """A typed, immutable configuration that refuses unknown keys, implicit conversions, infinities and NaN.

    Fields that exclude each other are declared as a group, by a name that is shared within the class:

        adam: AdamConfig | None = pydantic.Field(None, json_schema_extra={"one_of": "optimizer"})
        sgd: SgdConfig | None = pydantic.Field(None, json_schema_extra={"one_of": "optimizer"})

    Of a `one_of` group exactly one member is set (is not None), of an `at_most_one_of` group one or none. A
    member with another default than None, or a group of both kinds, is a TypeError at the class definition.

    Checks of one's own are `field_validator`s, or `model_validator`s with mode="after". A model validator of
    another mode hands Python data to the fields, in which strict pydantic takes no list for a tuple.
    """

    model_config = pydantic.ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),  # fields may be called model_...
        ser_json_inf_nan="constants",  # a field that does allow infinity prints it, not null
    )

    _groups: ClassVar[dict[str, tuple[str, list[str]]]] = {}  # name -> (kind, fields)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        cls._groups = {}
        for name, field in cls.model_fields.items():
            extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
            for kind in {"one_of", "at_most_one_of"} & extra.keys():
                group = str(extra[kind])
                if field.default is not None or field.default_factory is not None:
                    raise TypeError(f"{cls.__name__}.{name} is in the group '{group}': it must default to None")
                known_kind, members = cls._groups.setdefault(group, (kind, []))
                if known_kind != kind:
                    raise TypeError(f"{cls.__name__}: the group '{group}' is both one_of and at_most_one_of")
                members.append(name)

    @classmethod
    def fields_without_effect(cls) -> list[str]:
        """The fields of type WithoutEffect."""
        extras = {name: field.json_schema_extra for name, field in cls.model_fields.items()}
        return [name for name, extra in extras.items() if isinstance(extra, dict) and "without_effect" in extra]

    @classmethod
    def broken_groups(cls, set_fields: Collection[str]) -> list[str]:
        """A message for each group that is violated where `set_fields` and no others are set."""
        messages = []
        for kind, members in cls._groups.values():
            chosen = [name for name in members if name in set_fields]
            if len(chosen) > 1 or (kind == "one_of" and not chosen):
                rule = "exactly one of" if kind == "one_of" else "at most one of"
                found = ", ".join(chosen) or "none"
                choice = [name for name in members if cls.model_fields[name].annotation is not type(None)]
                messages.append(f"{rule} {', '.join(choice)} must be set; set: {found}")
        return messages

    @pydantic.model_validator(mode="after")
    def _groups_hold(self) -> Self:
        set_fields = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if broken := self.broken_groups(set_fields):
            raise ValueError("; ".join(broken))
        return self

    def pretty_print(self) -> str:
        """YAML of all fields that have an effect, in their order, that `load_config_from_yaml` reads back to a config
        of equal effect."""
        plain = _escape_dollars(self.model_dump(mode="json"))
        return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=sys.maxsize)


class _Dumper(yaml.SafeDumper):
    """Quotes every string that is not plainly a word: readers disagree about `1e5`, `010` or `12:30`."""


def _represent_str(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    is_word = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", text) is not None  # PyYAML quotes yes, null and the like
    style = None if is_word else "'" if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_str)


def _escape_dollars(value: Any) -> Any:
    """Doubles the dollars in values, where the loader substitutes variables; in keys it does not."""
    if isinstance(value, dict):
        return {key: _escape_dollars(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escape_dollars(item) for item in value]
    return value.replace("$", "$$") if isinstance(value, str) else value
