import logging
from collections import Counter
from pathlib import Path

import pydantic
import pytest

from common.reader.files import matching_files
from core.config import BaseConfig, load_config_from_yaml
from projects.home.recap.tools.conversion.conversion import Layout, Plan
from projects.home.recap.tools.conversion.examples import Absences
from projects.home.recap.tools.conversion.report import Outcome, report, warn_of_absent_features


class Lines(BaseConfig):
    inputs: str = pydantic.Field(description="-")
    seg_dense_schema: dict[str, str] = pydantic.Field(description="-")


def test_features_that_no_record_has_are_warned_of_with_what_there_is(caplog):
    outcomes = [
        Outcome(10, 1, Absences(Counter({"absent": 10, "rare": 10}), {"other", "third"})),
        Outcome(5, 1, Absences(Counter({"absent": 5, "rare": 1}), {"fourth"})),
        Outcome(0, 0, Absences(), "a bad file"),
    ]
    with caplog.at_level(logging.WARNING):
        warn_of_absent_features(outcomes)
    assert caplog.messages == [
        "no record has absent: zeros are there. Is that its name in the records? Others that they have: "
        "fourth, other, third"
    ]
    caplog.clear()
    warn_of_absent_features([Outcome(10, 1, Absences(Counter({"rare": 9}), {"other"})), outcomes[2]])
    warn_of_absent_features([outcomes[2]])
    assert caplog.messages == []


def test_what_lies_there_beside_is_told():
    plan = Plan([], [Path("out/a.parquet")], [Path("out/b.parquet"), Path("out/c.parquet")])
    lines = report(Path("out"), plan, Layout([]), [], 1.0, None).splitlines()
    assert lines[:2] == [
        "done before    1 file(s)",
        "also there     2 file(s) of sources that are not among --inputs: out/b.parquet, ...",
    ]
    assert lines[-2:] == ["  inputs: out", "  seg_dense_schema: {schema_path: out/schema.json}"]


@pytest.mark.parametrize("name", ["plain/out-1", "w[1]", "a: b", "out {1}, #2", "cost$", "ü", "*"])
def test_the_lines_for_the_configuration_name_the_files_whatever_the_directory_is_called(name, tmp_path):
    out = tmp_path / name
    (out / "deep").mkdir(parents=True)
    (out / "deep" / "a.parquet").touch()
    text = report(out, Plan([], [out / "deep" / "a.parquet"], []), Layout([]), [], 1.0, None)
    path = tmp_path / "lines.yaml"
    path.write_text("\n".join(text.splitlines()[-2:]))
    config = load_config_from_yaml(Lines, path)
    assert matching_files(config.inputs).paths == (out / "deep" / "a.parquet",)
    assert config.seg_dense_schema == {"schema_path": str(out / "schema.json")}


@pytest.mark.parametrize("name", ["out", "2023", "2023/01", ".5", "no", "null", "*", "-", "a b"])
def test_they_are_yaml_of_a_string(name, tmp_path):
    text = report(Path(name), Plan([], [Path(name) / "a.parquet"], []), Layout([]), [], 1.0, None)
    path = tmp_path / "lines.yaml"
    path.write_text("\n".join(text.splitlines()[-2:]))
    assert load_config_from_yaml(Lines, path).inputs == name


def test_where_nothing_was_made_there_is_nothing_to_configure():
    lines = report(Path("out"), Plan([], [], []), Layout([]), [Outcome(0, 0, Absences(), "x: bad")], 1.0, None)
    assert lines == "not converted  1 file(s)\n  x: bad\n"
