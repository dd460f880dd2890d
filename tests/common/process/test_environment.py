import os
from collections.abc import Mapping

import pytest

from common.errors import UserError
from common.process.environment import (
    check_environment,
    check_ranks_can_meet,
    launcher_hosts_store,
    launcher_run_id,
    local_rank_from_env,
    local_world_size_from_env,
    master_address,
    rank_from_env,
    separate_processes_warning,
    strangers_can_join,
    world_size_from_env,
)

LAUNCH = {
    "RANK": "3",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "host-1.cluster",
    "MASTER_PORT": "29500",
}
LAUNCHERS = ("SLURM_", "OMPI_", "PMI_", "MV2_", "JSM_", "FLUX_", "HOROVOD_", "TORCHELASTIC_")


@pytest.fixture(autouse=True)
def no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove what the launcher of the tests has set."""
    for name in [name for name in os.environ if name in LAUNCH or name.startswith(LAUNCHERS)]:
        monkeypatch.delenv(name)


def set_all(monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_without_torchrun_there_is_one_process() -> None:
    check_environment()
    check_ranks_can_meet()
    assert (rank_from_env(), world_size_from_env(), local_rank_from_env(), local_world_size_from_env()) == (0, 1, 0, 1)
    assert not launcher_hosts_store()
    assert launcher_run_id() == ""


def test_the_variables_of_torchrun_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, LAUNCH | {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "run-1"})
    check_environment()
    check_ranks_can_meet()
    assert (rank_from_env(), world_size_from_env(), local_rank_from_env(), local_world_size_from_env()) == (3, 8, 1, 4)
    assert str(master_address()) == "host-1.cluster:29500"
    assert launcher_hosts_store()
    assert launcher_run_id() == "run-1"


def test_without_a_local_world_size_all_processes_count_as_local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many rather than too few processes share the memory of this machine."""
    set_all(monkeypatch, {"RANK": "1", "WORLD_SIZE": "4"})
    assert local_world_size_from_env() == 4


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"])
@pytest.mark.parametrize(
    "value",
    [
        *("x", "", " 1", "1 ", "1\n", "+1", "-1", "1.0", "1e2", "01", "0x1", "1_0"),
        pytest.param("\N{ARABIC-INDIC DIGIT ONE}", id="another script"),
        pytest.param("9" * 5000, id="huge"),
    ],
)
def test_a_value_that_is_not_a_number_is_an_error(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, LAUNCH | {name: value})
    with pytest.raises(UserError, match=f"{name}='.* not a number.*torchrun") as raised:
        check_environment()
    assert len(str(raised.value)) < 250


@pytest.mark.parametrize(
    ("changed", "facts"),
    [
        ({"RANK": "8"}, ("RANK=8", "WORLD_SIZE=8")),
        ({"WORLD_SIZE": "0"}, ("WORLD_SIZE=0", "at least 1")),
        ({"LOCAL_RANK": "4"}, ("LOCAL_RANK=4", "LOCAL_WORLD_SIZE=4")),
        ({"LOCAL_WORLD_SIZE": "0"}, ("LOCAL_WORLD_SIZE=0", "at least 1")),
        ({"LOCAL_WORLD_SIZE": "9"}, ("LOCAL_WORLD_SIZE=9", "WORLD_SIZE=8")),
        ({"MASTER_PORT": "65536"}, ("MASTER_PORT=65536", "from 1 to 65535")),
        ({"MASTER_PORT": "99999999"}, ("MASTER_PORT=99999999", "65535")),
        ({"MASTER_ADDR": ""}, ("MASTER_ADDR=''",)),
        ({"MASTER_ADDR": "tcp://host"}, ("MASTER_ADDR='tcp://host'",)),
        ({"MASTER_ADDR": "host:29500"}, ("MASTER_ADDR='host:29500'", "without a port")),
        ({"MASTER_ADDR": "two words"}, ("MASTER_ADDR='two words'",)),
        ({"MASTER_ADDR": "x" * 64}, ("MASTER_ADDR='xxx",)),
        ({"MASTER_ADDR": "a..b"}, ("MASTER_ADDR='a..b'",)),
    ],
)
def test_a_value_out_of_bounds_is_an_error(
    changed: dict[str, str], facts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, LAUNCH | changed)
    with pytest.raises(UserError) as raised:
        check_environment()
    for fact in (*facts, "torchrun"):
        assert fact in str(raised.value)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "fe80::1%eth0", "node_7", "n.cluster.local."])
def test_names_and_addresses_are_accepted(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, LAUNCH | {"MASTER_ADDR": address})
    check_environment()
    assert master_address().host == address


@pytest.mark.parametrize(
    ("variables", "fact"),
    [
        ({"RANK": "0"}, "RANK=0 but no WORLD_SIZE"),
        ({"RANK": "1"}, "RANK=1 but no WORLD_SIZE"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0 but no RANK"),
        ({"LOCAL_RANK": "3"}, "LOCAL_RANK=3 but no RANK"),
        ({"LOCAL_WORLD_SIZE": "1"}, "LOCAL_WORLD_SIZE=1 but no WORLD_SIZE"),
    ],
)
def test_a_variable_without_the_one_that_it_belongs_to_is_an_error(
    variables: dict[str, str], fact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, variables)
    with pytest.raises(UserError, match=fact):
        check_environment()


@pytest.mark.parametrize("missing", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_ranks_that_cannot_meet_are_an_error(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, {name: value for name, value in LAUNCH.items() if name != missing and "LOCAL" not in name})
    check_environment()
    with pytest.raises(UserError, match=f"WORLD_SIZE=8 but not {missing}; start with torchrun"):
        check_ranks_can_meet()


def test_ranks_cannot_meet_at_port_0(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, LAUNCH | {"MASTER_PORT": "0"})
    with pytest.raises(UserError, match="MASTER_PORT=0"):
        check_ranks_can_meet()


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, "SLURM_NTASKS=2"),
        ({"SLURM_NPROCS": "16"}, "SLURM_NPROCS=16"),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "4"}, "SLURM_STEP_NUM_TASKS=4"),
        ({"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "0"}, "OMPI_COMM_WORLD_SIZE=3"),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, "PMI_SIZE=2"),
        ({"SLURM_NTASKS": "1", "PMI_SIZE": "2"}, "PMI_SIZE=2"),
        ({"SLURM_NTASKS": "2", "RANK": "0", "WORLD_SIZE": "1"}, "SLURM_NTASKS=2"),
    ],
)
def test_several_separate_processes_are_a_warning(
    variables: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, variables)
    warning = separate_processes_warning()
    assert warning is not None
    assert name in warning
    assert "torchrun" in warning


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SLURM_NTASKS": "1"},
        {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_NTASKS": "2", "SLURM_PROCID": "1"},
        {"SLURM_NTASKS": "2", **LAUNCH},
        {"SLURM_NTASKS": "many"},
        {"PMI_SIZE": ""},
    ],
)
def test_one_process_or_ranks_of_torchrun_or_another_task_warn_of_nothing(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, variables)
    assert separate_processes_warning() is None


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, True),
        ({"TORCHELASTIC_USE_AGENT_STORE": "False", "TORCHELASTIC_RUN_ID": "run-1", "LOCAL_WORLD_SIZE": "2"}, True),
        ({"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "run-1", "LOCAL_WORLD_SIZE": "1"}, False),
        ({"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "1"}, True),
        ({"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2"}, False),
    ],
)
def test_strangers_can_join_unless_torchrun_names_the_launch_or_runs_on_one_machine(
    variables: Mapping[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, {"RANK": "0", "WORLD_SIZE": "2", **variables})
    assert strangers_can_join() is expected
