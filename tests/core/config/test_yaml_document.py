"""The YAML dialect, variable substitution, and the origins of values."""

import re
from typing import Any

import pytest

from common.errors import ConfigError
from core.config.yaml_document import KeyPath, YamlDocument, compose


def read(text: str) -> Any:
    """Return the value of x in `x: ...`."""
    document = YamlDocument(text, "c.yaml")
    assert document.errors == {}
    return document.data["x"]


def errors(text: str) -> list[tuple[KeyPath, str, str]]:
    """Return the key path, origin and message of each value that cannot be read."""
    document = YamlDocument(text, "c.yaml")
    return [(key_path, document.origin(key_path)[-1], message) for key_path, message in document.errors.items()]


def fatal_error(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        YamlDocument(text, "c.yaml")
    return str(caught.value)


# --- The dialect ---


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[(text, None) for text in ("", "~", "null", "Null", "NULL")],
        *[(text, True) for text in ("yes", "Yes", "on", "ON", "true", "TRUE", "True")],
        *[(text, False) for text in ("no", "NO", "off", "Off", "false", "False")],
        *[("0", 0), ("-7", -7), ("+7", 7), ("1_000", 1000), ("0x1F", 31), ("-0b11", -3), ("-0", 0)],
        ("0b" + "0" * 120 + "11", 3),
        *[(str(2**64 - 1), 2**64 - 1), (str(-(2**63)), -(2**63))],
        *[("1e-4", 1e-4), ("1E5", 1e5), ("1e+5", 1e5), ("-2.5e3", -2500.0), (".5", 0.5), ("1.", 1.0), ("1_0.5", 10.5)],
        *[(".inf", float("inf")), ("-.Inf", float("-inf")), ("0.0", 0.0), ("00.5", 0.5)],
        *[(text, text) for text in ("2020-01-01", "2020-01-01 10:00:00", "12:30", "1:2:3", "010", "0o7", "N", "=")],
        *[(text, text) for text in ("1e", "e5", ".", "-e", "1.2.3", "nan", "inf", "tRUE", "1 000", "0x", "a b", "<<")],
        *[("'1'", "1"), ('"yes"', "yes"), ("'null'", "null"), ("''", ""), ("!!str 5", "5"), ('"\\t"', "\t")],
        *[("[1, a, [2.0]]", [1, "a", [2.0]]), ("{a: {b: 1}}", {"a": {"b": 1}}), ("[]", []), ("{}", {})],
        *[("|\n  a\n  b\n", "a\nb\n"), (">-\n  a\n  b", "a b"), ("a\n  b", "a b")],
    ],
)  # fmt: skip
def test_a_scalar_is_read_with_its_type(text, value):
    actual = read(f"x: {text}\n")
    assert (type(actual), actual) == (type(value), value)


def test_anchors_and_merge_keys_are_resolved():
    data = read("""
    x:
      a: &a {p: 1, q: 2}
      b: &b {q: 3, r: 4}
      one: {q: 9, <<: *a}
      both: {<<: [*a, *b], s: 5}
      alias: *b
      chain: &c {<<: *a, t: 6}
      far: {<<: *c}
      quoted: {"<<": 1}
    """)
    assert data["one"] == {"p": 1, "q": 9}
    assert data["both"] == {"p": 1, "q": 2, "r": 4, "s": 5}
    assert data["alias"] == {"q": 3, "r": 4}
    assert data["far"] == {"p": 1, "q": 2, "t": 6}
    assert data["quoted"] == {"<<": 1}


def test_aliases_are_copies():
    data = YamlDocument("x: &a {b: [1]}\ny: *a\nz: {<<: *a}\n", "c.yaml").data
    data["y"]["b"].append(2)
    assert data == {"x": {"b": [1]}, "y": {"b": [1, 2]}, "z": {"b": [1]}}


def test_a_duplicate_key_is_an_error():
    assert errors("t:\n  a: 1\n  b: 1\n  'a': 2\n") == [(("t", "a"), "line 4", "duplicate key, also on line 2")]


@pytest.mark.parametrize(("key", "kind"), [("5", "int"), ("yes", "bool"), ("1e5", "float"), ("~", "null")])
def test_a_key_that_is_not_a_string_is_an_error(key, kind):
    assert errors(f"x:\n  {key}: 1\n") == [
        (("x", key), "line 2", f"YAML reads this key as {kind}, but a key must be a string; quote it: '{key}'")
    ]
    assert read(f"x: {{'{key}': 1}}") == {key: 1}


def test_a_key_that_is_a_list_is_an_error():
    assert errors("x: {[1, 2]: {}}") == [(("x", "?"), "line 1", "a key must be a string")]


@pytest.mark.parametrize(
    "text", ["x: &a [*a]", "x: &a {b: *a}", "x: &a {b: [1, *a, *a]}", "x: &a {<<: *a}", "x: &a {<<: [{b: 1}, *a]}"]
)
def test_an_anchor_that_contains_itself_is_an_error(text):
    assert all("itself" in message for _, _, message in errors(text))
    assert errors(text)


def test_deep_nesting_is_an_error():
    assert read(f"x: {'[' * 90}{']' * 90}") is not None
    [(_, _, message)] = errors(f"x: {'[' * 150}{']' * 150}")
    assert "nested too deeply" in message
    assert fatal_error(f"x: {'[' * 1000}{']' * 1000}") == "c.yaml: the YAML is nested too deeply"


def test_a_long_chain_of_merges_is_an_error():
    def chain(length: int) -> str:
        links = [f"a{n}: &a{n} {{<<: *a{n - 1}}}\n" for n in range(1, length)]
        return "a0: &a0 {x: 1}\n" + "".join(links)

    assert YamlDocument(chain(90), "c.yaml").data["a89"] == {"x": 1}
    assert {message for _, _, message in errors(chain(150))} == {"the YAML is nested too deeply"}


@pytest.mark.parametrize(
    "link", ["[*b, *b, *b]", "{p: *b, q: *b}", "{<<: [*b, *b]}", "{<<: *b, p: {<<: [*b, *b]}}"]
)  # fmt: skip
def test_aliases_that_multiply_are_rejected(link):
    """A billion laughs: each line doubles the size of the line before it."""
    lines = "".join(f"a{n}: &a{n} {link.replace('*b', f'*a{n - 1}')}\n" for n in range(1, 75))
    assert fatal_error("a0: &a0 {k: 1}\n" + lines) == (
        "c.yaml: more than 200,000 keys and values (each use of an alias counts again)"
    )


def test_an_override_cannot_multiply_aliases_either():
    document = YamlDocument("x: 1\n", "c.yaml")
    node = compose("[&a [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]" + "".join(
        f", &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in zip("abcde", "bcdef", strict=True)
    ) + "]", "--set x")  # fmt: skip
    assert node is not None
    with pytest.raises(ConfigError, match=r"^--set x: more than 200,000 keys and values"):
        document.put(("x",), node, "--set x")


def test_a_configuration_with_thousands_of_values_is_read():
    assert len(read(f"x: [{', '.join(['0.5'] * 10_000)}]")) == 10_000


@pytest.mark.parametrize(
    "text", ["x: !!python/object:os.system a", "x: !!timestamp 2020-01-01", "x: !!set {a}", "x: !t [1]"]
)
def test_an_unsupported_tag_is_an_error(text):
    [(key_path, origin, message)] = errors(text)
    assert (key_path, origin) == (("x",), "line 1")
    assert re.fullmatch(r"the tag \S+ is not supported", message)


@pytest.mark.parametrize("number", [str(2**64), str(-(2**63) - 1), "9" * 5000, "0x" + "f" * 5000])
def test_an_integer_of_more_than_64_bits_is_an_error(number):
    [(_, _, message)] = errors(f"x: {number}")
    assert message.endswith("is invalid: integers are limited to 64 bits")
    assert len(message) < 120


# --- Texts ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "c.yaml: the file is empty"),
        ("# nothing\n\n", "c.yaml: the file is empty, apart from comments: # nothing"),
        ("- 1\n", "c.yaml: the top level must be a mapping (lines of 'key: value')"),
        ("null\n", "c.yaml: the top level must be a mapping (lines of 'key: value')"),
        ("a: 1\nb: \x07\n", "c.yaml: line 2: the character 0x7 is not allowed"),
    ],
)
def test_a_text_without_a_mapping_is_an_error(text, expected):
    assert fatal_error(text) == expected


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("a: 1\nb: [1, 2\n", "line 3, column 1"),
        ("a: 1\n  b: 2\n", "line 2, column 4"),
        ("a: 1\n\tb: 2\n", "line 2, column 1"),
        ("a: *b\n", "line 1, column 4"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1"),
    ],
)
def test_a_syntax_error_is_reported_with_line_and_column(text, position):
    assert fatal_error(text).startswith(f"c.yaml: {position}: invalid YAML: ")
    assert "\n" not in fatal_error(text)


# --- Substitution ---


@pytest.fixture
def variables(monkeypatch):
    for name, value in {
        "STEPS": "5",
        "DIR": "/d",
        "EMPTY": "",
        "DATE": "2020-01-01",
        "LIST": "[1]",
        "MONEY": "$DIR",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("UNSET", raising=False)


@pytest.mark.usefixtures("variables")
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$STEPS", 5),
        ("${STEPS}", 5),
        ("1${STEPS}", 15),
        ("-${STEPS}e-1", -0.5),
        ("'$STEPS'", "5"),
        ('"${STEPS}"', "5"),
        ("!!str $STEPS", "5"),
        ("$DIR/$STEPS", "/d/5"),
        ("${DIR}x$STEPS", "/dx5"),
        ("|\n  $DIR\n", "/d\n"),
        ("$EMPTY", None),
        ("'$EMPTY'", ""),
        ("$DATE", "2020-01-01"),
        ("$LIST", "[1]"),
        ("$MONEY", "$DIR"),
        ("$$STEPS", "$STEPS"),
        ("$$", "$"),
        ("$$$STEPS", "$5"),
        ("a$$b", "a$b"),
        ("[$STEPS, {a: $STEPS}]", [5, {"a": 5}]),
        ("{$STEPS: 1}", {"$STEPS": 1}),
        ("1 # $UNSET ${", 1),
    ],
)
def test_variables_are_substituted(text, value):
    actual = read(f"x: {text}\n")
    assert (type(actual), actual) == (type(value), value)


@pytest.mark.usefixtures("variables")
def test_all_undefined_variables_are_reported():
    unset = "the environment variable {} is not set (write a dollar sign as $$)"
    assert errors("# $UNSET\nx: ${UNSET}/a\ny: 1\nz: [1, $UNSET_2]\n") == [
        (("x",), "line 2", "${UNSET}/a is invalid: " + unset.format("UNSET")),
        (("z", 1), "line 4", "$UNSET_2 is invalid: " + unset.format("UNSET_2")),
    ]


@pytest.mark.parametrize("text", ["${HOME", "$5", "a$", "$ HOME", "${}", "${A-b}", "${5}", "$é", "'${HOME'"])
def test_a_malformed_variable_is_an_error(text):
    [(key_path, _, message)] = errors(f"x: {text}")
    assert key_path == ("x",)
    assert "dollar sign as $$" in message


@pytest.mark.parametrize("value", ["{constant: ${LR}}", "[1, ${LR}]", "{${LR}: 1}", "{a: x${LR}y}"])
def test_braces_of_a_variable_inside_a_flow_collection_are_explained(value, monkeypatch):
    monkeypatch.setenv("LR", "0.5")
    assert fatal_error(f"a: 1\nx: {value}\n").endswith(". Inside { } and [ ], write $LR instead of ${LR}")


def test_other_braces_are_not_explained_as_a_variable():
    assert "$" not in fatal_error("x: {a: b{c}}")


# --- Origins ---


@pytest.mark.usefixtures("variables")
def test_scalars_are_kept_as_the_user_wrote_them():
    document = YamlDocument("a: 1e-3\nb: 'c'\nd: no\ne: $DIR\nf:\ng: 0x1F\n", "c.yaml")
    assert document.written == {
        ("a",): "1e-3",
        ("b",): "'c'",
        ("d",): "no (false in YAML)",
        ("e",): "'/d' (from $DIR)",
        ("f",): "nothing (null in YAML)",
        ("g",): "0x1F",
    }


def test_origins_are_lines_and_sort_in_file_order():
    document = YamlDocument("a: {b: [1,\n  2]}\nc: &c\n  d: 1\ne: {<<: *c}\n", "c.yaml")
    assert document.origin(())[-1] == ""
    assert document.origin(("a", "b", 1))[-1] == "line 2"
    assert document.origin(("e", "d"))[-1] == "line 4", "the origin of a merged key is where it is written"
    assert document.origin(("a", "missing"))[-1] == "line 1", "a missing key has the origin of its parent"
    paths = [("a", "b", 1), ("a",), ("c",), (), ("c", "d")]
    assert sorted(paths, key=document.origin) == [(), ("a",), ("a", "b", 1), ("c",), ("c", "d")]


def test_put_replaces_value_origin_and_errors():
    document = YamlDocument("a:\n  b: $SURELY_NOT_SET_ANYWHERE\n  c: 2\n", "c.yaml")
    node = compose("{d: 1}", "--set a.b")
    assert node is not None
    document.put(("a", "b"), node, "--set a.b")
    assert document.data == {"a": {"b": {"d": 1}, "c": 2}}
    assert document.errors == {}
    assert document.origin(("a", "b", "d"))[-1] == "--set a.b"
    assert document.origin(("a", "c"))[-1] == "line 3"
    document.put(("a", "a"), node, "--set a.a")
    paths = [("a", "a"), ("a", "b"), ("a", "c")]
    assert sorted(paths, key=document.origin) == [("a", "c"), ("a", "b"), ("a", "a")], (
        "first the file, then overrides in order"
    )
