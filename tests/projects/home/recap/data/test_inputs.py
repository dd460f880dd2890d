import logging
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError
from common.reader.files import DataError
from core.config import load_config_from_yaml
from projects.home.recap.data.config import DatasetConfig
from projects.home.recap.data.inputs import find_files

PATH = "validation_data.late"


def config(**given: Any) -> DatasetConfig:
    return DatasetConfig.model_validate({"global_batch_size": 8, **given})


def days(root: Path, days: int, tolerated: int = 0) -> DatasetConfig:
    given = {"data_root": str(root), "end_date": "2023-01-31", "days": days, "num_missing_days_tol": tolerated}
    return config(explicit_date_inputs=given)


def hours(root: Path, hours: int, tolerated: int = 0) -> DatasetConfig:
    given = {"data_root": str(root), "end_datetime": "2023-01-31T02:00", "hours": hours}
    return config(explicit_datetime_inputs=given | {"num_missing_hours_tol": tolerated})


def names(data: DatasetConfig, root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in find_files(data, PATH).paths]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A file in each of 2023/01/29/22, 2023/01/30/07, 2023/01/31/01 and 2023/01/31/02."""
    for hour in ("29/22", "30/07", "31/01", "31/02"):
        (tmp_path / "2023/01" / hour).mkdir(parents=True)
        (tmp_path / "2023/01" / hour / "part-0.parquet").touch()
    return tmp_path


def test_each_way_to_say_which_files(root, caplog):
    files = [f"2023/01/{hour}/part-0.parquet" for hour in ("29/22", "30/07", "31/01", "31/02")]
    assert names(config(inputs=f"{root}/**/*.parquet"), root) == files
    assert names(days(root, 3), root) == files
    assert names(days(root, 1), root) == files[2:]
    assert names(hours(root, 2), root) == files[2:]
    assert caplog.messages == []


@pytest.mark.parametrize("count", [1, 3, 4, 5])
def test_at_most_so_many_files_are_kept_the_first_ones(root, count):
    for data in (config(inputs=f"{root}/**/*.parquet"), days(root, 3), hours(root, 53, tolerated=49)):
        kept = data.model_copy(update={"num_files_to_keep": count})
        assert names(kept, root) == names(data, root)[:count]
        assert len(names(data, root)) == 4


def test_what_is_missing_and_tolerated_is_told_once(root, caplog):
    assert len(names(days(root, 5, tolerated=2), root)) == 4
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        f"{PATH}.explicit_date_inputs: 2 of 5 days have no *.parquet file in {root} (2023/01/27 to 2023/01/31); "
        "num_missing_days_tol tolerates 2. Missing: 2023/01/27, 2023/01/28"
    )


def test_more_missing_days_than_tolerated(root):
    with pytest.raises(DataError) as caught:
        find_files(days(root, 5, tolerated=1), PATH)
    assert str(caught.value) == (
        f"{PATH}.explicit_date_inputs: 2 of 5 days have no *.parquet file in {root} (2023/01/27 to 2023/01/31); "
        "num_missing_days_tol tolerates 1: add the files, or raise it. Missing: 2023/01/27, 2023/01/28"
    )


def test_more_missing_hours_than_tolerated(root):
    with pytest.raises(DataError) as caught:
        find_files(hours(root, 20, tolerated=16), PATH)
    listed = ", ".join(f"2023/01/30/{hour:02}" for hour in (*range(8, 16), 16))
    assert f"{PATH}.explicit_datetime_inputs: 17 of 20 hours have no" in str(caught.value)
    assert "num_missing_hours_tol tolerates 16: " in str(caught.value)
    assert f"Missing: 2023/01/30/07, {listed}"[:40] not in str(caught.value), "that hour is there"
    assert str(caught.value).endswith(f"Missing: {listed}, 2023/01/30/17 and 7 more")
    assert len(names(hours(root, 20, tolerated=17), root)) == 3


def test_nothing_at_all_is_not_tolerated(root):
    empty = hours(root, 3, tolerated=3).model_copy(update={"explicit_date_inputs": None})
    assert len(names(empty, root)) == 2
    for folder in root.glob("2023/01/31/*/*"):
        folder.unlink()
    with pytest.raises(DataError, match=r"explicit_datetime_inputs: 3 of 3 hours .*; nothing is left to read"):
        find_files(empty, PATH)


HOURS = "explicit_datetime_inputs: {data_root: d, end_datetime: 2023-01-31 05"
DAYS = "explicit_date_inputs: {data_root: d, end_date: 2023-01-31"


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        (
            "inputs: null",
            "exactly one of inputs, explicit_datetime_inputs, explicit_date_inputs must be set; currently set: none",
        ),
        (f"inputs: x\n{DAYS}, days: 1}}", "must be set; currently set: inputs, explicit_date_inputs"),
        ("inputs: x\nnum_files_to_keep: 0", "num_files_to_keep (line 2): 0 is invalid: Input should be greater than 0"),
        (f"{DAYS}, days: 0}}", "explicit_date_inputs.days (line 1): 0 is invalid: Input should be greater than 0"),
        (f"{DAYS}, days: 40000}}", "days (line 1): 40000 is invalid: Input should be less than or equal to 36525"),
        (f"{DAYS}, days: 1, num_missing_days_tol: -1}}", "num_missing_days_tol (line 1): -1 is invalid: "),
        (
            "explicit_date_inputs: {data_root: d, end_date: 2023-02-29, days: 1}",
            "end_date (line 1): '2023-02-29' is invalid: not a valid day; write it as 2023-01-31 or 2023/01/31",
        ),
        (
            f"{HOURS}, hours: 0}}",
            "explicit_datetime_inputs.hours (line 1): 0 is invalid: Input should be greater than 0",
        ),
        (f"{HOURS}, hours: 1, num_missing_hours_tol: -1}}", "num_missing_hours_tol (line 1): -1 is invalid: "),
        (
            "explicit_datetime_inputs: {data_root: d, end_datetime: 2023-01-31, hours: 1}",
            "end_datetime (line 1): '2023-01-31' is invalid: not a valid hour; write it as 2023-01-31T05, ",
        ),
        ("explicit_date_inputs: {data_root: '', end_date: 2023-01-31, days: 1}", "'' is invalid"),
    ],
)
def test_a_mistake_is_told_with_what_is_allowed(tmp_path, text, mistake):
    yaml = tmp_path / "data.yaml"
    yaml.write_text(f"{text}\nglobal_batch_size: 8\n")
    with pytest.raises(ConfigError, match="1 error") as caught:
        load_config_from_yaml(DatasetConfig, yaml)
    assert mistake in str(caught.value)


@pytest.mark.parametrize("day", ["2023-01-31", "2023/01/31", "'2023-01-31'"])
def test_a_date_needs_no_quotes_and_is_printed_as_one_that_loads(tmp_path, day):
    yaml = tmp_path / "data.yaml"
    yaml.write_text(f"explicit_date_inputs: {{data_root: d, end_date: {day}, days: 1}}\nglobal_batch_size: 8\n")
    config = load_config_from_yaml(DatasetConfig, yaml)
    yaml.write_text(config.pretty_print())
    assert load_config_from_yaml(DatasetConfig, yaml) == config
