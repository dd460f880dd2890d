"""BaseConfig: strictness, groups and printing."""

import enum
import random
import struct
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml

from common.errors import ConfigError, UserError
from core.config import BaseConfig, load_config_from_yaml
from core.config.base_config import NotSupportedYet, WithoutEffect


class Color(enum.Enum):
    RED = "red"
    SHARE_NONE = "share: none"


class Rate(BaseConfig):
    constant: float | None = pydantic.Field(None, json_schema_extra={"one_of": "lr"})
    ramp: int | None = pydantic.Field(None, json_schema_extra={"one_of": "lr"})
    warm: str | None = pydantic.Field(None, json_schema_extra={"at_most_one_of": "start"})
    cold: str | None = pydantic.Field(None, json_schema_extra={"at_most_one_of": "start"})


class Everything(BaseConfig):
    zeta: int = 1  # deliberately not in alphabetical order
    alpha: float = 1e-7
    pair: tuple[float, float] = (0.9, 0.999)
    color: Color = Color.SHARE_NONE
    names: list[str] = pydantic.Field([])
    table: dict[str, str] = pydantic.Field({})
    free: dict[str, Any] = pydantic.Field({})
    rate: Rate | None = None
    by_color: dict[Color, int] = pydantic.Field({})
    model_name: str = ""
    unbounded: float = pydantic.Field(0.0, allow_inf_nan=True)


def test_errors_are_user_errors():
    assert issubclass(ConfigError, UserError)
    assert not issubclass(UserError, ValueError)  # pydantic would swallow it in a validator


@pytest.mark.parametrize(
    "values",
    [
        {"zeta": "1"},
        {"zeta": True},
        {"zeta": 1.0},
        {"alpha": float("inf")},
        {"alpha": float("nan")},
        {"zetta": 1},
        {"color": "red"},
        {"names": ("a",)},
    ],
)
def test_a_value_of_another_type_is_rejected(values):
    with pytest.raises(pydantic.ValidationError):
        Everything(**values)


def test_an_int_becomes_a_float_and_configs_are_frozen():
    config = Everything(alpha=3)
    assert type(config.alpha) is float
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        config.alpha = 4.0  # type: ignore[misc]


def test_defaults_are_validated():
    class Wrong(BaseConfig):
        steps: pydantic.PositiveInt = 0

    with pytest.raises(pydantic.ValidationError, match="greater than 0"):
        Wrong()


# --- Groups ---


@pytest.mark.parametrize("values", [{"constant": 0.0}, {"ramp": 0, "warm": ""}, {"ramp": 1, "cold": "x", "warm": None}])
def test_a_group_is_satisfied(values):
    """Zero and the empty string count as set. None does not, whether it is written or the default."""
    Rate(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "exactly one of constant, ramp must be set; currently set: none"),
        ({"constant": None}, "exactly one of constant, ramp must be set; currently set: none"),
        ({"constant": 0.0, "ramp": 0}, "exactly one of constant, ramp must be set; currently set: constant, ramp"),
        ({"ramp": 1, "warm": "a", "cold": "b"}, "at most one of warm, cold may be set; currently set: warm, cold"),
    ],
)
def test_the_error_for_a_broken_group_lists_its_fields_and_those_that_are_set(values, message):
    with pytest.raises(pydantic.ValidationError) as caught:
        Rate(**values)
    assert [error["msg"] for error in caught.value.errors()] == [f"Value error, {message}"]


def test_two_broken_groups_are_reported_together():
    with pytest.raises(pydantic.ValidationError, match=r"constant, ramp .*; at most one of warm, cold"):
        Rate(warm="a", cold="b")


def test_groups_are_inherited_and_extended():
    class Faster(Rate):
        jump: int | None = pydantic.Field(None, json_schema_extra={"one_of": "lr"})

    Faster(jump=1)
    with pytest.raises(
        pydantic.ValidationError, match="exactly one of constant, ramp, jump must be set; currently set: none"
    ):
        Faster()
    with pytest.raises(
        pydantic.ValidationError, match="exactly one of constant, ramp must be set; currently set: none"
    ):
        Rate()  # the parent is unchanged


def test_groups_can_be_declared_as_in_pydantic_1():
    with pytest.warns(DeprecationWarning, match="extra keyword arguments"):

        class Old(BaseConfig):
            a: int | None = pydantic.Field(None, one_of="g")  # type: ignore[call-overload]
            b: int | None = pydantic.Field(None, one_of="g")  # type: ignore[call-overload]

    Old(a=1)
    with pytest.raises(pydantic.ValidationError, match="exactly one of a, b must be set; currently set: a, b"):
        Old(a=1, b=1)


@pytest.mark.parametrize(
    "field",
    [
        pydantic.Field(json_schema_extra={"one_of": "g"}),
        pydantic.Field(0, json_schema_extra={"at_most_one_of": "g"}),
    ],
)
def test_a_group_member_whose_default_is_not_none_is_a_type_error(field):
    with pytest.raises(TypeError, match=r"Wrong\.a is in the group 'g', so its default must be None"):

        class Wrong(BaseConfig):
            a: int = field


def test_a_group_of_both_kinds_is_a_type_error():
    with pytest.raises(TypeError, match="'g' is both one_of and at_most_one_of"):

        class Wrong(BaseConfig):
            a: int | None = pydantic.Field(None, json_schema_extra={"one_of": "g"})
            b: int | None = pydantic.Field(None, json_schema_extra={"at_most_one_of": "g"})


# --- Printing ---

ODD_STRINGS = [
    "", " ", " a", "a ", "a b", "a: b", "a:", "#x", "a #x", "- a", "? a", "[", "{a: 1}", "&a", "*a",
    "!a", "|", ">", "%a", "@a", "`a", "'", '"', "it's", '"quoted"', "\\", "\\n", "a\nb", "\n", "a\n",
    "\na", " a\n  b\n", "a\r\nb", "\t", "a\tb", "\x00", "\x7f", "\x85", "\u2028", "\ufeff", "é", "日本語",
    "🙂", "\U0010ffff", "$", "$$", "$HOME", "${HOME}", "$$HOME", "$5", "a$", "${", "yes", "No", "on",
    "OFF", "true", "null", "~", "Null", "1", "-1", "+1", "010", "0x10", "0b1", "0o7", "1_000", "1.",
    ".5", "1.5", "1e5", "1E-5", "1.5e3", ".inf", "-.INF", ".nan", "inf", "nan", "12:30", "1:2:3",
    "2020-01-01", "2020-01-01T00:00:00Z", "<<", "=", "---", "...", "x" * 5000, "word " * 100,
]  # fmt: skip


def reload(config: BaseConfig, tmp_path: Path) -> Any:
    path = tmp_path / "printed.yaml"
    path.write_text(config.pretty_print(), encoding="utf-8", newline="")
    return load_config_from_yaml(type(config), path)


class Known(BaseConfig):
    """Has fields that nothing reads, one of them in a group."""

    used: int | None = pydantic.Field(None, json_schema_extra={"one_of": "kind"})
    later: NotSupportedYet = pydantic.Field(None, json_schema_extra={"one_of": "kind"})
    cache: NotSupportedYet = pydantic.Field(None)
    threads: WithoutEffect[pydantic.PositiveInt] = pydantic.Field(4)


@pytest.mark.parametrize("empty", [None, False, {}, []])
def test_an_unsupported_field_may_be_null_false_or_empty(empty):
    config = Known.model_validate({"used": 1, "cache": empty})
    assert config.cache is None
    assert config == Known(used=1)


@pytest.mark.parametrize("value", [True, 0, 1, "", "x", 0.0, {"a": None}, [None]])
def test_an_unsupported_field_rejects_other_values(value):
    for values in ({"used": 1, "cache": value}, {"later": value}):
        with pytest.raises(
            pydantic.ValidationError, match="not supported yet; remove the key or set it to null"
        ) as caught:
            Known.model_validate(values)
        assert caught.value.error_count() == 1


def test_an_unsupported_field_is_not_offered_as_a_choice_of_its_group():
    with pytest.raises(pydantic.ValidationError, match="exactly one of used must be set; currently set: none"):
        Known()


def test_a_field_without_effect_is_still_validated():
    assert Known(used=1, threads=2).threads == 2
    assert Known(used=1, threads=None).threads is None
    with pytest.raises(pydantic.ValidationError, match="greater than 0"):
        Known(used=1, threads=0)
    assert Known.fields_without_effect() == ["threads"]


def test_fields_that_nothing_reads_are_not_printed(tmp_path):
    config = Known(used=1, threads=2)
    assert config.pretty_print() == "used: 1\n"
    assert reload(config, tmp_path) == Known(used=1)


def test_pretty_print_returns_yaml_with_all_fields_in_order():
    text = Everything(names=["a", "1e5"], free={"x": None}).pretty_print()
    assert list(yaml.safe_load(text)) == list(Everything.model_fields)
    assert text.startswith(
        "zeta: 1\nalpha: 1.0e-07\npair:\n- 0.9\n- 0.999\ncolor: 'share: none'\nnames:\n- a\n- '1e5'\n"
    )
    assert "rate: null\n" in text


def test_an_empty_config_can_be_printed_and_loaded(tmp_path):
    class Nothing(BaseConfig):
        pass

    assert reload(Nothing(), tmp_path) == Nothing()


def test_unusual_strings_can_be_printed_and_loaded_as_values_and_keys(tmp_path):
    config = Everything(
        names=ODD_STRINGS, table={text: text for text in ODD_STRINGS}, free={"deep": [{"a": ODD_STRINGS}]}
    )
    assert reload(config, tmp_path) == config


def test_random_strings_can_be_printed_and_loaded(tmp_path):
    rng = random.Random(0)
    alphabet = "aZ0159_.:-+ex#'\"\\$&*!|>%@`{}[],?~= \n\t\r\x07\x85\u2028é日🙂\ufeff"
    texts = ["".join(rng.choices(alphabet, k=rng.randrange(12))) for _ in range(700)]
    config = Everything(names=texts, table={text: text for text in texts})
    assert reload(config, tmp_path) == config


def test_other_yaml_readers_see_the_same_strings():
    texts = [text for text in ODD_STRINGS if "$" not in text]
    assert yaml.safe_load(Everything(names=texts).pretty_print())["names"] == texts


def test_floats_can_be_printed_and_loaded_bit_for_bit(tmp_path):
    rng = random.Random(1)
    floats = [struct.unpack("d", rng.randbytes(8))[0] for _ in range(2000)]
    floats = [x for x in floats if x == x and abs(x) != float("inf")]
    floats += [0.0, -0.0, 5e-324, 1.7976931348623157e308, 1e16, 1e22, 1e-4, 0.1, 3e38, 1 / 3]

    class Floats(BaseConfig):
        values: list[float]

    loaded = reload(Floats(values=floats), tmp_path)
    assert [struct.pack("d", x) for x in loaded.values] == [struct.pack("d", x) for x in floats]


def test_all_other_types_can_be_printed_and_loaded(tmp_path):
    config = Everything(
        zeta=-(2**63),
        pair=(1.0, 2.0),
        color=Color.RED,
        rate=Rate(constant=0.5, warm="x"),
        free={"a": [1, 2.0, True, None, "1", {"b": []}]},
        by_color={Color.RED: 1, Color.SHARE_NONE: 2},
        unbounded=float("-inf"),
    )
    loaded = reload(config, tmp_path)
    assert loaded == config
    assert isinstance(loaded.free["a"][0], int)
    assert isinstance(loaded.free["a"][1], float)
