import logging
from collections import Counter
from pathlib import Path

import pydantic
import pytest

from common.reader.files import matching_files
from core.config import BaseConfig, load_config_from_yaml
from projects.home.recap.tools.conversion.examples import Absences
from projects.home.recap.tools.conversion.files import ConversionPlan, OutputFormat
from projects.home.recap.tools.conversion.report import FileOutcome, report, warn_of_absent_features


class ReportedConfig(BaseConfig):
    """The part of a data set's configuration that the report gives."""

    inputs: str = pydantic.Field(description="-")
    seg_dense_schema: dict[str, str] = pydantic.Field(description="-")


def test_a_warning_names_features_that_no_record_has_and_unread_ones(caplog):
    outcomes = [
        FileOutcome(10, 1, Absences(Counter({"absent": 10, "rare": 10}), {"other", "third"})),
        FileOutcome(5, 1, Absences(Counter({"absent": 5, "rare": 1}), {"fourth"})),
        FileOutcome(0, 0, Absences(), "a bad file"),
    ]
    with caplog.at_level(logging.WARNING):
        warn_of_absent_features(outcomes)
    [message] = caplog.messages
    assert "no record has absent, " in message
    assert message.endswith(": fourth, other, third")
    caplog.clear()
    warn_of_absent_features([FileOutcome(10, 1, Absences(Counter({"rare": 9}), {"other"})), outcomes[2]])
    warn_of_absent_features([outcomes[2]])
    assert caplog.messages == []


def test_outputs_of_other_sources_are_counted():
    plan = ConversionPlan([], [Path("out/a.parquet")], [Path("out/b.parquet"), Path("out/c.parquet")])
    lines = report(Path("out"), plan, OutputFormat([]), [], 1.0, None).splitlines()
    assert lines[0].endswith(" 1 file(s)")
    assert " 2 file(s) " in lines[1]
    assert "--inputs: out/b.parquet" in lines[1]
    assert lines[-2:] == ["  inputs: out", "  seg_dense_schema: {schema_path: out/schema.json}"]


@pytest.mark.parametrize("name", ["plain/out-1", "w[1]", "a: b", "out {1}, #2", "cost$", "ü", "*"])
def test_the_reported_configuration_finds_the_files_whatever_the_name_of_the_directory(name, tmp_path):
    out = tmp_path / name
    (out / "deep").mkdir(parents=True)
    (out / "deep" / "a.parquet").touch()
    text = report(out, ConversionPlan([], [out / "deep" / "a.parquet"], []), OutputFormat([]), [], 1.0, None)
    path = tmp_path / "lines.yaml"
    path.write_text("\n".join(text.splitlines()[-2:]))
    config = load_config_from_yaml(ReportedConfig, path)
    assert matching_files(config.inputs).paths == (out / "deep" / "a.parquet",)
    assert config.seg_dense_schema == {"schema_path": str(out / "schema.json")}


@pytest.mark.parametrize("name", ["out", "2023", "2023/01", ".5", "no", "null", "*", "-", "a b"])
def test_the_reported_path_is_a_yaml_string(name, tmp_path):
    text = report(Path(name), ConversionPlan([], [Path(name) / "a.parquet"], []), OutputFormat([]), [], 1.0, None)
    path = tmp_path / "lines.yaml"
    path.write_text("\n".join(text.splitlines()[-2:]))
    assert load_config_from_yaml(ReportedConfig, path).inputs == name


def test_a_conversion_without_outputs_reports_no_configuration():
    lines = report(
        Path("out"), ConversionPlan([], [], []), OutputFormat([]), [FileOutcome(0, 0, Absences(), "x: bad")], 1.0, None
    )
    assert lines == "not converted  1 file(s)\n  x: bad\n"
