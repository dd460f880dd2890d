"""Switches a model between training and evaluation, and keeps the submodules that its author set to evaluation mode."""

import contextlib
import logging
from collections.abc import Iterator

from torch import nn

logger = logging.getLogger(__name__)

_MOST_NAMES = 5
"""Maximum number of names in the log line."""


@contextlib.contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Return a context in which all submodules are in evaluation mode. Afterwards, each has its earlier mode again."""
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        yield
    finally:
        module.train(modes[0][1])  # a module can override it, to undo what its eval() does
        for submodule, training in modes:
            submodule.training = training


def start_training(module: nn.Module) -> None:
    """Switch a model to training mode. If it already is, its submodules keep their modes: they may be frozen."""
    if not module.training:
        module.train()
    frozen = [name for name, submodule in module.named_modules() if not submodule.training]
    if frozen:
        hidden = f" and {len(frozen) - _MOST_NAMES:,} more" if len(frozen) > _MOST_NAMES else ""
        logger.info("submodules in evaluation mode keep it: %s%s", ", ".join(frozen[:_MOST_NAMES]), hidden)
