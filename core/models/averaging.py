"""Keeps an exponential moving average of a model's weights, as configured by training.ema_decay."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


class WeightAverage:
    """The moving average of the trainable parameters and of the saved float buffers of a model, such as batch norm's.

    Update n (from 1) is average = d * average + (1 - d) * weights with d = min(decay, (1 + n) / (10 + n)), as in
    tf.train.ExponentialMovingAverage with num_updates: the average forgets the initial weights quickly. It has the
    dtype of the weights. All other tensors of the model, such as counters and frozen parameters, count as they are.
    """

    def __init__(self, module: nn.Module, decay: float, num_updates: int = 0) -> None:
        """Begin with a copy of the current weights.

        Args:
          module: the model.
          decay: the largest decay of an update, in (0, 1).
          num_updates: number of updates so far (>= 0).
        """
        saved = module.state_dict().keys()
        names: dict[torch.Tensor, list[str]] = {}  # tied parameters have several names
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if name in saved and parameter.requires_grad:
                names.setdefault(parameter, []).append(name)
        self._num_parameters = len(names)
        for name, buffer in module.named_buffers(remove_duplicate=False):
            if name in saved and buffer.is_floating_point():
                names.setdefault(buffer, []).append(name)
        self._weights = [tensor.detach() for tensor in names]
        self._averages = [tensor.clone() for tensor in self._weights]
        self._names = list(names.values())
        self._decay = decay
        self._by_dtype: dict[torch.dtype, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        for weight, average in zip(self._weights, self._averages, strict=True):
            weights, averages = self._by_dtype.setdefault(weight.dtype, ([], []))
            weights.append(weight)
            averages.append(average)
        device = self._weights[0].device if self._weights else torch.device("cpu")
        self._num_updates = torch.tensor(num_updates, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, skipped: torch.Tensor) -> None:
        """Average in the weights after a step, unless its update was skipped. Does not wait for the device.

        Args:
          skipped: 1.0 if the update was skipped, else 0.0, as a scalar on the device.
        """
        if skipped.device.type == "cpu":
            if not skipped.item():
                self._num_updates += 1
                n = self._num_updates.item()
                share = 1 - min(self._decay, (1 + n) / (10 + n))
                for weights, averages in self._by_dtype.values():
                    torch._foreach_lerp_(averages, weights, share)
            return
        applied = 1 - skipped.double()
        self._num_updates += applied
        decay = ((1 + self._num_updates) / (10 + self._num_updates)).clamp(max=self._decay)
        for dtype, (weights, averages) in self._by_dtype.items():
            # lerp() with a share on the device would need one kernel per tensor.
            changes = torch._foreach_sub(weights, averages)
            torch._foreach_mul_(changes, (applied * (1 - decay)).to(dtype))
            torch._foreach_add_(averages, changes)

    @contextlib.contextmanager
    def in_place_of_weights(self) -> Iterator[None]:
        """Return a context in which the model has the averages. Afterwards, it has its weights again, bit for bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @property
    def num_updates(self) -> int:
        """Number of updates so far. Waits for the device."""
        return int(self._num_updates.item())

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the averages by the names of the weights. Nothing is copied."""
        return {name: average for names, average in zip(self._names, self._averages, strict=True) for name in names}

    def buffers(self) -> list[torch.Tensor]:
        """Return the averages of buffers, which may differ between ranks. Nothing is copied."""
        return self._averages[self._num_parameters :]

    @torch.no_grad()
    def _exchange(self) -> None:
        """Exchange the weights and their averages, with a copy of one tensor at a time."""
        for weight, average in zip(self._weights, self._averages, strict=True):
            copied = weight.clone()
            weight.copy_(average)
            average.copy_(copied)
