"""The process's place in the world and how its device computes: process group, device, TF32, determinism, seeds."""

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from common.rendezvous import meet
from core.config.base_config import UserError


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
    def is_main(self) -> bool:
        """Whether this is rank 0, the one that prints, logs and rotates."""
        return self.rank == 0


def rank_from_env() -> int:
    """This process's rank as torchrun says it; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world_size_from_env() -> int:
    """The number of processes as torchrun says it; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size_from_env() -> int:
    """The number of processes on this machine as torchrun says it; 1 without torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


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


def set_precision(enable_tensorfloat32: bool) -> None:
    """Chooses TF32 or IEEE float32 for CUDA's matrix products, convolutions and recurrences.

    Only the fp32_precision settings: torch refuses to mix them with the older allow_tf32 flags.
    """
    precision = "tf32" if enable_tensorfloat32 else "ieee"
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]
    torch.backends.cudnn.rnn.fp32_precision = precision  # type: ignore[attr-defined]


def emulates_bfloat16(device: torch.device) -> bool:
    """Whether the device computes bfloat16 products in software: slower than float32. False where that isn't known."""
    if device.type != "cpu":
        return False
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return not flags & {"avx512_bf16", "amx_bf16", "bf16"}


def set_deterministic(deterministic: bool) -> None:
    """Makes torch refuse operations that have no deterministic implementation (or stop refusing them)."""
    if deterministic:
        # cuBLAS reads this when its first handle is made; without it torch refuses its matrix products.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = False


def seed_initial_weights(seed: int) -> None:
    """Seeds every generator alike on all ranks, for the initial weights."""
    torch.manual_seed(seed)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seeds the generators for one training step, so that its randomness is a function of (seed, step, rank).

    No generator needs saving then, and neither evaluation nor prefetching changes what training draws.
    """
    # The finaliser of splitmix64: neighbouring (step, rank) pairs give unrelated seeds.
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % 2**64
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % 2**64
    mixed ^= mixed >> 31
    torch.default_generator.manual_seed(mixed % 2**63)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(mixed % 2**63)
