"""One training step: one optimizer update over its micro-batches.

Owns autocast, loss scaling, gradient averaging, clipping and the check for finite gradients. It never reads the device:
what it counts stays there until somebody asks. A step whose update is left out leaves the model as it was.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from common.batch import Batch
from common.distributed.world import World
from common.numerics import seed_step
from common.optimizers.learning_rate import LearningRateSchedule
from core.autocast import Autocast
from core.models.dense import unwrap
from core.models.sharded import ShardedModel


class Model(Protocol):
    """What can be trained: `loss, outputs = model(batch)`.

    loss: scalar, the sum over this rank's examples divided by their number, so that the mean over equal ranks is the
    loss of the global batch. outputs: tensors by name.
    """

    def __call__(self, batch: Any) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]: ...


class TrainStep:
    """Makes training steps of a model with an optimizer."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        learning_rates: LearningRateSchedule,
        *,
        world: World,
        autocast: Autocast,
        max_grad_norm: float | None = None,
        seed: int = 0,
    ) -> None:
        """Args:
        model: a Model; under DistributedDataParallel in a world of several ranks.
        optimizer: of the model's parameters.
        learning_rates: of its parameter groups.
        world: this process's place and device.
        autocast: of the forward passes; float16 brings a GradScaler with it.
        max_grad_norm: gradients are scaled down to this global L2 norm; None: never.
        seed: of dropout and other randomness within the model.
        """
        self._model = model
        self._optimizer = optimizer
        self._learning_rates = learning_rates
        self._world = world
        self._autocast = autocast
        self._max_grad_norm = max_grad_norm
        self._seed = seed
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._updates_in_backward = isinstance(model, ShardedModel)
        self._tables_have_changed = True
        self.tables_may_be_nonfinite = False
        """Whether the last step's loss was not finite, of which tables that steps before have updated may be the cause.
        The same on all ranks."""
        module = unwrap(model)
        saved = module.state_dict().keys()
        # Batch norm's running statistics: forward passes change them.
        self._buffers = [buffer for name, buffer in module.named_buffers() if name in saved]
        self._buffers_before = [buffer.clone() for buffer in self._buffers]
        # torch's fused SGD can't be told to leave its first update out: its momentum stays uninitialised memory.
        self._skips_on_device = (
            world.device.type != "cpu"
            and isinstance(optimizer, torch.optim.Adam)
            and all(group.get("fused") for group in optimizer.param_groups)
        )
        self._one = torch.ones((), device=world.device)
        self.scaler = torch.amp.GradScaler(
            world.device.type, enabled=autocast.dtype == torch.float16, init_scale=2.0**16
        )

    def __call__(self, micro_batches: Sequence[Batch], step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Makes step `step` (the first is 1).

        The gradient is that of the mean loss over the micro-batches and ranks. Where it is not finite on any rank it
        isn't on all, and the update is left out; the step counts. Where backward() updates tables, a loss that is not
        finite on any rank is found before. Buffers are then put back, too: batch norm has averaged in what was wrong.

        Returns:
          the mean loss of this rank's micro-batches, and 1.0 where the update was left out, else 0.0: detached scalars
          on the device.
        """
        seed_step(self._seed, step, self._world.rank)
        self._learning_rates.apply(step)
        self._forget_gradients()
        if self._buffers:  # one operation for all takes a third of the time
            torch._foreach_copy_(self._buffers_before, self._buffers)
        self.tables_may_be_nonfinite = False
        count = len(micro_batches)
        total: torch.Tensor | None = None
        for index, batch in enumerate(micro_batches):
            with self._synchronised(index == count - 1):
                with self._autocast():
                    loss, _ = self._model(batch)
                if self._updates_in_backward:
                    if not self._finite_everywhere(loss):
                        self.tables_may_be_nonfinite, self._tables_have_changed = self._tables_have_changed, False
                        self._put_buffers_back(self._one)
                        return loss.detach(), self._one
                    self._tables_have_changed = True
                self.scaler.scale(loss / count if count > 1 else loss).backward()
            loss = loss.detach()
            total = loss if total is None else total + loss
        assert total is not None
        skipped = self._update()
        self._put_buffers_back(skipped)
        return total / count if count > 1 else total, skipped

    def replay_for_diagnosis(self, micro_batches: Sequence[Batch], step: int) -> list[tuple[str, torch.Tensor]]:
        """What comes up in a step, by name, in the order in which it does: outputs and losses, then gradients.

        The step is made again, without an update, for a run that ends: the model isn't as it was afterwards. Gradients
        are this rank's own; where backward() updates tables, those of the last step. Collective.
        """
        seed_step(self._seed, step, self._world.rank)
        if not self._updates_in_backward:
            self._forget_gradients()
        found: list[tuple[str, torch.Tensor]] = []
        for batch in micro_batches:
            with self._synchronised(False):
                with self._autocast():
                    loss, outputs = self._model(batch)
                found += [(f"output {name}", output.detach()) for name, output in outputs.items()]
                found.append(("the loss", loss.detach()))
                if not self._updates_in_backward:
                    self.scaler.scale(loss / len(micro_batches)).backward()
        names = {parameter: name for name, parameter in unwrap(self._model).named_parameters()}
        gradients = [(names[p], p.grad) for p in self._parameters if p.grad is not None]
        return found + [(f"the gradient of {name}", gradient) for name, gradient in gradients]

    def _forget_gradients(self) -> None:
        for parameter in self._parameters:  # optimizer.zero_grad() takes 25 times as long
            parameter.grad = None

    def _put_buffers_back(self, skipped: torch.Tensor) -> None:
        """As they were before the step, where `skipped` is 1.0."""
        if not self._buffers or (self._world.device.type == "cpu" and not skipped.item()):
            return
        is_skipped = skipped.to(torch.bool)
        for before, buffer in zip(self._buffers_before, self._buffers, strict=True):
            buffer.copy_(torch.where(is_skipped, before, buffer))

    def _finite_everywhere(self, loss: torch.Tensor) -> bool:
        """Whether no rank's loss is NaN or infinite: backward() would put it into the tables. Collective."""
        finite = torch.isfinite(loss.detach()).to(torch.float32)
        if self._world.size > 1:
            dist.all_reduce(finite, op=dist.ReduceOp.MIN)
        return bool(finite.item())

    def _synchronised(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients are reduced over the ranks with the last micro-batch only."""
        if last or not isinstance(self._model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self._model.no_sync()

    def _update(self) -> torch.Tensor:
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if self.scaler.is_enabled():
            self.scaler.unscale_(self._optimizer)
        if self._max_grad_norm is not None:
            norm = torch.nn.utils.get_total_norm(gradients)
            not_finite = (~torch.isfinite(norm)).to(torch.float32)
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self._max_grad_norm, norm)
        else:
            not_finite = self._any_not_finite(gradients)
        if self.scaler.is_enabled():
            self.scaler.step(self._optimizer)
            self.scaler.update()
        elif self._skips_on_device:
            # It leaves the update out on the device itself, as it does for the GradScaler.
            self._optimizer.found_inf = not_finite  # type: ignore[attr-defined]
            self._optimizer.step()
        elif not not_finite.item():
            self._optimizer.step()
        return not_finite

    def _any_not_finite(self, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """1.0 where a gradient is NaN or infinite, else 0.0, without reading the device."""
        found = torch.zeros_like(self._one)
        by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
        for gradient in gradients:
            by_dtype.setdefault(gradient.dtype, []).append(gradient)
        for alike in by_dtype.values():
            # The GradScaler's own check, with a scale of 1: one operation, where get_total_norm takes a dozen.
            torch._amp_foreach_non_finite_check_and_unscale_(alike, found, self._one)
        return found
