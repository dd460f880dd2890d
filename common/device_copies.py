"""Batches on their way to the device that computes."""

from typing import TypeVar

import torch

from common.batch import Batch

B = TypeVar("B", bound=Batch)


class DeviceCopies:
    """Copies batches to CUDA on a stream of its own, so that a copy runs beside the steps before it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def copy(self, batch: B) -> B:
        """The batch on the device, for use on the current stream; on the CPU it is the same batch."""
        if self._stream is None:
            return batch  # where it was made
        with torch.cuda.stream(self._stream):
            copied = batch.to(self._device, non_blocking=True)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        copied.record_stream(current)
        return copied
