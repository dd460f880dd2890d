"""Builds the Heavy Ranker's optimizer, with one learning rate for the backbone and one for each tower."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from common.errors import ConfigError
from common.modules.keys import module_key
from common.optimizers.config import LearningRate
from common.optimizers.learning_rate import ParameterGroupScheduler
from projects.home.recap.model.heavy_ranker import HeavyRanker
from projects.home.recap.optimizer.config import BACKBONE, RecapOptimizerConfig


@dataclass(frozen=True)
class _Part:
    """A part of the model with a learning rate of its own."""

    name: str
    parameters: list[torch.nn.Parameter]
    rate: LearningRate


def build_optimizer(
    ranker: HeavyRanker, config: RecapOptimizerConfig
) -> tuple[torch.optim.Optimizer, ParameterGroupScheduler]:
    """Build the optimizer and the learning rate scheduler of its parameter groups.

    The groups are named "backbone" and by task, or "model" if there is a single learning rate. AdamW has a second group
    for the parameters of each part that do not decay, named "backbone/no_decay" for example.

    Args:
      ranker: the model, already on its device.
      config: the optimizer's configuration.

    Raises:
      ConfigError: backbone_learning_rate is missing, or is set although all parameters belong to the towers.
    """
    parts = _parts(ranker, config)
    groups: list[dict[str, object]] = [{"params": part.parameters, "name": part.name} for part in parts]
    rates = [part.rate for part in parts]
    optimizer: torch.optim.Optimizer
    if (adam := config.adam) is not None:
        optimizer = torch.optim.Adam(groups, betas=(adam.beta_1, adam.beta_2), eps=adam.epsilon, fused=True)
    elif (adamw := config.adamw) is not None:
        groups, rates = _with_decay(ranker, parts, adamw.weight_decay)
        optimizer = torch.optim.AdamW(groups, betas=(adamw.beta_1, adamw.beta_2), eps=adamw.epsilon, fused=True)
    else:
        assert config.adagrad is not None
        optimizer = _adagrad(groups, config.adagrad.epsilon)
    return optimizer, ParameterGroupScheduler(optimizer, rates)


def _adagrad(groups: Sequence[dict[str, object]], epsilon: float) -> torch.optim.Adagrad:
    """Build Adagrad, fused where torch can: not on CUDA before torch 2.13."""
    try:
        return torch.optim.Adagrad([dict(group) for group in groups], eps=epsilon, fused=True)
    except RuntimeError:
        return torch.optim.Adagrad(groups, eps=epsilon)


def _parts(ranker: HeavyRanker, config: RecapOptimizerConfig) -> list[_Part]:
    """Return the parts of the model and their learning rates. Every parameter is in one part."""
    if config.multi_task_learning_rates is None:
        assert config.single_task_learning_rate is not None
        return [_Part("model", list(ranker.parameters()), config.single_task_learning_rate)]
    towers = {id(p) for p in ranker.towers.parameters()}
    shared = [p for p in ranker.parameters() if id(p) not in towers]
    backbone_rate = config.multi_task_learning_rates.backbone_learning_rate
    key_path = "optimizer.multi_task_learning_rates.backbone_learning_rate"
    if shared and backbone_rate is None:
        count = sum(p.numel() for p in shared)
        raise ConfigError(f"{key_path} is missing, but the model has {count:,} parameters outside its towers")
    if not shared and backbone_rate is not None:
        raise ConfigError(f"{key_path} is set, but the model has no parameters outside its towers. Set it to null")
    parts = [] if backbone_rate is None else [_Part(BACKBONE, shared, backbone_rate)]
    for task in ranker.tasks:
        parameters = list(ranker.towers[module_key(task)].parameters())
        parts.append(_Part(task, parameters, config.multi_task_learning_rates.tower_learning_rates[task]))
    return parts


def _with_decay(
    ranker: HeavyRanker, parts: list[_Part], weight_decay: float
) -> tuple[list[dict[str, object]], list[LearningRate]]:
    """Return a group of each part's parameters with decay and one of those without, if it has any, and their rates."""
    without = {id(p) for p in _without_decay(ranker)}
    groups: list[dict[str, object]] = []
    rates: list[LearningRate] = []
    for part in parts:
        for name, decay, decays in ((part.name, weight_decay, True), (f"{part.name}/no_decay", 0.0, False)):
            if chosen := [p for p in part.parameters if (id(p) not in without) == decays]:
                groups.append({"params": chosen, "name": name, "part": part.name, "weight_decay": decay})
                rates.append(part.rate)
    return groups, rates


def _without_decay(ranker: HeavyRanker) -> Iterator[torch.nn.Parameter]:
    """Yield the parameters that do not decay: those of fewer than two dimensions, and embedding tables.

    A row of a table gets a gradient only from some batches, but would decay in all, rare rows the most.
    """
    for module in ranker.modules():
        is_table = isinstance(module, torch.nn.Embedding | torch.nn.EmbeddingBag)
        yield from (p for p in module.parameters(recurse=False) if is_table or p.dim() < 2)
