"""Finds slips in docstrings, comments, messages and docs: fragments, British spellings, words of a dialect."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.root import ROOT

SOURCES = sorted(
    path
    for folder in ("common", "core", "projects", "tests", "benchmarks", "docs")
    for path in (ROOT / folder).rglob("*.py")
    if not path.name.endswith("_pb2.py") and path != Path(__file__)
)
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
)

FRAGMENT = re.compile(
    r"(Of|As|In|What|How|Which|By|Where|From|Whose|Whether|At|Who|When|Behind|Beyond|Among)\b(?! (happens|follows))"
)
"""Words that begin a fragment rather than a sentence."""

SLIPS = re.compile(
    "|".join(
        [
            r"\b(is|are|was|were|be|been) told\b",
            r"\bgo(es)? on\b|\bwent on\b|\bgoing on\b",
            r"\bleft out\b|\bleaves? out\b|\bleaving out\b",
            r"\banew\b|\bmend(s|ed)?\b|\bin peace\b|\bwhat it takes\b|\bso many\b|\bnobody's\b|\bat hand\b",
            r"\bwhere (there is|there are) (none|no|one)\b",
            r"\b(behaviour|colour|favour|neighbour|honour)\w*",
            r"\b(synchron|initial|normal|serial|optim|penal|recogn|organ|random|general|categor|summar)is(e|ed|es|ing|ation)\b",
            r"\b(label|model|cancel|travel)l(ed|ing)\b",
        ]
    ),
    re.IGNORECASE,
)


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the docstrings of a module, its classes and its functions, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring is not None:
                yield getattr(node, "lineno", 1), docstring


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a page, or of the comments and strings of a module."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield from enumerate(text.splitlines(), start=1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            yield from enumerate(token.string.splitlines(), start=token.start[0])


def test_there_is_something_to_read():
    assert len(SOURCES) > 300
    assert len(PAGES) > 20


def test_docstrings_begin_with_a_sentence():
    found = [
        f"{path.relative_to(ROOT)}, line {line}: {docstring.splitlines()[0]}"
        for path in SOURCES
        for line, docstring in docstrings(ast.parse(path.read_text(encoding="utf-8")))
        if FRAGMENT.match(docstring)
    ]
    assert found == []


def test_no_slips_in_docstrings_comments_messages_and_pages():
    found = [
        f"{path.relative_to(ROOT)}, line {line}: '{slip.group()}' in {text.strip()}"
        for path in [*SOURCES, *PAGES]
        for line, text in prose(path)
        for slip in SLIPS.finditer(text)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("sentence", "is_fragment"),
    [
        ("Of the newest checkpoint.", True),
        ("What a rank reads.", True),
        ("Return the newest complete checkpoint.", False),
        ("Reads row groups ahead of the consumer.", False),
        ("Offers a second way.", False),
    ],
)
def test_what_is_a_fragment(sentence, is_fragment):
    assert bool(FRAGMENT.match(sentence)) == is_fragment


@pytest.mark.parametrize(
    ("text", "is_slip"),
    [
        ("the rest is left out", True),
        ("it goes on without it", True),
        ("neighbours of an entity", True),
        ("penalised parameters", True),
        ("the left output", False),
        ("optimizers and labels", False),
    ],
)
def test_what_is_a_slip(text, is_slip):
    assert bool(SLIPS.search(text)) == is_slip
