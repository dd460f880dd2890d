"""Configures the numerics of the device: float32 precision, 16-bit support, deterministic operations and seeds."""

import os
from pathlib import Path

import torch

from common.errors import UserError

# Values of CUBLAS_WORKSPACE_CONFIG that make cuBLAS deterministic.
_DETERMINISTIC_WORKSPACES = (":4096:8", ":16:8")

# Names in /proc/cpuinfo, on x86 and ARM, of units that compute products of a dtype.
_UNITS = {
    torch.bfloat16: {"avx512_bf16", "amx_bf16", "bf16"},
    torch.float16: {"avx512_fp16", "amx_fp16", "asimdhp"},
}


def set_precision(enable_tensorfloat32: bool) -> None:
    """Select TF32 or IEEE float32 for matrix products, convolutions and recurrent layers on CUDA.

    This uses only the fp32_precision settings, because torch refuses to mix them with the older allow_tf32 flags.
    """
    precision = "tf32" if enable_tensorfloat32 else "ieee"
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]
    torch.backends.cudnn.rnn.fp32_precision = precision  # type: ignore[attr-defined]


def emulates(dtype: torch.dtype, device: torch.device) -> bool:
    """Return True if the device is known to compute products of a 16-bit dtype in software, slower than in float32."""
    if device.type != "cpu":
        return False
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return not flags & _UNITS[dtype]


def set_deterministic(deterministic: bool) -> None:
    """Make torch raise an error for operations without a deterministic implementation, or allow them again.

    Raises:
      UserError: the environment configures cuBLAS otherwise, and there is a GPU.
    """
    if deterministic:
        # cuBLAS reads this when it creates its first handle. Without it, torch refuses matrix products on CUDA.
        found = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _DETERMINISTIC_WORKSPACES[0])
        if found not in _DETERMINISTIC_WORKSPACES and torch.cuda.is_available():
            raise UserError(
                f"the environment sets CUBLAS_WORKSPACE_CONFIG={found!r}, but runtime.deterministic needs "
                f"{' or '.join(_DETERMINISTIC_WORKSPACES)}; unset it"
            )
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = False


def seed_initial_weights(seed: int) -> None:
    """Give all ranks the same seed for the initial weights."""
    torch.manual_seed(seed)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed the generators for one training step, so that its randomness is a function of (seed, step, rank).

    Checkpoints therefore need no generator state, and neither evaluation nor prefetching changes the random numbers of
    training.
    """
    # This is the finalizer of splitmix64. It gives neighboring (step, rank) pairs unrelated seeds.
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % 2**64
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % 2**64
    mixed ^= mixed >> 31
    torch.default_generator.manual_seed(mixed % 2**63)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(mixed % 2**63)
