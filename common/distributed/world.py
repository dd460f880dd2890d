"""Joins the processes of a run, and sets up the rank, device and process group of this process."""

import contextlib
import dataclasses
import datetime
import os
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from common.distributed.consensus import RankConsensus
from common.distributed.rendezvous import meet
from common.errors import UserError
from common.process.environment import rank_from_env, world_size_from_env


@dataclasses.dataclass(frozen=True)
class World:
    """Describes this process's place among the processes of the run, and its device."""

    rank: int
    local_rank: int
    size: int
    device: torch.device
    timeout: datetime.timedelta = datetime.timedelta(minutes=10)
    """Timeout of collectives, in every process group."""
    consensus: RankConsensus = dataclasses.field(init=False, repr=False, compare=False)
    """Exchanges flags, errors and values with the other ranks."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "consensus", RankConsensus(self.rank, self.size, self.timeout))

    @property
    def is_rank_zero(self) -> bool:
        """True on the rank that prints, logs and deletes old checkpoints."""
        return self.rank == 0


@contextlib.contextmanager
def joined_world(
    timeout_in_s: float,
    device_type: str | None = None,
    *,
    group_of_one: bool = False,
    flight_record: Path | None = None,
) -> Iterator[World]:
    """Join the other processes that torchrun started, and leave at the end.

    The backend is gloo on CPU, and nccl on CUDA with gloo for tensors in host memory. A world of one creates no process
    group unless `group_of_one` is true.

    Args:
      timeout_in_s: timeout of collectives, in seconds.
      device_type: "cpu" or "cuda". None selects CUDA if it is available.
      group_of_one: create a process group even in a world of one, because sharded tables need it.
      flight_record: prefix of the files, one per rank, that torch writes if a collective on CUDA times out. None keeps
        torch's default.

    Raises:
      UserError: the environment has only some of torchrun's variables, or a rank did not join in time.
    """
    rank, size = rank_from_env(), world_size_from_env()
    timeout = datetime.timedelta(seconds=timeout_in_s)
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if size > 1 and name not in os.environ]:
        raise UserError(
            f"the environment sets WORLD_SIZE={size} but not {', '.join(missing)}; start with torchrun, or unset "
            "WORLD_SIZE"
        )
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device_type is None:
        device_type = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device_type, local_rank) if device_type == "cuda" else torch.device(device_type)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    has_group = size > 1 or group_of_one
    if has_group:
        if device.type == "cuda":
            _enable_flight_recorder(flight_record)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            timeout=timeout,
            device_id=device if device.type == "cuda" else None,
            store=dist.HashStore() if size == 1 else meet(rank, size, timeout),
            rank=rank,
            world_size=size,
        )
    destroys_group = has_group
    try:
        yield World(rank, local_rank, size, device, timeout)
    except UserError:
        raise  # all ranks raise it
    except BaseException:
        # Destroying the group would wait for communication with ranks that may be gone.
        destroys_group = size == 1 and has_group
        raise
    finally:
        if destroys_group:
            dist.destroy_process_group()


def _enable_flight_recorder(prefix: Path | None) -> None:
    """Make torch dump its last collectives if one times out, unless the user has configured this in the environment."""
    defaults = {
        ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"): "2000",
        ("TORCH_NCCL_DUMP_ON_TIMEOUT",): "1",
    }
    if prefix is not None:
        defaults["TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"] = str(prefix)
    for (name, *older), value in defaults.items():
        if not os.environ.keys() & {name, *older}:
            os.environ[name] = value
