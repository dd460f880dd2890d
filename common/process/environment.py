"""What torchrun says in the environment: this process's rank and the number of processes."""

import os


def rank_from_env() -> int:
    """This process's rank as torchrun says it; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world_size_from_env() -> int:
    """The number of processes as torchrun says it; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size_from_env() -> int:
    """The number of processes on this machine as torchrun says it; 1 without torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
