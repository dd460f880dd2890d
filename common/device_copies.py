"""Copies batches to the compute device."""

from typing import TypeVar

import torch

from common.batch import Batch

B = TypeVar("B", bound=Batch)


class DeviceCopies:
    """Copies batches to CUDA on a separate stream, so that a copy overlaps with the steps before it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def copy(self, batch: B) -> B:
        """Return the batch on the device, ready for use on the current stream. On the CPU, return the batch itself."""
        if self._stream is None:
            return batch
        with torch.cuda.stream(self._stream):
            copied = batch.to(self._device, non_blocking=True)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        copied.record_stream(current)
        return copied
