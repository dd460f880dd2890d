"""Loading files and overrides, types, and the error message. test_yaml_document covers reading YAML."""

import enum
import re
from typing import Annotated, Any, Literal

import pydantic
import pytest

from common.errors import ConfigError
from core.config import BaseConfig, load_config_from_yaml
from core.config.base_config import NotSupportedYet, WithoutEffect


class Free(BaseConfig):
    """Accepts any values, so that tests can look at them."""

    x: Any = None
    y: Any = None
    z: Any = None


class Kind(enum.Enum):
    SHARE_ALL = "share_all"
    SHARE_NONE = "share_none"


class Rate(BaseConfig):
    constant: float | None = pydantic.Field(None, json_schema_extra={"one_of": "lr"})
    ramp: int | None = pydantic.Field(None, json_schema_extra={"one_of": "lr"})


class Task(BaseConfig):
    pos_weight: float = 1.0
    rate: Rate | None = None


class Block(BaseConfig):
    output_size: pydantic.PositiveInt
    betas: tuple[float, float] = (0.9, 0.999)


class Circle(BaseConfig):
    shape: Literal["circle"]
    radius: float


class Square(BaseConfig):
    shape: Literal["square"]
    side: float


class Training(BaseConfig):
    num_train_steps: pydantic.PositiveInt = 10
    save_dir: str = "/tmp/model"
    precision: Literal["bf16", "fp16"] | None = None
    amount: int | float | None = None

    @pydantic.field_validator("save_dir")
    @classmethod
    def _no_spaces(cls, save_dir: str) -> str:
        if " " in save_dir:
            raise ValueError("a directory without spaces is needed")
        return save_dir


class Config(BaseConfig):
    training: Training = Training()
    tasks: dict[str, Task] = pydantic.Field({})
    blocks: list[Block] = pydantic.Field([])
    kind: Kind = Kind.SHARE_NONE
    form: Annotated[Circle | Square, pydantic.Field(discriminator="shape")] | None = None
    by_kind: dict[Kind, int] = pydantic.Field({})


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def load(text, *overrides, config_type=Config):
        path = tmp_path / "c.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_config_from_yaml(config_type, "c.yaml", overrides)

    return load


@pytest.fixture
def read(load):
    """Return a function that loads `x: ...` and returns the value of x."""
    return lambda text, *overrides: load(text, *overrides, config_type=Free).x


@pytest.fixture
def message(load):
    def message(text, *overrides, config_type=Config):
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides, config_type=config_type)
        assert "errors.pydantic.dev" not in str(caught.value)
        assert not re.search(r"Value error|Training|Task\b|Block|Circle|Square|Config", str(caught.value))
        return str(caught.value)

    return message


# --- Files ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "c.yaml: the file is empty"),
        ("- 1\n", "c.yaml: the top level must be a mapping (lines of 'key: value')"),
        (b"a: 1\nb: \xff\n", "c.yaml: line 2: the text is not valid UTF-8"),
        ("a: 1\nb: [1, 2\n", "c.yaml: line 3, column 1: invalid YAML: "),
    ],
)
def test_an_unusable_file_is_an_error(message, text, expected):
    assert message(text).startswith(expected)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "file").write_text("a: 1")
    for name, reason in [("none.yaml", "No such file"), (".", "Is a directory"), ("file/a.yaml", "Not a directory")]:
        with pytest.raises(ConfigError, match=rf"^{re.escape(str(tmp_path / name))}: cannot read this file: {reason}"):
            load_config_from_yaml(Config, tmp_path / name)


def test_a_byte_order_mark_is_ignored(load):
    assert load(b"\xef\xbb\xbftraining: {num_train_steps: 3}").training.num_train_steps == 3


def test_the_order_of_keys_is_kept(load):
    assert list(load("tasks: {z: {}, a: {}, m: {}}").tasks) == ["z", "a", "m"]


@pytest.fixture
def variables(monkeypatch):
    monkeypatch.setenv("STEPS", "5")
    monkeypatch.setenv("DIR", "/d")


# --- Overrides ---

MODEL = """
x:
  tasks: {recap.engagement.is_favorited: {w: 1}, plain: {w: 1}}
  blocks: [{size: 1}, {size: 2}]
  none: null
"""


@pytest.mark.usefixtures("variables")
@pytest.mark.parametrize(
    ("override", "keys", "value"),
    [
        ("x.tasks.plain.w=2.0", ["tasks", "plain", "w"], 2.0),
        ("x.tasks[recap.engagement.is_favorited].w=2", ["tasks", "recap.engagement.is_favorited", "w"], 2),
        ("x.tasks['recap.engagement.is_favorited'].w=2", ["tasks", "recap.engagement.is_favorited", "w"], 2),
        ('x["tasks"]["recap.engagement.is_favorited"][w]=2', ["tasks", "recap.engagement.is_favorited", "w"], 2),
        ("[x].tasks[a]=1", ["tasks", "a"], 1),
        ("x.tasks[a=b]=1", ["tasks", "a=b"], 1),
        ("x.blocks[1].size=64", ["blocks", 1, "size"], 64),
        ("x.blocks.1.size=64", ["blocks", 1, "size"], 64),
        ("x.blocks[0]=null", ["blocks", 0], None),
        ("x.blocks=[{size: 3}]", ["blocks"], [{"size": 3}]),
        ("x.tasks={a: {w: 1e-4}}", ["tasks"], {"a": {"w": 1e-4}}),
        ("x.none.a.b=yes", ["none", "a", "b"], True),
        ("x.new.a[b.c]=1", ["new", "a", "b.c"], 1),
        ("x.tasks.0=1", ["tasks", "0"], 1),
        ("x.none=''", ["none"], ""),
        ("x.none=a=b", ["none"], "a=b"),
        ("x.none= 7 ", ["none"], 7),
        ("x.none=$STEPS", ["none"], 5),
        ("x.none='$$STEPS'", ["none"], "$STEPS"),
        ("x.none={$STEPS: '$STEPS'}", ["none"], {"$STEPS": "5"}),
        ("x.none=2020-01-01", ["none"], "2020-01-01"),
    ],
)
def test_an_override_sets_one_value(read, override, keys, value):
    actual = read(MODEL, override)
    for key in keys:
        actual = actual[key]
    assert (type(actual), actual) == (type(value), value)


def test_overrides_apply_in_order_and_leave_other_values_alone(read):
    data = read(MODEL, "x.tasks.plain.w=2", "x.tasks.plain={v: 1}", "x.tasks.plain.w=3", "x.tasks.plain.w=4")
    assert data == {
        "tasks": {"recap.engagement.is_favorited": {"w": 1}, "plain": {"v": 1, "w": 4}},
        "blocks": [{"size": 1}, {"size": 2}],
        "none": None,
    }


def test_an_override_through_an_alias_changes_no_other_value(load):
    text = "x: &a {b: {c: 1}, l: [1]}\ny: *a\nz: {<<: *a}\n"
    config = load(text, "y.b.c=2", "z.l[0]=3", "z.b.c=4", config_type=Free)
    assert (config.x, config.y, config.z) == (
        {"b": {"c": 1}, "l": [1]},
        {"b": {"c": 2}, "l": [1]},
        {"b": {"c": 4}, "l": [3]},
    )


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("x.tasks", "there is no '='"),
        ("", "there is no '='"),
        ("=1", "the key path is invalid at '=1'"),
        ("x..tasks=1", "the key path is invalid at '..tasks=1'"),
        (".x=1", "the key path is invalid at '.x=1'"),
        ("x.=1", "the key path is invalid at '.=1'"),
        ("x[a=1", "the key path is invalid at '[a=1'"),
        ("x[]=1", "the key path is invalid at '[]=1'"),
        ("x.tasks=", "no value after '='; write null, or '' for the empty string"),
        ("x.tasks=#1", "no value after '='"),
        (
            "x.blocks[2].size=1",
            "x.blocks has 2 items, numbered from 0; there is no item '2'; write x.blocks[0] for the",
        ),
        ("x.blocks[-1]=1", "x.blocks has 2 items, numbered from 0; there is no item '-1'; write x.blocks[0] for the"),
        (
            "x.blocks.size=1",
            "x.blocks has 2 items, numbered from 0; there is no item 'size'; write x.blocks[0] for the",
        ),
        ("x.tasks.plain.w.v=1", "x.tasks.plain.w is 1, which has no keys"),
        ("x=[1", "line 1, column 3: invalid YAML: "),
        ("x=a: b: c", "line 1, column 5: invalid YAML: "),
        ("x=\udce9", "the text is not valid UTF-8"),
        ("\udce9=1", "the text is not valid UTF-8"),
    ],
)
def test_the_error_for_an_invalid_override_quotes_it(message, override, expected):
    assert message(MODEL, override, config_type=Free).startswith(f"--set {override}: {expected}")


def test_an_item_of_a_list_can_be_selected_by_its_name(message, tmp_path):
    text = "x: {relations: [{name: reply, n: 1}, {name: fav, n: 2}, {name: twice}, {name: twice}, 3], empty: []}"
    path = tmp_path / "named.yaml"
    path.write_text(text)
    loaded = load_config_from_yaml(Free, path, ["x.relations[fav].n=5", "x.relations.reply.n=4", "x.relations[4]=6"])
    assert loaded.x["relations"][:2] == [{"name": "reply", "n": 4}, {"name": "fav", "n": 5}]
    assert loaded.x["relations"][4] == 6
    ambiguous = message(text, "x.relations[twice].n=1", config_type=Free)
    assert "x.relations has 5 items" in ambiguous
    assert "there is no item 'twice'; write x.relations[0]" in ambiguous
    assert message(text, "x.empty.a=1", config_type=Free).endswith("there is no item 'a'")


def test_errors_in_the_values_of_overrides_quote_the_override(message):
    assert message("training: {}\n", "training.num_train_steps=-5", "training.sav_dir=a", "tasks={a: {}, a: {}}") == (
        "c.yaml: 3 errors\n"
        "  training.num_train_steps (--set training.num_train_steps=-5): "
        "-5 is invalid: Input should be greater than 0\n"
        "  training.sav_dir (--set training.sav_dir=a): unknown key; did you mean 'save_dir'? "
        "Allowed here: num_train_steps, save_dir, precision, amount\n"
        "  tasks.a (--set tasks={a: {}, a: {}}): duplicate key, also on line 1"
    )


def test_an_error_in_an_override_of_a_parent_is_not_attributed_to_the_file(message):
    text = message("blocks:\n- output_size: 1\n- output_size: 1\n", "blocks=[{output_size: 0}]")
    assert "blocks[0].output_size (--set blocks=[{output_size: 0}]): 0 is invalid" in text


# --- Types ---


def test_lists_become_tuples_and_strings_become_enum_members(load):
    config = load("blocks: [{output_size: 3, betas: [0, 1]}]\nkind: share_all\nby_kind: {share_none: 2}\n")
    assert config.blocks == [Block(output_size=3, betas=(0.0, 1.0))]
    assert type(config.blocks[0].betas[0]) is float
    assert config.kind is Kind.SHARE_ALL
    assert config.by_kind == {Kind.SHARE_NONE: 2}


def test_the_only_implicit_conversion_is_from_int_to_float(load, message):
    class Typed(BaseConfig):
        i: int = 0
        f: float = 0.0
        b: bool = False
        s: str = ""

    assert type(load("f: 1", config_type=Typed).f) is float
    for text in ("i: 1.0", "i: '1'", "i: yes", "i: null", "f: '1'", "f: true", "b: 1", "b: 'yes'", "s: 1", "s: 2.0"):
        assert message(text, config_type=Typed).startswith(f"c.yaml: 1 error\n  {text[0]} (line 1): ")
    for text in (".nan", ".inf", "-.inf", "1e999"):
        assert f"f (line 1): {text} is invalid: Input should be a finite number" in message(
            f"f: {text}", config_type=Typed
        )


# --- Keys without effect ---


class Reader(BaseConfig):
    lanes: int = 8
    threads: WithoutEffect[int] = 4
    service: WithoutEffect[str] = None
    cache: NotSupportedYet = None


class ExampleConfig(BaseConfig):
    train: Reader = Reader()
    partitions: dict[str, Reader] = pydantic.Field({})
    more: list[Reader] = pydantic.Field([])


def test_one_warning_lists_the_keys_that_are_set_but_have_no_effect(load, caplog):
    text = (
        "train: &train {threads: 4, service: null, cache: false, lanes: 2}\n"
        "partitions:\n  a.b: {<<: *train, threads: 5}\n  c: {}\n  d: *train"
    )
    load(text, "more=[{service: x}]", config_type=ExampleConfig)
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        "c.yaml: these keys are accepted but have no effect: train.threads (line 1), partitions[a.b].threads (line 3), "
        "more[0].service (--set more=[{service: x}])"
    )


def test_there_is_no_warning_if_all_keys_have_an_effect(load, caplog):
    load("train: {lanes: 2, service: null, cache: null}", config_type=ExampleConfig)
    assert caplog.records == []


def test_the_error_for_a_key_that_is_not_supported_yet_says_where_it_is(message):
    assert message("train: {cache: null}\npartitions:\n  a: {cache: true}", config_type=ExampleConfig) == (
        "c.yaml: 1 error\n"
        "  partitions.a.cache (line 3): true is invalid: not supported yet; remove the key or set it to null"
    )


# --- The message ---


def test_unreadable_values_are_listed_with_the_other_errors(message):
    assert message("training: {save_dir: $SURELY_NOT_SET/a, num_train_steps: 0}\ntasks: {5: {}}\n") == (
        "c.yaml: 3 errors\n"
        "  training.save_dir (line 1): $SURELY_NOT_SET/a is invalid: "
        "the environment variable SURELY_NOT_SET is not set (write a dollar sign as $$)\n"
        "  training.num_train_steps (line 1): 0 is invalid: Input should be greater than 0\n"
        "  tasks.5 (line 2): YAML reads this key as int, but a key must be a string; quote it: '5'"
    )


def test_an_unset_variable_in_an_overridden_value_is_not_an_error(read):
    assert read("x: $SURELY_NOT_SET_ANYWHERE\n", "x=1") == 1


@pytest.mark.usefixtures("variables")
def test_the_message_shows_the_variable_that_a_value_came_from(message):
    assert "training.num_train_steps (line 1): '/d' (from $DIR) is invalid: " in message(
        "training: {num_train_steps: $DIR}"
    )


def test_one_message_lists_all_errors(message):
    text = """\
training:
  num_train_steps: -5
  sav_dir: a
  precision: fp8
  amount: a
tasks:
  recap.is_liked:
    pos_weight: [1]
  two words: 3
  ok: {rate: {}}
blocks:
- betas: [1, 2]
- output_size: ten
  betas: [1]
kind: share_some
form: {shape: circle, side: 1}
by_kind: {other: 1}
trainin: {}
"""
    assert message(text) == (
        "c.yaml: 15 errors\n"
        "  training.num_train_steps (line 2): -5 is invalid: Input should be greater than 0\n"
        "  training.sav_dir (line 3): unknown key; did you mean 'save_dir'? "
        "Allowed here: num_train_steps, save_dir, precision, amount\n"
        "  training.precision (line 4): 'fp8' is invalid: Input should be 'bf16' or 'fp16'\n"
        "  training.amount (line 5): 'a' is invalid: Input should be a valid integer or a valid number\n"
        "  tasks[recap.is_liked].pos_weight (line 8): a list is invalid: Input should be a valid number\n"
        "  tasks[two words] (line 9): 3 is invalid: Input should be a mapping\n"
        "  tasks.ok.rate (line 10): exactly one of constant, ramp must be set; currently set: none\n"
        "  blocks[0].output_size (line 12): missing; it has no default\n"
        "  blocks[1].output_size (line 13): 'ten' is invalid: Input should be a valid integer\n"
        "  blocks[1].betas[1] (line 14): missing; it has no default\n"
        "  kind (line 15): 'share_some' is invalid: Input should be 'share_all' or 'share_none'\n"
        "  form.radius (line 16): missing; it has no default\n"
        "  form.side (line 16): unknown key; allowed here: shape, radius\n"
        "  by_kind.other (line 17): the key is invalid: Input should be 'share_all' or 'share_none'\n"
        "  trainin (line 18): unknown key; did you mean 'training'? "
        "Allowed here: training, tasks, blocks, kind, form, by_kind"
    )


def test_keys_of_a_union_are_those_of_the_class_that_the_file_selects(message):
    """Even if a key has the name of a class."""
    assert message("form: {shape: circle, circle: 1, radius: wide, side: 2}") == (
        "c.yaml: 3 errors\n"
        "  form.radius (line 1): 'wide' is invalid: Input should be a valid number\n"
        "  form.circle (line 1): unknown key; allowed here: shape, radius\n"
        "  form.side (line 1): unknown key; allowed here: shape, radius"
    )


def test_a_boolean_for_a_string_gets_the_hint_to_quote_it(message):
    assert (
        "training.save_dir (line 1): no (false in YAML) is invalid: Input should be a valid string; put it in quotes"
        in (message("training: {save_dir: no}"))
    )


def test_the_message_of_a_validator_is_used(message):
    assert "save_dir (line 1): 'a b' is invalid: a directory without spaces is needed" in message(
        "training: {save_dir: a b}"
    )


def test_a_missing_key_at_the_top_level_has_no_line(message):
    assert message("betas: [1, 1]", config_type=Block) == "c.yaml: 1 error\n  output_size: missing; it has no default"


def test_a_broken_group_at_the_top_level_is_reported(message):
    assert message("{}", config_type=Rate) == (
        "c.yaml: 1 error\n  (top level): exactly one of constant, ramp must be set; currently set: none"
    )


def test_nothing_above_an_unreadable_value_is_checked(message):
    """A group cannot be checked while one of its members is unknown."""
    text = message("tasks: {a: {rate: {constant: $SURELY_NOT_SET_ANYWHERE}}}\nblocks: [{}]\n")
    assert text.startswith("c.yaml: 2 errors\n  tasks.a.rate.constant (line 1): ")
    assert "\n  blocks[0].output_size (line 2): missing" in text


def test_the_line_of_an_aliased_or_merged_value_is_the_line_where_it_is_written(message):
    text = message("tasks:\n  a: &a\n    pos_weight: x\n  b:\n    <<: *a\n")
    assert "tasks.a.pos_weight (line 3)" in text
    assert "tasks.b.pos_weight (line 3)" in text


def test_long_values_are_shortened(message):
    text = message(f"training: {{precision: {'x' * 1000}}}")
    assert len(text) < 200
    assert "…" in text


def test_a_key_path_in_a_message_can_be_used_in_an_override(load, message):
    """The only exception is a key that contains a bracket and both kinds of quotes."""
    for key in ("plain", "a.b", "a b", "a[b", "a]b", "it's", "", "0", "a=b", "é"):
        quoted = "'" + key.replace("'", "''") + "'"
        text = f"tasks: {{{quoted}: {{pos_weight: x}}}}"
        key_path = (
            message(text)
            .removeprefix("c.yaml: 1 error\n  ")
            .removesuffix(" (line 1): 'x' is invalid: Input should be a valid number")
        )
        assert load(text, f"{key_path}=2").tasks[key].pos_weight == 2


def test_a_key_with_dots_outside_brackets_gets_a_hint(message):
    text = "tasks: {recap.is_liked: {pos_weight: 1.0}}"
    error = message(text, "tasks.recap.is_liked.pos_weight=2.0")
    assert "no 'tasks.recap'; did you mean tasks[recap.is_liked]?" in error
