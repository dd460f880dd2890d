"""Runs forward passes under autocast, as the configuration asks."""

import contextlib
import logging
from typing import Any

import torch

from common.numerics import emulates_bfloat16
from core.config.training import RuntimeConfig

logger = logging.getLogger(__name__)

AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Autocast:
    """Creates the context of a forward pass: autocast to a dtype, or nothing."""

    def __init__(self, device: torch.device, dtype: torch.dtype | None) -> None:
        """Initialize.

        Args:
          device: device of the forward passes.
          dtype: dtype of autocast. None disables it.
        """
        self._device_type = device.type
        self.dtype = dtype

    def __call__(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context for one forward pass."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device_type, dtype=self.dtype)


def configured_autocast(runtime: RuntimeConfig, device: torch.device) -> Autocast:
    """Return the autocast that the configuration asks for. Warn if it makes this CPU slower."""
    if not runtime.enable_amp:
        return Autocast(device, None)
    if runtime.amp_dtype == "bfloat16" and emulates_bfloat16(device):
        logger.warning("runtime.enable_amp: this CPU has no bfloat16 units and emulates them; float32 is faster here")
    return Autocast(device, AMP_DTYPES[runtime.amp_dtype])
