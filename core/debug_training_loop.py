"""The plain loop to debug a model with: one process, no autocast, no checkpoints, no threads beyond the reader's.

Takes the arguments of core.custom_training_loop.train; a breakpoint anywhere in the model stops here at once.
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
from core.evaluation.evaluator import EvaluationSet

logger = logging.getLogger(__name__)


def train(
    config: JobConfig,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    learning_rates: LearningRateSchedule,
    train_reader: BatchReader[Any],
    partitions: Mapping[str, EvaluationSet],
    world: World,
) -> None:
    """Trains step by step, logging every loss, then evaluates; writes nothing.

    Each batch is a step: gradient_accumulation has no effect. An operation that gives NaN in backward is named by
    autograd's anomaly detection.

    Raises:
      UserError: there are several processes.
    """
    if world.size > 1:
        raise UserError("--debug_loop runs in one process: start it with python -m instead of torchrun")
    training = config.training
    train_reader.check_trainable()
    with (
        contextlib.closing(train_reader.train(seed=config.runtime.seed, num_epochs=training.num_epochs)) as batches,
        torch.autograd.set_detect_anomaly(True),
    ):
        for step, placed in enumerate(batches, start=1):
            seed_step(config.runtime.seed, step, world.rank)
            learning_rates.apply(step)
            loss, _ = model(placed.batch.to(world.device))
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm or math.inf)
            optimizer.step()
            logger.info("step %d: loss %.6f, gradient norm %.4g", step, loss.item(), norm.item())
            if step == training.num_train_steps:
                break
    model.eval()
    for name, partition in partitions.items():
        metrics = partition.make_metrics(world.device)
        with contextlib.closing(partition.reader.evaluate()) as batches, torch.no_grad():
            for index, placed in enumerate(batches):
                if index == training.num_eval_steps:
                    break
                _, outputs = model(placed.batch.to(world.device))
                metrics.update(outputs)
        values = metrics.compute()
        logger.info("evaluated %s: %s", name, {key: values[key] for key in metrics.headline})
