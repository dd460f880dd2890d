"""Defines the base class of all configurations.

Owns strictness, groups of mutually exclusive fields, and keys that are accepted but unused. Does not own reading YAML
(config_load) or writing it (yaml_writer).
"""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Self, TypeVar

import pydantic
from pydantic_core import InitErrorDetails, PydanticCustomError

from core.config.yaml_document import KeyPath
from core.config.yaml_writer import to_yaml

# --- Keys from another program's YAML that this program does not implement. ---


def _refuse(value: Any) -> None:
    if not (value is None or value is False or value in ([], {})):
        raise ValueError("not supported yet; remove the key or set it to null")


NotSupportedYet = Annotated[None, pydantic.BeforeValidator(_refuse), pydantic.Field(exclude=True)]
"""Type of a field whose feature does not exist yet. Accepts null, false and empty values, and stores null."""

_T = TypeVar("_T")
WithoutEffect = Annotated[_T | None, pydantic.Field(exclude=True, json_schema_extra={"without_effect": True})]
"""WithoutEffect[T]: type of a field that holds a T or null and that nothing reads. The loader warns if it is not null.

Fields of both types are neither printed nor part of a run's identity."""


def located_errors(problems: Mapping[KeyPath, str]) -> pydantic.ValidationError:
    """Return an exception for a validator that checks values in several parts of a configuration.

    Args:
      problems: what is wrong with the value at each key path, which begins at the configuration of the validator.
    """
    details = [
        InitErrorDetails(
            type=PydanticCustomError("located", "{problem}", {"problem": problem}),
            loc=key_path,
            input=None,
        )
        for key_path, problem in problems.items()
    ]
    return pydantic.ValidationError.from_exception_data("configuration", details)


class BaseConfig(pydantic.BaseModel):
    """A typed, immutable configuration that rejects unknown keys, implicit conversions, infinities and NaN.

    Declare mutually exclusive fields as a group, with a name that they share within the class:

        adam: AdamConfig | None = pydantic.Field(None, json_schema_extra={"one_of": "optimizer"})
        sgd: SgdConfig | None = pydantic.Field(None, json_schema_extra={"one_of": "optimizer"})

    A `one_of` group needs exactly one member that is set (is not None); an `at_most_one_of` group allows one or none.
    A member whose default is not None, or a group of both kinds, raises TypeError at the class definition.

    Write custom checks as `field_validator`s, or as `model_validator`s with mode="after". A model validator with
    another mode passes Python data to the fields, and strict pydantic then rejects a list for a tuple.
    """

    model_config = pydantic.ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),  # allow field names that start with model_
        ser_json_inf_nan="constants",  # print infinity, not null, for fields that allow it
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
                    raise TypeError(f"{cls.__name__}.{name} is in the group '{group}', so its default must be None")
                known_kind, members = cls._groups.setdefault(group, (kind, []))
                if known_kind != kind:
                    raise TypeError(f"{cls.__name__}: the group '{group}' is both one_of and at_most_one_of")
                members.append(name)

    @classmethod
    def fields_without_effect(cls) -> list[str]:
        """Return the names of the fields of type WithoutEffect."""
        extras = {name: field.json_schema_extra for name, field in cls.model_fields.items()}
        return [name for name, extra in extras.items() if isinstance(extra, dict) and "without_effect" in extra]

    @classmethod
    def broken_groups(cls, set_fields: Collection[str]) -> list[str]:
        """Return a message for each group that is violated if exactly the fields `set_fields` are set."""
        messages = []
        for kind, members in cls._groups.values():
            chosen = [name for name in members if name in set_fields]
            if len(chosen) > 1 or (kind == "one_of" and not chosen):
                allowed = [name for name in members if cls.model_fields[name].annotation is not type(None)]
                names = ", ".join(allowed)
                rule = f"exactly one of {names} must" if kind == "one_of" else f"at most one of {names} may"
                messages.append(f"{rule} be set; currently set: {', '.join(chosen) or 'none'}")
        return messages

    @pydantic.model_validator(mode="after")
    def _groups_hold(self) -> Self:
        set_fields = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if broken := self.broken_groups(set_fields):
            raise ValueError("; ".join(broken))
        return self

    def pretty_print(self) -> str:
        """Return YAML with all fields that have an effect, in order of definition.

        `load_config_from_yaml` reads it back as an equivalent configuration.
        """
        return to_yaml(self.model_dump(mode="json"))
