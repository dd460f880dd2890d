"""A plain training loop for debugging a model: one process, no autocast, no checkpoints, and only the reader's threads.

It takes the arguments of core.custom_training_loop.train. Breakpoints work anywhere in the model.
"""

import contextlib
import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from common.distributed.world import World
from common.errors import UserError
from common.numerics import seed_step
from common.optimizers.learning_rate import LearningRateSchedule
from common.reader.reader import BatchReader
from core.config.training import JobConfig
from core.metrics.evaluation_set import EvaluationSet
from core.models.dense import as_distributed
from core.models.interface import DistributedModel

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
      UserError: there is more than one process.
    """
    if world.size > 1:
        raise UserError("--debug_loop runs in one process: start it with python -m instead of torchrun")
    training = config.training
    train_reader.check_trainable()
    distributed = as_distributed(model, world)
    with (
        contextlib.closing(train_reader.train(seed=config.runtime.seed, num_epochs=training.num_epochs)) as batches,
        torch.autograd.set_detect_anomaly(True),
    ):
        for step, positioned in enumerate(batches, start=1):
            seed_step(config.runtime.seed, step, world.rank)
            learning_rates.apply(step)
            loss, _ = distributed(positioned.batch.to(world.device))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            norm = nn.utils.clip_grad_norm_(distributed.module.parameters(), training.max_grad_norm or math.inf)
            optimizer.step()
            logger.info("step %d: loss %.6f, gradient norm %.4g", step, loss.item(), norm.item())
            if step == training.num_train_steps:
                break
    distributed.module.eval()
    for partition, evaluation_set in evaluation_sets.items():
        metrics = evaluation_set.make_metrics(world.device)
        with contextlib.closing(evaluation_set.reader.evaluate()) as batches, torch.no_grad():
            for index, positioned in enumerate(batches):
                if index == training.num_eval_steps:
                    break
                _, outputs = distributed(positioned.batch.to(world.device))
                metrics.update(outputs)
        values = metrics.compute()
        logger.info("evaluated %s: %s", partition, {key: values[key] for key in metrics.headline})
