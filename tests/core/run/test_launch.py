import json
from pathlib import Path

import pytest

from common.errors import UserError
from core.run.launch import Launch, LaunchRecord

SLURM = {"SLURM_JOB_ID": "17"}
BATCH = {"AWS_BATCH_JOB_ID": "a-b", "AWS_BATCH_JOB_ATTEMPT": "1"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


def launch(environment: dict[str, str], torchruns: tuple[str, ...] = (), started: str = "") -> Launch:
    """Return a launch with these variables. `started` names the first process of its container."""
    found = Launch.from_environment(environment, list(torchruns))
    container = found.container if environment.keys() & POD.keys() else None
    return Launch(found.run_id, found.torchruns, found.job, found.attempt, container, started)


@pytest.mark.parametrize(
    ("earlier", "later", "repeats"),
    [
        # Plain python: each command is a launch of its own.
        (launch({}), launch({}), False),
        # torchrun restarts its workers.
        (launch({"TORCHELASTIC_RUN_ID": "a"}), launch({"TORCHELASTIC_RUN_ID": "a"}), True),
        (launch({"TORCHELASTIC_RUN_ID": "a"}), launch({"TORCHELASTIC_RUN_ID": "b"}), False),
        (launch({"TORCHELASTIC_RUN_ID": "a"}, ("A",)), launch({"TORCHELASTIC_RUN_ID": "b"}, ("A",)), False),
        # Its default id says nothing, but its processes do, also those of machines that did not fail.
        (launch({"TORCHELASTIC_RUN_ID": "none"}, ("A",)), launch({"TORCHELASTIC_RUN_ID": "none"}, ("B",)), False),
        (launch({"TORCHELASTIC_RUN_ID": "none"}, ("A",)), launch({"TORCHELASTIC_RUN_ID": "none"}, ("A",)), True),
        (launch({}, ("A", "B")), launch({}, ("B", "C")), True),
        # A job that is requeued, and another command in the same job.
        (launch(SLURM), launch(SLURM), False),
        (launch(SLURM), launch(SLURM | {"SLURM_RESTART_COUNT": "1"}), True),
        (launch(SLURM), launch({"SLURM_JOB_ID": "18", "SLURM_RESTART_COUNT": "1"}), False),
        (launch(SLURM), launch(SLURM | {"SLURM_RESTART_COUNT": "soon"}), False),
        (launch(BATCH), launch(BATCH | {"AWS_BATCH_JOB_ATTEMPT": "2"}), True),
        # A container that is restarted, and another command in it.
        (launch(POD, started="first"), launch(POD, started="second"), True),
        (launch(POD, started="first"), launch(POD, started="first"), False),
        (launch({}, started="first"), launch({}, started="second"), False),
    ],
)
def test_a_launch_that_a_supervisor_repeats_is_recognized(
    tmp_path: Path, earlier: Launch, later: Launch, repeats: bool
) -> None:
    record = LaunchRecord(tmp_path / "launches")
    assert record.how_to_start_over_again(earlier) is None
    record.add(earlier)
    assert (record.how_to_start_over_again(later) is not None) == repeats


def test_a_user_starts_over_again_in_a_job_that_was_requeued(tmp_path: Path) -> None:
    record = LaunchRecord(tmp_path / "launches")
    requeued = launch(SLURM | {"SLURM_RESTART_COUNT": "1"})
    record.add(launch(SLURM))
    assert "without a restart" in str(record.how_to_start_over_again(requeued))
    record.add(requeued)
    assert record.how_to_start_over_again(requeued) is None
    assert record.how_to_start_over_again(launch(SLURM | {"SLURM_RESTART_COUNT": "2"}))


def test_an_older_launch_is_still_recognized_and_each_is_recorded_once(tmp_path: Path) -> None:
    record = LaunchRecord(tmp_path / "launches")
    launches = [launch({"TORCHELASTIC_RUN_ID": name}, (f"torchrun {name}",)) for name in "abab"]
    for each in launches:
        record.add(each)
    assert all(record.how_to_start_over_again(each) for each in launches)
    assert len((tmp_path / "launches").read_text().splitlines()) == 2


def test_a_damaged_record_is_a_user_error(tmp_path: Path) -> None:
    """Starting over could delete the run."""
    path = tmp_path / "launches"
    wrong_types = json.dumps(dict.fromkeys(["run_id", "torchruns", "job", "attempt", "container", "container_start"]))
    for content in ('{"run_id": ', json.dumps({"run": 1}), wrong_types, "[]", "\0\0\0", ""):
        path.write_text(content)
        with pytest.raises(UserError, match=rf"{path}: this file is damaged"):
            LaunchRecord(path).how_to_start_over_again(launch({}))
