"""The fields of configurations: which there are, and which of them code reads."""

import sys
import typing
from collections.abc import Iterator
from types import FrameType

import pytest

from core.config import BaseConfig

Field = tuple[type[BaseConfig], str]

RATES = [
    "{constant: 0.01}",
    "{linear_ramp_to_constant: {learning_rate: 0.01, num_ramp_steps: 1}}",
    "{linear_ramp_to_cosine: {learning_rate: 0.01, final_learning_rate: 0.001, num_ramp_steps: 1, final_num_steps: 5}}",
    "{piecewise_constant: {learning_rate_boundaries: [1], learning_rate_values: [0.01, 0.001]}}",
]
"""A learning rate of each kind."""


class Recorder:
    """Which fields are read, less what validation, printing and the run's identity read of all alike."""

    _OF_ALL_ALIKE = frozenset({"load_config_from_yaml", "pretty_print", "model_dump", "identity"})

    def __init__(self) -> None:
        self.fields: set[Field] = set()

    def patch(self, patcher: pytest.MonkeyPatch) -> None:
        def read(config: BaseConfig, name: str) -> typing.Any:
            kind = type(config)
            if name in kind.model_fields and (kind, name) not in self.fields and not self._is_of_all_alike():
                self.fields.add((kind, name))
            return object.__getattribute__(config, name)

        patcher.setattr(BaseConfig, "__getattribute__", read, raising=False)

    def _is_of_all_alike(self) -> bool:
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            if frame.f_code.co_name in self._OF_ALL_ALIKE:
                return True
            frame = frame.f_back
        return False


def configs_within(value: typing.Any) -> Iterator[BaseConfig]:
    """A configuration and all below it."""
    if isinstance(value, BaseConfig):
        yield value
        value = [getattr(value, name) for name in type(value).model_fields]
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []:
        yield from configs_within(item)


def fields_within(config: BaseConfig) -> set[Field]:
    """Those that are meant to be read: of the others it is known that nothing does (test_original_keys)."""
    return {
        (type(part), name)
        for part in configs_within(config)
        for name, field in type(part).model_fields.items()
        if not (field.annotation is type(None) or name in type(part).fields_without_effect())
    }


def names(fields: set[Field]) -> list[str]:
    return sorted(f"{kind.__name__}.{name}" for kind, name in fields)


def config_classes(kind: type[BaseConfig], found: set[type[BaseConfig]]) -> set[type[BaseConfig]]:
    """A class of configurations and all that its fields can hold."""

    def visit(hint: typing.Any) -> None:
        if isinstance(hint, type) and not typing.get_args(hint) and issubclass(hint, BaseConfig):
            config_classes(hint, found)
        for argument in typing.get_args(hint):
            visit(argument)

    if kind not in found:
        found.add(kind)
        for field in kind.model_fields.values():
            visit(field.annotation)
    return found
