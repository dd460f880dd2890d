"""Runs forward passes under autocast as configured."""

import contextlib
import logging
from typing import Any

import torch

from common.numerics import emulates
from core.config.training import RuntimeConfig

logger = logging.getLogger(__name__)

AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Autocast:
    """Creates the context for forward passes: autocast, or none."""

    def __init__(self, device: torch.device, dtype: torch.dtype | None) -> None:
        """Initialize for a type of device. A dtype of None disables autocast."""
        self._device_type = device.type
        self.dtype = dtype

    def __call__(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context for one forward pass."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device_type, dtype=self.dtype)


def configured_autocast(runtime: RuntimeConfig, device: torch.device) -> Autocast:
    """Return the configured autocast. Logs a warning if it slows this CPU down."""
    if not runtime.enable_amp:
        return Autocast(device, None)
    dtype = AMP_DTYPES[runtime.amp_dtype]
    if emulates(dtype, device):
        logger.warning(
            "runtime.enable_amp: this CPU emulates %s because it has no %s units; float32 is faster",
            runtime.amp_dtype,
            runtime.amp_dtype,
        )
    return Autocast(device, dtype)
