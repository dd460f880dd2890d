"""Reads the environment variables that describe a launch: this process's rank, the number of processes, the rendezvous.

torchrun sets all of them. A value that is malformed or contradicts another is a UserError.
"""

import os
import re
from typing import NamedTuple

from common.errors import UserError

_ADVICE = "start with torchrun, or unset"
_SMALLEST = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": 0}
"""The variables that hold numbers, with the smallest allowed value."""

_MAX_PORT = 65535

# Number of processes and rank of this one, by launcher. The step of a Slurm job can have fewer tasks than the job.
_LAUNCHERS = (
    (("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"), "SLURM_PROCID"),
    (("OMPI_COMM_WORLD_SIZE",), "OMPI_COMM_WORLD_RANK"),
    (("PMI_SIZE",), "PMI_RANK"),
    (("MV2_COMM_WORLD_SIZE",), "MV2_COMM_WORLD_RANK"),
    (("JSM_NAMESPACE_SIZE",), "JSM_NAMESPACE_RANK"),
    (("FLUX_JOB_SIZE",), "FLUX_TASK_RANK"),
    (("HOROVOD_SIZE",), "HOROVOD_RANK"),
)


class Address(NamedTuple):
    """The address at which the ranks of a launch meet."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def rank_from_env() -> int:
    """Return the rank that torchrun gave this process, or 0 without torchrun.

    Raises:
      UserError: RANK is not a number below WORLD_SIZE.
    """
    rank, size = _number("RANK", 0), world_size_from_env()
    if rank >= size:
        given = f"WORLD_SIZE={size}" if "WORLD_SIZE" in os.environ else "no WORLD_SIZE"
        raise UserError(f"the environment sets RANK={rank} but {given}; {_ADVICE} RANK")
    return rank


def world_size_from_env() -> int:
    """Return the number of processes that torchrun started on all machines, or 1 without torchrun.

    Raises:
      UserError: WORLD_SIZE is not a number >= 1.
    """
    return _number("WORLD_SIZE", 1)


def local_rank_from_env() -> int:
    """Return the rank of this process among those on its machine, or 0 without torchrun.

    Raises:
      UserError: LOCAL_RANK is not a number below LOCAL_WORLD_SIZE.
    """
    local_rank, local_size = _number("LOCAL_RANK", 0), local_world_size_from_env()
    if local_rank >= local_size:
        name = "LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in os.environ else "WORLD_SIZE"
        raise UserError(f"the environment sets LOCAL_RANK={local_rank} but {name}={local_size}; {_ADVICE} LOCAL_RANK")
    return local_rank


def local_world_size_from_env() -> int:
    """Return the number of processes that torchrun started on this machine, or 1 without torchrun.

    Without LOCAL_WORLD_SIZE, all processes count as running on this machine.

    Raises:
      UserError: LOCAL_WORLD_SIZE is not a number from 1 to WORLD_SIZE.
    """
    size = world_size_from_env()
    local_size = _number("LOCAL_WORLD_SIZE", size)
    if local_size > size:
        given = f"WORLD_SIZE={size}" if "WORLD_SIZE" in os.environ else "no WORLD_SIZE"
        raise UserError(f"the environment sets LOCAL_WORLD_SIZE={local_size} but {given}; {_ADVICE} LOCAL_WORLD_SIZE")
    return local_size


def check_environment() -> None:
    """Raise UserError if a variable of a launch is malformed, contradicts another, or lacks another."""
    for name in _SMALLEST:
        _number(name, 1)
    if "MASTER_ADDR" in os.environ:
        _master_host()
    for name, needed in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "RANK"), ("LOCAL_WORLD_SIZE", "WORLD_SIZE")):
        if name in os.environ and needed not in os.environ:
            raise UserError(f"the environment sets {name}={os.environ[name]} but no {needed}; {_ADVICE} {name}")
    rank_from_env()
    local_rank_from_env()


def check_ranks_can_meet() -> None:
    """Raise UserError if the environment is malformed, or if several ranks cannot find each other with it."""
    check_environment()
    size = world_size_from_env()
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if size > 1 and missing:
        raise UserError(f"the environment sets WORLD_SIZE={size} but not {', '.join(missing)}; {_ADVICE} WORLD_SIZE")
    if size > 1 and _number("MASTER_PORT", 0) == 0:
        raise UserError(f"the environment sets MASTER_PORT=0, which is not a port (1 to {_MAX_PORT}); {_ADVICE} it")


def master_address() -> Address:
    """Return where the ranks of this launch meet: MASTER_ADDR and MASTER_PORT.

    Raises:
      UserError: one of them is missing or malformed.
    """
    check_ranks_can_meet()
    return Address(_master_host(), _number("MASTER_PORT", 0))


def launcher_hosts_store() -> bool:
    """Return True if torchrun itself hosts the store in which the ranks meet. Otherwise, rank 0 hosts it."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def launcher_run_id() -> str:
    """Return torchrun's --rdzv-id, which all processes of a launch share, or "" without torchrun."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "")


def strangers_can_join() -> bool:
    """Return False if torchrun lets only its own workers reach its store: it has a name, or runs on one machine."""
    named = launcher_run_id() not in ("", "none")  # torchrun's --rdzv-id if it is not given
    return not launcher_hosts_store() or not (named or local_world_size_from_env() == world_size_from_env())


def separate_processes_warning() -> str | None:
    """Return a warning if Slurm or MPI seems to have started several processes that do not know of each other.

    Only the first of these processes returns it.
    """
    if world_size_from_env() > 1:
        return None
    for sizes, rank in _LAUNCHERS:
        size = next((name for name in sizes if name in os.environ), None)
        if size is None or os.environ.get(rank, "0") != "0":
            continue
        tasks = os.environ[size]
        if re.fullmatch("[0-9]{1,9}", tasks) and int(tasks) > 1:
            return (
                f"the environment sets {size}={tasks}, but this process is a program of its own with one rank. If srun "
                f"or mpirun started it {tasks} times, these are {tasks} separate runs; start torchrun once per machine "
                "instead (docs/clusters.md)"
            )
    return None


def _number(name: str, default: int) -> int:
    """Return the value of a variable in canonical decimal, or the default if it is not set."""
    text = os.environ.get(name)
    if text is None:
        return default
    if not re.fullmatch("0|[1-9][0-9]{0,8}", text):
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        raise UserError(
            f"the environment sets {name}={shown!r}, which is not a number (up to nine digits and nothing else); "
            f"{_ADVICE} it"
        )
    value, smallest = int(text), _SMALLEST[name]
    if value < smallest or (name == "MASTER_PORT" and value > _MAX_PORT):
        allowed = f"from 1 to {_MAX_PORT}" if name == "MASTER_PORT" else f"at least {smallest}"
        raise UserError(f"the environment sets {name}={value}, which must be {allowed}; {_ADVICE} it")
    return value


def _master_host() -> str:
    host = os.environ["MASTER_ADDR"]
    try:
        is_valid = bool(re.fullmatch(r"[^\s/]+", host)) and host.count(":") != 1 and bool(host.encode("idna"))
    except UnicodeError:
        is_valid = False
    if not is_valid:
        raise UserError(
            f"the environment sets MASTER_ADDR={host!r}, which is not the name or address of a machine (without a "
            f"port); {_ADVICE} it"
        )
    return host
