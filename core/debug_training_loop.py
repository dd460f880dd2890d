"""A plain training loop for debugging a model: one process, no autocast, no checkpoints, and only the reader's threads.

It takes the arguments of core.custom_training_loop.train. Breakpoints work anywhere in the model.
"""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from common.distributed.world import World
from common.errors import UserError
from common.numerics import seed_step
from common.optimizers.learning_rate import LearningRateSchedule
from common.reader.reader import BatchReader
from core.config.training import JobConfig
from core.loop.missing_gradients import check_gradients
from core.metrics.evaluation_set import EvaluationSet
from core.models.dense import as_distributed
from core.models.interface import DistributedModel
from core.models.modes import evaluation_mode, start_training

logger = logging.getLogger(__name__)


def train(
    config: JobConfig,
    model: nn.Module | DistributedModel,
    optimizer: torch.optim.Optimizer,
    learning_rates: LearningRateSchedule,
    train_reader: BatchReader[Any],
    evaluation_sets: Mapping[str, EvaluationSet],
    world: World,
) -> None:
    """Train step by step and log every loss, then evaluate. Writes nothing.

    Each batch is a step: gradient_accumulation has no effect. autograd's anomaly detection names an operation that
    produces NaN in backward().

    Raises:
      UserError: there is more than one process, or a trainable parameter gets no gradient.
    """
    if world.size > 1:
        raise UserError("--debug_loop runs in one process: start it with python -m instead of torchrun")
    training = config.training
    train_reader.check_trainable()
    distributed = as_distributed(model, world)
    start_training(distributed.module)
    with (
        contextlib.closing(train_reader.train(seed=config.runtime.seed, num_epochs=training.num_epochs)) as batches,
        torch.autograd.set_detect_anomaly(True),
    ):
        for step, positioned in enumerate(batches, start=1):
            seed_step(config.runtime.seed, step, world.rank)
            learning_rates.apply(step)
            loss, _ = distributed(positioned.batch.to(world.device))
            optimizer.zero_grad()
            if step > 1 or loss.requires_grad:
                torch.autograd.backward(loss)
            if step == 1:
                check_gradients(distributed, world.consensus)
            norm, is_finite = _clip(optimizer, training.max_grad_norm, distributed.row_gradients())
            if is_finite:
                distributed.update_tables()
                optimizer.step()
            skipped = "" if is_finite else ", update skipped"
            logger.info("step %d: loss %.6f, gradient norm %.4g%s", step, loss.item(), norm, skipped)
            if step == training.num_train_steps:
                break
    with evaluation_mode(distributed.module), torch.no_grad():
        for partition, evaluation_set in evaluation_sets.items():
            metrics = evaluation_set.make_metrics(world.device)
            with contextlib.closing(evaluation_set.reader.evaluate()) as batches:
                for index, positioned in enumerate(batches):
                    if index == training.num_eval_steps:
                        break
                    _, outputs = distributed(positioned.batch.to(world.device))
                    metrics.update(outputs)
            values = metrics.compute()
            logger.info("evaluated %s: %s", partition, {key: values[key] for key in metrics.headline})


def _clip(
    optimizer: torch.optim.Optimizer, max_grad_norm: float | None, row_gradients: Sequence[torch.Tensor]
) -> tuple[float, bool]:
    """Clip the gradients. Return their norm before that, and whether the trainer would update the parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    gradients = [p.grad for p in parameters]
    norm = nn.utils.get_total_norm(gradients)
    if max_grad_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
        gradients = [norm]
    return norm.item(), all(bool(gradient.isfinite().all()) for gradient in (*gradients, *row_gradients))
