"""Builds optimizers for dense parameters. common/modules/embedding/tables.py builds those for embedding tables."""

from collections.abc import Iterable

import torch

from common.optimizers.config import OptimizerConfig
from common.optimizers.learning_rate import ParameterGroupScheduler


def build_optimizer(
    parameters: Iterable[torch.nn.Parameter], config: OptimizerConfig, name: str
) -> tuple[torch.optim.Optimizer, ParameterGroupScheduler]:
    """Return an optimizer with one parameter group, and the scheduler of its learning rate.

    Args:
      parameters: parameters of the group; may be empty.
      config: any optimizer except row_wise_adagrad.
      name: name of the group in the log of learning rates.
    """
    groups = [{"params": list(parameters), "name": name}]
    optimizer: torch.optim.Optimizer
    if config.adam is not None:
        first, second = config.adam.betas
        optimizer = torch.optim.Adam(groups, betas=(first, second), eps=config.adam.eps, fused=True)
    elif config.adagrad is not None:
        optimizer = torch.optim.Adagrad(groups, eps=config.adagrad.eps)
    else:
        assert config.sgd is not None, "row-wise Adagrad is for embedding tables"
        optimizer = torch.optim.SGD(groups, momentum=config.sgd.momentum)
    return optimizer, ParameterGroupScheduler(optimizer, [config.rate])
