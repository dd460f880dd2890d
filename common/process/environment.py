"""Reads the environment variables that torchrun sets: this process's rank and the number of processes."""

import os


def rank_from_env() -> int:
    """Return the rank that torchrun gave this process, or 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world_size_from_env() -> int:
    """Return the number of processes that torchrun started on all machines, or 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size_from_env() -> int:
    """Return the number of processes that torchrun started on this machine, or 1 without torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
