"""Runs a training step: one optimizer update over its micro-batches.

Owns autocast, loss scaling, gradient averaging, clipping and the check for non-finite gradients. With fused Adam on
CUDA, a step never waits for the device: its counts stay there until they are read. A skipped update leaves the
model as it was. An applied one is averaged into the moving average of the weights, if the model has one.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from common.batch import Batch
from common.distributed.world import World
from common.errors import UserError
from common.numerics import seed_step
from common.optimizers.learning_rate import LearningRateSchedule
from core.autocast import Autocast
from core.loop.missing_gradients import check_gradients
from core.models.interface import DistributedModel


class TrainStep:
    """Trains a model with an optimizer, one step per call."""

    def __init__(
        self,
        model: DistributedModel,
        optimizer: torch.optim.Optimizer,
        learning_rates: LearningRateSchedule,
        *,
        world: World,
        autocast: Autocast,
        max_grad_norm: float | None = None,
        seed: int = 0,
    ) -> None:
        """Initialize.

        Args:
          model: the model, replicated if there are several ranks.
          optimizer: the optimizer of the model's parameters.
          learning_rates: the learning rates of all optimizers.
          world: rank of this process, world size and device.
          autocast: autocast of the forward passes. float16 implies a GradScaler.
          max_grad_norm: gradients are scaled down to this global L2 norm. None disables clipping.
          seed: seed of dropout and other randomness in the model.

        Raises:
          UserError: the model has sharded tables, and autocast is float16.
        """
        if model.has_sharded_tables and autocast.dtype == torch.float16:
            raise UserError(
                "runtime.amp_dtype: float16 scales the loss, but the gradients of sharded tables cannot be scaled "
                "back. Use bfloat16"
            )
        self._model = model
        self._optimizer = optimizer
        self._learning_rates = learning_rates
        self._world = world
        self._autocast = autocast
        self._max_grad_norm = max_grad_norm
        self._seed = seed
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._has_checked_gradients = False
        self._tables_have_changed = True
        self.tables_may_be_nonfinite = False
        """True if the last step was skipped, possibly because of tables that earlier steps updated. The same on all
        ranks."""
        saved = model.module.state_dict().keys()
        # Forward passes update the running statistics of batch norm.
        self._buffers = [buffer for name, buffer in model.module.named_buffers() if name in saved]
        self._buffers_before = [buffer.clone() for buffer in self._buffers]
        # torch's fused SGD cannot skip its first update: its momentum would stay uninitialized memory.
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
        """Train step number `step` (the first is 1).

        The gradient is that of the mean loss over micro-batches and ranks. If it is non-finite on any rank, all ranks
        skip the update, but the step counts. With sharded tables, whose gradients are local to a rank, the ranks
        combine what they find. After a skipped update, buffers are restored too, because batch norm has averaged in the
        bad values. The first call checks that all parameters get a gradient.

        Returns:
          The mean loss of this rank's micro-batches, and 1.0 if the update was skipped, else 0.0. Both are detached
          scalars on the device.

        Raises:
          UserError: a trainable parameter got no gradient in the first backward pass, or the model has sharded tables
            and there are several micro-batches. All ranks raise it.
        """
        if self._model.has_sharded_tables and len(micro_batches) > 1:
            raise UserError(
                "training.gradient_accumulation: the gradients of sharded tables cannot be accumulated. Remove this "
                "key and raise the batch size instead"
            )
        seed_step(self._seed, step, self._world.rank)
        self._learning_rates.apply(step)
        self._clear_gradients()
        if self._buffers:  # one operation for all takes a third of the time
            torch._foreach_copy_(self._buffers_before, self._buffers)
        if not self._has_checked_gradients and self._world.size > 1 and not self._model.has_sharded_tables:
            self._check_gradients_before_reduction(micro_batches[0], step)
        self.tables_may_be_nonfinite = False
        count = len(micro_batches)
        total: torch.Tensor | None = None
        for index, batch in enumerate(micro_batches):
            with self._reducing_gradients(index == count - 1):
                with self._autocast():
                    loss, _ = self._model(batch)
                self._backward(self.scaler.scale(loss / count if count > 1 else loss))
            loss = loss.detach()
            total = loss if total is None else total + loss
        assert total is not None
        skipped = self._update(total)
        self._restore_buffers(skipped)
        if self._model.average is not None:
            self._model.average.update(skipped)
        return total / count if count > 1 else total, skipped

    def _backward(self, loss: torch.Tensor) -> None:
        """Compute gradients. The first time, check that all parameters get one. Collective."""
        if self._has_checked_gradients:
            torch.autograd.backward(loss)
            return
        if loss.requires_grad:  # otherwise, it depends on no trainable parameter
            torch.autograd.backward(loss)
        check_gradients(self._model, self._world.consensus)
        self._has_checked_gradients = True

    def _check_gradients_before_reduction(self, batch: Batch, step: int) -> None:
        """Check that all parameters get a gradient, in an additional pass in which DDP does not wait for them."""
        with self._model.no_sync():
            with self._autocast():
                loss, _ = self._model(batch)
            self._backward(self.scaler.scale(loss))
        self._model.module.zero_grad(set_to_none=True)
        self._restore_buffers(self._one)
        seed_step(self._seed, step, self._world.rank)

    def replay_for_diagnosis(self, micro_batches: Sequence[Batch], step: int) -> list[tuple[str, torch.Tensor]]:
        """Return the tensors of a step by name, in the order of the computation: outputs, losses, then gradients.

        Repeats the step without an update, for a run that is about to end: the model is not usable afterwards.
        Gradients are this rank's own, or their means over the ranks if there are sharded tables. Collective.
        """
        seed_step(self._seed, step, self._world.rank)
        self._clear_gradients()
        found: list[tuple[str, torch.Tensor]] = []
        for batch in micro_batches:
            with self._model.no_sync():
                with self._autocast():
                    loss, outputs = self._model(batch)
                found += [(f"output {name}", output.detach()) for name, output in outputs.items()]
                found.append(("the loss", loss.detach()))
                torch.autograd.backward(self.scaler.scale(loss / len(micro_batches)))
        names = {parameter: name for name, parameter in self._model.module.named_parameters()}
        gradients = [(names[p], p.grad) for p in self._parameters if p.grad is not None]
        return found + [(f"the gradient of {name}", gradient) for name, gradient in gradients]

    def _clear_gradients(self) -> None:
        for parameter in self._parameters:  # optimizer.zero_grad() takes 25 times as long
            parameter.grad = None

    def _restore_buffers(self, skipped: torch.Tensor) -> None:
        """Restore the buffers from before the step if `skipped` is 1.0."""
        if not self._buffers or (self._world.device.type == "cpu" and not skipped.item()):
            return
        is_skipped = skipped.to(torch.bool)
        for before, buffer in zip(self._buffers_before, self._buffers, strict=True):
            buffer.copy_(torch.where(is_skipped, before, buffer))

    def _on_any_rank(self, not_finite: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
        """Return 1.0 if a gradient, a gradient of table rows, or the loss is non-finite on any rank. Collective."""
        found = torch.maximum(not_finite, self._any_not_finite([*self._model.row_gradients(), loss]))
        if self._world.size > 1:
            dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return found

    def _reducing_gradients(self, is_last: bool) -> contextlib.AbstractContextManager[Any]:
        """Return a context that reduces gradients over the ranks only with the last micro-batch."""
        return contextlib.nullcontext() if is_last else self._model.no_sync()

    def _update(self, loss: torch.Tensor) -> torch.Tensor:
        """Update everything unless a gradient is non-finite. Return 1.0 if the update is skipped, else 0.0."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if self.scaler.is_enabled():
            self.scaler.unscale_(self._optimizer)
        if self._max_grad_norm is not None:
            norm = torch.nn.utils.get_total_norm(gradients)
            not_finite = (~torch.isfinite(norm)).to(torch.float32)
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self._max_grad_norm, norm)
        else:
            not_finite = self._any_not_finite(gradients)
        # not_finite alone decides about everything. scaler.step() would decide by the scaled gradients, which can be
        # finite although the norm, or a gradient divided by a scale below 1, is not.
        if self._model.has_sharded_tables:
            not_finite = self._on_any_rank(not_finite, loss)
            if not_finite.item():
                self.tables_may_be_nonfinite, self._tables_have_changed = self._tables_have_changed, False
            else:
                self._model.update_tables()
                self._optimizer.step()
                self._tables_have_changed = True
        elif self._skips_on_device:
            # The optimizer skips the update on the device, as it does for the GradScaler.
            self._optimizer.found_inf = not_finite  # type: ignore[attr-defined]
            self._optimizer.step()
        elif not not_finite.item():
            self._optimizer.step()
        if self.scaler.is_enabled():
            self.scaler.update()
        return not_finite

    def _any_not_finite(self, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return 1.0 if a gradient is NaN or infinite, else 0.0, without waiting for the device."""
        found = torch.zeros_like(self._one)
        by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
        for gradient in gradients:
            by_dtype.setdefault(gradient.dtype, []).append(gradient)
        for group in by_dtype.values():
            # The GradScaler's own check with a scale of 1: one operation, where get_total_norm takes a dozen.
            torch._amp_foreach_non_finite_check_and_unscale_(group, found, self._one)
        return found
