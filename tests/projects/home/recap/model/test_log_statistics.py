import json
from pathlib import Path

import pytest

from common.errors import ConfigError
from projects.home.recap.model.log_statistics import read_log_statistics


def write(path: Path, **changes: object) -> str:
    path.write_text(json.dumps({"features": ["a", "b"], "mean": [1.0, 2.0], "std": [3.0, 4.0], **changes}))
    return str(path)


def test_statistics_are_in_the_order_of_the_model(tmp_path: Path) -> None:
    path = write(tmp_path / "s.json")
    assert read_log_statistics(path, 2, None).mean == [1.0, 2.0]
    assert read_log_statistics(path, 2, ["a", "b"]).std == [3.0, 4.0]
    chosen = read_log_statistics(path, 1, ["b"])
    assert (chosen.features, chosen.mean, chosen.std) == (["b"], [2.0], [4.0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": [1.0]}, "features, mean and std differ in length"),
        ({"std": [1.0, -1.0]}, r"std\.1: Input should be greater than or equal to 0"),
        ({"mean": [1.0, "x"]}, r"mean\.1: Input should be a valid number"),
        ({"mean": [1.0, 1e300]}, r"mean\.1: .*float32 cannot hold more"),
        ({"more": 1}, "more: Extra inputs are not permitted"),
    ],
)
def test_an_invalid_file_is_an_error_that_says_what_to_do(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = write(tmp_path / "s.json", **changes)
    with pytest.raises(ConfigError, match=rf"analysis_path: {path}: .*{message}.*tools\.log_statistics"):
        read_log_statistics(path, 2, None)


def test_a_file_that_does_not_fit_the_model_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "s.json")
    with pytest.raises(ConfigError, match=r"s\.json has 2 features, but the model has 3 continuous ones"):
        read_log_statistics(path, 3, None)
    with pytest.raises(ConfigError, match=r"s\.json lacks the features c, d\."):
        read_log_statistics(path, 3, ["a", "c", "d"])
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.json: No such file.*tools\.log_statistics"):
        read_log_statistics(str(tmp_path / "absent.json"), 2, None)
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(ConfigError, match=r"text\.json: Invalid JSON"):
        read_log_statistics(str(tmp_path / "text.json"), 2, None)
