"""Refuses a model that cannot fit into memory, before anything is allocated."""

from collections.abc import Callable

import torch
from torch import nn

from common.errors import ConfigError
from common.process.memory import memory_shortage

# Number of the largest weights that the message lists.
_NUM_LISTED = 3


def check_size(build: Callable[[], nn.Module], key_path: str) -> None:
    """Check that the dense weights of a model, and on a CPU also their gradients, fit into the memory of this machine.

    Args:
      build: builds the model. It is called with the meta device as default, which allocates no memory.
      key_path: key path of the model in the configuration, for the message.

    Raises:
      ConfigError: the processes on this machine together need more memory than there is.
    """
    with torch.device("meta"):
        weights = dict(build().named_parameters())
    count = sum(weight.numel() for weight in weights.values())
    copies = 1 if torch.cuda.is_available() else 2  # on a GPU, gradients are not in this memory
    shortage = memory_shortage(copies * sum(weight.nbytes for weight in weights.values()))
    if shortage is None:
        return
    largest = sorted(weights.items(), key=lambda item: item[1].nbytes, reverse=True)[:_NUM_LISTED]
    listed = ", ".join(f"{name} {list(weight.shape)}" for name, weight in largest)
    raise ConfigError(
        f"{key_path} has {count:,} parameters. Holding weights{' and gradients' * (copies > 1)} {shortage}. The "
        f"largest are {listed}. Configure smaller layers"
    )
