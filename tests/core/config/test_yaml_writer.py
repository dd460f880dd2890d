"""tests/core/config/test_base_config.py prints and loads whole configurations with unusual strings."""

import sys
from pathlib import Path

import pytest

from core.config.yaml_document import YamlDocument
from core.config.yaml_writer import to_yaml

NAMES = [
    "1e5", "010", "0x1F", "1_000", "12:30", "2020-01-01", ".5", "+1", "-", "yes", "No", "on", "null", "~", "", "<<",
    "$HOME", "${x}", "$$", "it's", '"q"', "\\", "a: b", "a #b", "{a}", "[1]", "*a", "&a", "!a", "%", "@", "`",
    " a", "a ", "  ", "\ta", "a\nb", "a\r", "\x00", "\x1b", "\x7f", "a\x85", "\xa0a", "\u2028", "\u2029", "\ufeffa",
    "\ufffe", "🙂", "👩\u200d👩", "\U0010ffff", "日本語", "x" * 200_000, "a  b " * 500, "...", "---",
]  # fmt: skip


def loaded(text: str, tmp_path: Path) -> dict[str, object]:
    """Return what the loader reads, from a file."""
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8", newline="")
    document = YamlDocument(path.read_bytes().decode(), "x")
    assert document.errors == {}
    return document.data


@pytest.mark.parametrize("flow", [False, True])
def test_the_loader_reads_back_any_name(tmp_path, flow):
    data = {"list": NAMES, "deep": [{"name": name} for name in NAMES], "keys": dict.fromkeys(NAMES, 1)}
    assert loaded(to_yaml(data, flow=flow), tmp_path) == data


def test_the_loader_reads_back_every_character_at_both_ends_of_a_name(tmp_path):
    """Above U+2100, only some are tried. Surrogates are not characters."""
    codes = [*range(0x2100), *range(0x2100, 0xD800, 997), *range(0xE000, sys.maxunicode + 1, 997), 0xFEFF, 0xFFFF]
    data = {"names": [f"{chr(code)}a{chr(code)}" for code in codes]}
    assert loaded(to_yaml(data), tmp_path) == data


def test_a_document_in_flow_style_and_a_scalar_are_one_line():
    assert to_yaml({"a": 1, "b": ["x", "1"]}, flow=True) == "{a: 1, b: [x, '1']}\n"
    assert [to_yaml(scalar) for scalar in ("a", "1", "a\nb", 5, None)] == ["a\n", "'1'\n", '"a\\nb"\n', "5\n", "null\n"]
    assert to_yaml({"b": 1, "a": []}) == "b: 1\na: []\n"


def test_paths_without_odd_characters_need_no_quotes():
    assert to_yaml(["runs/a-b.c", "/tmp/x_1"]) == "- runs/a-b.c\n- /tmp/x_1\n"
