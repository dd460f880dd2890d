"""Lists the fields of configurations and records which of them code reads."""

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
"""One learning rate of each kind."""


class Recorder:
    """Records which fields are read, except by functions that read all fields (validation, printing, identity)."""

    _READ_ALL_FIELDS = frozenset({"load_config_from_yaml", "pretty_print", "model_dump", "identity"})

    def __init__(self) -> None:
        self.fields: set[Field] = set()

    def patch(self, patcher: pytest.MonkeyPatch) -> None:
        def read(config: BaseConfig, name: str) -> typing.Any:
            kind = type(config)
            if name in kind.model_fields and (kind, name) not in self.fields and not self._reads_all_fields():
                self.fields.add((kind, name))
            return object.__getattribute__(config, name)

        patcher.setattr(BaseConfig, "__getattribute__", read, raising=False)

    def _reads_all_fields(self) -> bool:
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            if frame.f_code.co_name in self._READ_ALL_FIELDS:
                return True
            frame = frame.f_back
        return False


def configs_within(value: typing.Any) -> Iterator[BaseConfig]:
    """Yield a configuration and all configurations inside it."""
    if isinstance(value, BaseConfig):
        yield value
        value = [getattr(value, name) for name in type(value).model_fields]
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []:
        yield from configs_within(item)


def fields_within(config: BaseConfig) -> set[Field]:
    """Return the fields that code should read. test_original_keys covers the fields that nothing reads."""
    return {
        (type(part), name)
        for part in configs_within(config)
        for name, field in type(part).model_fields.items()
        if not (field.annotation is type(None) or name in type(part).fields_without_effect())
    }


def names(fields: set[Field]) -> list[str]:
    return sorted(f"{kind.__name__}.{name}" for kind, name in fields)


def config_classes(kind: type[BaseConfig], classes: set[type[BaseConfig]]) -> set[type[BaseConfig]]:
    """Add a configuration class and all classes that its fields can hold to `classes`, and return `classes`."""

    def visit(hint: typing.Any) -> None:
        if isinstance(hint, type) and not typing.get_args(hint) and issubclass(hint, BaseConfig):
            config_classes(hint, classes)
        for argument in typing.get_args(hint):
            visit(argument)

    if kind not in classes:
        classes.add(kind)
        for field in kind.model_fields.values():
            visit(field.annotation)
    return classes
