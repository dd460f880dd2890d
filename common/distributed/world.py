"""Joins the processes of a run, and sets up the rank, device and process group of this process."""

import contextlib
import dataclasses
import datetime
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.distributed as dist

from common.distributed.communication import communication_error
from common.distributed.consensus import RankConsensus
from common.distributed.rendezvous import meet
from common.errors import LostRankError, UserError
from common.process.environment import check_ranks_can_meet, local_rank_from_env, rank_from_env, world_size_from_env


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
    identity: Mapping[str, str] | None = None,
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
      identity: facts that all ranks of this launch share and other launches do not. A process with other facts that
        reaches this launch by mistake is refused.

    Raises:
      UserError: the environment is malformed, it assigns a GPU that does not exist, a rank did not join in time, or
        this process belongs to another launch.
    """
    check_ranks_can_meet()
    rank, local_rank, size = rank_from_env(), local_rank_from_env(), world_size_from_env()
    timeout = datetime.timedelta(seconds=timeout_in_s)
    if device_type is None:
        device_type = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device_type, local_rank) if device_type == "cuda" else torch.device(device_type)
    if device.type == "cuda":
        _check_gpu(local_rank, size)
        torch.cuda.set_device(device)
    has_group = size > 1 or group_of_one
    if has_group:
        _check_network_interfaces()
        if device.type == "cuda":
            _enable_flight_recorder(flight_record)
        store = dist.HashStore() if size == 1 else meet(rank, size, timeout, identity)
        _init_process_group(rank, size, device, timeout, store)
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


def check_same_device(store: dist.Store, rank: int, size: int, device_type: str) -> None:
    """Raise UserError on all ranks unless all have the same type of device: their backends could not connect.

    Args:
      store: a store that only the ranks of this launch use.
      rank: rank of this process.
      size: number of processes.
      device_type: type of this rank's device.
    """
    store.set(f"device/{rank}", device_type)
    if rank == 0:
        ranks: dict[str, list[str]] = {}
        for other in range(size):
            ranks.setdefault(store.get(f"device/{other}").decode(), []).append(str(other))
        listed = "; ".join(f"{name} on rank(s) {', '.join(owners)}" for name, owners in ranks.items())
        store.set("devices", listed if len(ranks) > 1 else "")
    if difference := store.get("devices").decode():
        raise UserError(
            f"the processes use different devices: {difference}. A process uses CUDA if torch sees a GPU. Start all "
            'processes on machines with GPUs, or hide the GPUs of all with CUDA_VISIBLE_DEVICES=""'
        )


def _init_process_group(
    rank: int, size: int, device: torch.device, timeout: datetime.timedelta, store: dist.Store
) -> None:
    """Create the process group. Raise LostRankError if another rank ends at that moment."""
    try:
        check_same_device(store, rank, size, device.type)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            timeout=timeout,
            device_id=device if device.type == "cuda" else None,
            store=store,
            rank=rank,
            world_size=size,
        )
    except RuntimeError as error:
        if size == 1 or (found := communication_error(error)) is None:
            raise
        raise LostRankError(
            f"rank {rank}: another rank died while the ranks were connecting, or cannot be reached; see its output for "
            f"the reason. This rank: {found}. Run the same command again"
        ) from error


def _check_gpu(local_rank: int, size: int) -> None:
    """Raise UserError if LOCAL_RANK does not name a GPU of its own for this process."""
    num_gpus = torch.cuda.device_count()
    if size > 1 and "LOCAL_RANK" not in os.environ:
        raise UserError(
            f"the environment sets WORLD_SIZE={size} but no LOCAL_RANK, which selects the GPU of each process; start "
            "with torchrun, or set it to the number of the process on its machine"
        )
    if local_rank >= num_gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        shown = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible!r})"
        raise UserError(
            f"the environment sets LOCAL_RANK={local_rank}, but this process sees {num_gpus} GPU(s){shown}; start at "
            f"most {num_gpus} process(es) on this machine"
        )


def _check_network_interfaces() -> None:
    """Raise UserError if GLOO_SOCKET_IFNAME names interfaces that this machine does not have."""
    found = [name for _, name in socket.if_nameindex()]
    names = os.environ.get("GLOO_SOCKET_IFNAME", "")
    if unknown := [name for name in names.split(",") if name and name not in found]:
        raise UserError(
            f"the environment sets GLOO_SOCKET_IFNAME={names!r}, but this machine has no network interface "
            f"{', '.join(map(repr, unknown))}, only {', '.join(found)}"
        )


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
