"""Names the tensors of a training run for a checkpoint, and loads them into a model and its optimizers."""

from collections.abc import Collection, Mapping

import torch

from common.checkpointing.manifest import CheckpointError
from common.checkpointing.reader import CheckpointReader
from core.models.averaging import WeightAverage
from core.models.interface import DistributedModel
from core.run.identity import capped_list

MODEL = "model."
AVERAGE = "average."
OPTIMIZER = "optimizer."
TABLE_OPTIMIZER = "table_optimizer."


def training_tensors(model: DistributedModel, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers of the model, their averages, and the states of the optimizers, by name.

    Nothing is copied.
    """
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.module.named_parameters()}
    tensors = {MODEL + name: tensor for name, tensor in model.module.state_dict().items()}
    if model.average is not None:
        tensors |= {AVERAGE + name: tensor for name, tensor in model.average.tensors().items()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensors[f"{OPTIMIZER}{key}.{names[parameter]}"] = value
    return tensors | {TABLE_OPTIMIZER + name: state for name, state in model.fused_optimizer_states().items()}


def load_model(model: DistributedModel, checkpoint: CheckpointReader) -> None:
    """Load the weights that training continues from into a model. For sharded tables, load the shards of this rank.

    After an error about damage, the weights may be anything.

    Raises:
      CheckpointError: the checkpoint is damaged, or holds a different model. The message names each difference.
    """
    _load(model, checkpoint, averaged=set())


def load_averaged_model(model: DistributedModel, checkpoint: CheckpointReader) -> None:
    """Load the weights to evaluate and to predict with: their moving averages if the checkpoint has them.

    Raises CheckpointError like load_model().
    """
    _load(model, checkpoint, averaged=checkpoint.types(AVERAGE).keys())


def load_average(average: WeightAverage, checkpoint: CheckpointReader) -> None:
    """Load the moving average of the weights. Raises CheckpointError like load_model()."""
    checkpoint.load(average.tensors(), AVERAGE)


def load_optimizer(model: DistributedModel, optimizer: torch.optim.Optimizer, checkpoint: CheckpointReader) -> None:
    """Load the states of the optimizers. Learning rates are functions of the step and are not saved."""
    saved = checkpoint.tensors(OPTIMIZER)
    names = {parameter: name for name, parameter in model.module.named_parameters()}
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in saved.items():
        key, _, parameter_name = name.partition(".")
        state.setdefault(order.index(parameter_name), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    if states := model.fused_optimizer_states():
        checkpoint.load(states, TABLE_OPTIMIZER)


def _load(model: DistributedModel, checkpoint: CheckpointReader, averaged: Collection[str]) -> None:
    """Load the averages of the named weights, and the other weights themselves."""
    state = model.module.state_dict()  # shares memory with the model
    _check_sizes(checkpoint, state)
    for prefix in (MODEL, AVERAGE):
        part = {name: tensor for name, tensor in state.items() if (name in averaged) == (prefix == AVERAGE)}
        if part:
            checkpoint.load(part, prefix)
    model.module.load_state_dict(state)


def _check_sizes(checkpoint: CheckpointReader, expected: Mapping[str, torch.Tensor]) -> None:
    saved = {name: tensor.size() for name, tensor in checkpoint.types(MODEL).items()}
    differences = [f"{name}: only in the checkpoint" for name in sorted(saved.keys() - expected.keys())]
    differences += [f"{name}: only in the model" for name in sorted(expected.keys() - saved.keys())]
    differences += [
        f"{name}: {list(saved[name])} in the checkpoint, {list(tensor.size())} in the model"
        for name, tensor in expected.items()
        if name in saved and saved[name] != tensor.size()
    ]
    if differences:
        raise CheckpointError(
            f"{checkpoint.path} holds the weights of a different model:\n  {capped_list(differences)}\n"
            "Configure the model that it was saved from, or give a checkpoint of this model."
        )
