"""The process among the processes of a run: its rank, its device and the process group."""

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from common.distributed.rendezvous import meet
from common.errors import UserError
from common.process.environment import rank_from_env, world_size_from_env


@dataclass(frozen=True)
class World:
    """This process among the processes of the run, and the device that it computes on."""

    rank: int
    local_rank: int
    size: int
    device: torch.device
    timeout: datetime.timedelta = datetime.timedelta(minutes=10)
    """Longest wait of a collective, also in groups made beside the main one."""

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is rank 0, the one that prints, logs and rotates."""
        return self.rank == 0


@contextlib.contextmanager
def joined_world(
    timeout_in_s: float,
    device_type: str | None = None,
    *,
    group_of_one: bool = False,
    flight_record: Path | None = None,
) -> Iterator[World]:
    """Joins the other processes that torchrun started, and leaves them at the end.

    gloo on CPU; nccl on CUDA, with gloo beside it for what lives in host memory. A world of one makes no process
    group, but where it is asked for.

    Args:
      timeout_in_s: longest wait of a collective, in seconds.
      device_type: "cpu" or "cuda"; None: CUDA where there is one.
      group_of_one: a process group also in a world of one, as sharded tables need it.
      flight_record: what the names of the files begin with that torch writes, one a rank, when a collective on CUDA
        doesn't end in time; None: torch's own default.

    Raises:
      UserError: the environment is half of torchrun's, or a rank did not come in time.
    """
    rank, size = rank_from_env(), world_size_from_env()
    timeout = datetime.timedelta(seconds=timeout_in_s)
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if size > 1 and name not in os.environ]:
        raise UserError(
            f"the environment says WORLD_SIZE={size} but not {', '.join(missing)}: start with torchrun, or unset it"
        )
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device_type is None:
        device_type = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device_type, local_rank) if device_type == "cuda" else torch.device(device_type)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    joins = size > 1 or group_of_one
    if joins:
        if device.type == "cuda":
            _record_flight(flight_record)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            timeout=timeout,
            device_id=device if device.type == "cuda" else None,
            store=dist.HashStore() if size == 1 else meet(rank, size, timeout),
            rank=rank,
            world_size=size,
        )
    leaves = joins
    try:
        yield World(rank, local_rank, size, device, timeout)
    except UserError:
        raise  # on all ranks
    except BaseException:
        leaves = size == 1 and joins  # else it would wait for what is under way with ranks that may be gone
        raise
    finally:
        if leaves:
            dist.destroy_process_group()


def _record_flight(prefix: Path | None) -> None:
    """Has torch write its last collectives to a file when one doesn't end in time: its flight recorder, which reads the
    environment. What the user has set there holds."""
    defaults = {
        ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"): "2000",
        ("TORCH_NCCL_DUMP_ON_TIMEOUT",): "1",
    }
    if prefix is not None:
        defaults["TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"] = str(prefix)
    for (name, *older), value in defaults.items():
        if not os.environ.keys() & {name, *older}:
            os.environ[name] = value
