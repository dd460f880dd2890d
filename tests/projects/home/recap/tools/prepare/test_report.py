from pathlib import Path

import pytest

from projects.home.recap.tools.prepare.choices import Choice
from projects.home.recap.tools.prepare.columns import IngestedColumn
from projects.home.recap.tools.prepare.report import report, table_of_columns
from projects.home.recap.tools.prepare.split_files import Split


def column(name: str, staged: str | None, found: str, sql_type: str) -> IngestedColumn:
    return IngestedColumn(name, staged, "feature", found, sql_type, "number", "why", 0, 5)


CHOICES = [
    Choice(column("12", "c0", "text", "VARCHAR"), {"12": {"kind": "category"}}, "vocabulary of 5", "text"),
    Choice(column("map", None, "map<string, int>", ""), {}, "", "a map, which no kind reads"),
]
SPLITS = {
    name: Split(name, Path("unused"), rows, {"clicked": rows // 4}, {})
    for name, rows in (("train", 8000), ("validation", 1000), ("test", 1000))
}


@pytest.mark.parametrize("warnings", [[], ["leak: alone predicts clicked"]])
def test_the_report_has_all_that_was_decided(warnings: list[str]) -> None:
    columns = table_of_columns(CHOICES, {"12": {"kind": "category"}})
    text = report(Path("data/my clicks"), columns, SPLITS, ["The rows were divided."], warnings)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for line in (
        "12 varchar category vocabulary of 5 text",
        "map map<string, int> - - a map, which no kind reads",
        "train 8,000 0.25000",
        "The rows were divided.",
        *warnings,
    ):
        assert line in lines
    assert ("Warnings:" in lines) == bool(warnings)
    assert lines[-1].endswith("-m projects.home.recap.main --config 'data/my clicks/config.yaml'")


@pytest.mark.parametrize(
    ("edges", "expected"),
    [
        ([0.0, 1.0, 2.0], "2 buckets, indicator"),
        ([0.0, 1.0], "1 bucket, indicator"),
        ([[0.0, 1.0], [0.0, 1.0, 2.0, 3.0], [0.0, 2.0, 4.0]], "1 to 3 buckets, indicator"),
        (None, "indicator"),
    ],
)
def test_the_number_of_buckets_is_that_of_the_edges(edges: list[object] | None, expected: str) -> None:
    choice = Choice(column("x", "c0", "double", "DOUBLE"), {"x": {"kind": "number"}}, "indicator", "numbers")
    settings = {} if edges is None else {"edges": edges}
    last = table_of_columns([choice], {"x": settings}).splitlines()[-1]
    assert " ".join(last.split()) == f"x double number {expected} numbers"
