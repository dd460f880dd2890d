import json
from pathlib import Path

import pytest

from common.tracking.measurement import Measurement
from common.tracking.sent_points import SentPoints, stream_of


def point(step: int, partition: str | None = None) -> Measurement:
    return Measurement(step, "train" if partition is None else "evaluate", partition, {}, {})


def test_streams_are_modes_and_partitions() -> None:
    assert [stream_of(point(1)), stream_of(point(1, "test"))] == ["train", "evaluate/test"]


def test_the_points_are_kept_in_the_file(tmp_path: Path) -> None:
    sent = SentPoints(tmp_path / "wandb.json", "abcd1234")
    for each in (point(10), point(20), point(30, "test"), point(20, "test")):
        sent.add(each)
    sent.save()
    again = SentPoints(tmp_path / "wandb.json", None)
    assert again.run_id == "abcd1234"
    assert [again.contains("train", step) for step in (10, 15, 20, 21)] == [True, True, True, False]
    assert [again.contains("evaluate/test", step) for step in (10, 20, 25, 30)] == [False, True, False, True]
    assert not again.contains("evaluate/other", 20)


def test_a_file_of_an_older_version_has_the_last_step_of_every_stream(tmp_path: Path) -> None:
    path = tmp_path / "wandb.json"
    path.write_text(json.dumps({"run_id": "abcd1234", "sent": {"train": 20, "evaluate/test": 10}}))
    sent = SentPoints(path, None)
    assert [sent.contains("train", 20), sent.contains("evaluate/test", 10)] == [True, True]
    assert [sent.contains("train", 21), sent.contains("evaluate/test", 11)] == [False, False]


@pytest.mark.parametrize("content", [b"", b"\0" * 100])
def test_a_blank_file_that_a_power_failure_left_is_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "wandb.json").write_bytes(content)
    assert SentPoints(tmp_path / "wandb.json", "abcd1234").run_id == "abcd1234"
    assert json.loads((tmp_path / "wandb.json").read_text())["run_id"] == "abcd1234"


@pytest.mark.parametrize("content", ["[]", "{", '{"run_id": "a"}', '{"run_id": "a", "sent": {"train": "x"}}'])
def test_a_damaged_file_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "wandb.json").write_text(content)
    with pytest.raises(ValueError, match=r"wandb\.json is damaged\. Remove it"):
        SentPoints(tmp_path / "wandb.json", None)
    assert (tmp_path / "wandb.json").read_text() == content
