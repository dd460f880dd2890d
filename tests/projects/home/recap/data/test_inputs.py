import logging
import re
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError
from common.reader.files import DataError
from core.config import load_config_from_yaml
from projects.home.recap.data.config import DatasetConfig
from projects.home.recap.data.inputs import find_files

KEY_PATH = "validation_data.late"


def config(**given: Any) -> DatasetConfig:
    return DatasetConfig.model_validate({"global_batch_size": 8, **given})


def days(root: Path, days: int, tolerated: int = 0) -> DatasetConfig:
    given = {"data_root": str(root), "end_date": "2023-01-31", "days": days, "num_missing_days_tol": tolerated}
    return config(explicit_date_inputs=given)


def hours(root: Path, hours: int, tolerated: int = 0) -> DatasetConfig:
    given = {"data_root": str(root), "end_datetime": "2023-01-31T02:00", "hours": hours}
    return config(explicit_datetime_inputs=given | {"num_missing_hours_tol": tolerated})


def names(data: DatasetConfig, root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in find_files(data, KEY_PATH).paths]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory with one file in each of 2023/01/29/22, 2023/01/30/07, 2023/01/31/01 and 2023/01/31/02."""
    for hour in ("29/22", "30/07", "31/01", "31/02"):
        (tmp_path / "2023/01" / hour).mkdir(parents=True)
        (tmp_path / "2023/01" / hour / "part-0.parquet").touch()
    return tmp_path


def test_finds_files_by_pattern_day_and_hour(root, caplog):
    files = [f"2023/01/{hour}/part-0.parquet" for hour in ("29/22", "30/07", "31/01", "31/02")]
    assert names(config(inputs=f"{root}/**/*.parquet"), root) == files
    assert names(days(root, 3), root) == files
    assert names(days(root, 1), root) == files[2:]
    assert names(hours(root, 2), root) == files[2:]
    assert caplog.messages == []


@pytest.mark.parametrize("count", [1, 3, 4, 5])
def test_keeps_the_first_num_files_to_keep_files(root, count):
    for data in (config(inputs=f"{root}/**/*.parquet"), days(root, 3), hours(root, 53, tolerated=49)):
        kept = data.model_copy(update={"num_files_to_keep": count})
        assert names(kept, root) == names(data, root)[:count]
        assert len(names(data, root)) == 4


def test_tolerated_missing_days_are_logged_once(root, caplog):
    assert len(names(days(root, 5, tolerated=2), root)) == 4
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert message.startswith(f"{KEY_PATH}.explicit_date_inputs: 2 of 5 days ")
    assert f"{root} (2023/01/27 to 2023/01/31)" in message
    assert re.search(r"num_missing_days_tol \w+ 2\. Missing: 2023/01/27, 2023/01/28$", message)


def test_more_missing_days_than_tolerated_is_an_error(root):
    with pytest.raises(DataError) as caught:
        find_files(days(root, 5, tolerated=1), KEY_PATH)
    message = str(caught.value)
    assert message.startswith(f"{KEY_PATH}.explicit_date_inputs: 2 of 5 days ")
    assert f"{root} (2023/01/27 to 2023/01/31)" in message
    assert re.search(r"num_missing_days_tol is 1\b.*Missing: 2023/01/27, 2023/01/28$", message)


def test_more_missing_hours_than_tolerated_is_an_error(root):
    with pytest.raises(DataError) as caught:
        find_files(hours(root, 20, tolerated=16), KEY_PATH)
    listed = ", ".join(f"2023/01/30/{hour:02}" for hour in (*range(8, 16), 16))
    assert f"{KEY_PATH}.explicit_datetime_inputs: 17 of 20 hours " in str(caught.value)
    assert "num_missing_hours_tol is 16." in str(caught.value)
    assert f"Missing: 2023/01/30/07, {listed}"[:40] not in str(caught.value), "that hour has a file"
    assert str(caught.value).endswith(f"Missing: {listed}, 2023/01/30/17 and 7 more")
    assert len(names(hours(root, 20, tolerated=17), root)) == 3


def test_no_files_at_all_is_an_error_whatever_is_tolerated(root):
    empty = hours(root, 3, tolerated=3).model_copy(update={"explicit_date_inputs": None})
    assert len(names(empty, root)) == 2
    for folder in root.glob("2023/01/31/*/*"):
        folder.unlink()
    with pytest.raises(DataError, match=r"explicit_datetime_inputs: 3 of 3 hours .*nothing to read"):
        find_files(empty, KEY_PATH)


HOURS = "explicit_datetime_inputs: {data_root: d, end_datetime: 2023-01-31 05"
DAYS = "explicit_date_inputs: {data_root: d, end_date: 2023-01-31"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "inputs: null",
            "exactly one of inputs, explicit_datetime_inputs, explicit_date_inputs must be set; .*set: none",
        ),
        (f"inputs: x\n{DAYS}, days: 1}}", "must be set; .*set: inputs, explicit_date_inputs"),
        ("inputs: x\nnum_files_to_keep: 0", r"num_files_to_keep \(line 2\): 0 .*greater than 0"),
        (f"{DAYS}, days: 0}}", r"explicit_date_inputs.days \(line 1\): 0 .*greater than 0"),
        (f"{DAYS}, days: 40000}}", r"days \(line 1\): 40000 .*less than or equal to 36525"),
        (f"{DAYS}, days: 1, num_missing_days_tol: -1}}", r"num_missing_days_tol \(line 1\): -1 "),
        (
            "explicit_date_inputs: {data_root: d, end_date: 2023-02-29, days: 1}",
            r"end_date \(line 1\): '2023-02-29' .*day.*2023-01-31 or 2023/01/31",
        ),
        (f"{HOURS}, hours: 0}}", r"explicit_datetime_inputs.hours \(line 1\): 0 .*greater than 0"),
        (f"{HOURS}, hours: 1, num_missing_hours_tol: -1}}", r"num_missing_hours_tol \(line 1\): -1 "),
        (
            "explicit_datetime_inputs: {data_root: d, end_datetime: 2023-01-31, hours: 1}",
            r"end_datetime \(line 1\): '2023-01-31' .*hour.*2023-01-31T05, ",
        ),
        ("explicit_date_inputs: {data_root: '', end_date: 2023-01-31, days: 1}", r"data_root \(line 1\): '' "),
    ],
)
def test_an_invalid_value_is_reported_with_its_line_and_allowed_values(tmp_path, text, message):
    yaml = tmp_path / "data.yaml"
    yaml.write_text(f"{text}\nglobal_batch_size: 8\n")
    with pytest.raises(ConfigError, match=r": 1 \w+\n") as caught:
        load_config_from_yaml(DatasetConfig, yaml)
    assert re.search(message, str(caught.value))


@pytest.mark.parametrize("day", ["2023-01-31", "2023/01/31", "'2023-01-31'"])
def test_a_date_needs_no_quotes_and_loads_again_after_printing(tmp_path, day):
    yaml = tmp_path / "data.yaml"
    yaml.write_text(f"explicit_date_inputs: {{data_root: d, end_date: {day}, days: 1}}\nglobal_batch_size: 8\n")
    config = load_config_from_yaml(DatasetConfig, yaml)
    yaml.write_text(config.pretty_print())
    assert load_config_from_yaml(DatasetConfig, yaml) == config
