"""What a resume needs, as tensors by name and as JSON values, and how it is put back."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from common.checkpointing.manifest import CheckpointError
from common.checkpointing.reader import CheckpointReader
from common.reader.order import Position
from common.reader.reader import BatchReader
from core.config.training import JobConfig, TrainingConfig
from core.models.dense import unwrap
from core.models.sharded import ShardedModel, is_sharded

_MODEL = "model."
_OPTIMIZER = "optimizer."
_TABLE_OPTIMIZER = "table_optimizer."


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run has come, as a checkpoint remembers it."""

    step: int
    position: Position
    window: dict[str, float | None]
    """Running sums since the last train log (core.loop.window)."""
    nonfinite_steps: int = 0
    """Steps in a row, up to `step`, whose update was left out (core.loop.skipped_steps)."""

    @classmethod
    def start(cls, lanes: int) -> "Progress":
        """Before the first step."""
        return cls(0, Position.start(lanes), {})

    def to_json(self) -> dict[str, Any]:
        """JSON values; floats survive to the last bit."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Progress":
        """The inverse of to_json()."""
        position = Position(values["position"]["epoch"], tuple(values["position"]["cursors"]))
        return cls(values["step"], position, values["window"], values.get("nonfinite_steps", 0))


@dataclasses.dataclass(frozen=True)
class SavedState:
    """What a checkpoint holds beside its tensors."""

    progress: Progress
    scaler: dict[str, Any]
    """Of float16; else empty."""
    identity: Mapping[str, Any]
    """Of the run."""
    tracker_run_id: str | None
    """The id that a tracking service knows the run by."""

    def to_json(self) -> dict[str, Any]:
        """JSON values, as Progress's."""
        return {
            "progress": self.progress.to_json(),
            "scaler": self.scaler,
            "identity": self.identity,
            "tracker_run_id": self.tracker_run_id,
        }

    @classmethod
    def of(cls, checkpoint: CheckpointReader) -> "SavedState":
        """Raises CheckpointError: the checkpoint is damaged, or no training run's."""
        values = checkpoint.state()
        try:
            progress = Progress.from_json(values["progress"])
            return cls(progress, dict(values["scaler"]), dict(values["identity"]), values["tracker_run_id"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{checkpoint.path}: its state is not that of a training run ({error!r}); give a checkpoint of one"
            ) from error


def find_last_step(config: TrainingConfig, reader: BatchReader[Any], progress: Progress) -> int:
    """The step that a run ends with which has come as far as `progress`: num_train_steps, or what its epochs hold."""
    remaining = reader.remaining_batches(progress.position, config.num_epochs)
    return max(int(min(config.num_train_steps, progress.step + remaining // config.micro_batches)), progress.step)


def run_identity(config: JobConfig, reader: BatchReader[Any]) -> dict[str, Any]:
    """What makes a run this run, as JSON values: its checkpoints have it, a resume must find it unchanged."""
    return config.identity() | {"training files": reader.fingerprint}


def training_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The model's parameters and buffers and the optimizers' states, by name. Not copied.

    model: wrapped for several ranks or not.
    """
    module = unwrap(model)
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    tensors = {_MODEL + name: tensor for name, tensor in module.state_dict().items()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensors[f"{_OPTIMIZER}{key}.{names[parameter]}"] = value
    if isinstance(model, ShardedModel):
        tensors |= {_TABLE_OPTIMIZER + name: state for name, state in model.table_optimizer_states().items()}
    return tensors


def load_model(model: nn.Module, checkpoint: CheckpointReader) -> None:
    """Puts a checkpoint's weights into a model, wrapped or not; of tables, this rank's shards.

    Raises:
      CheckpointError: the checkpoint is damaged, or another model's: each difference is named.
    """
    module = unwrap(model)
    expected = module.state_dict()
    _check_sizes(checkpoint, expected)
    loaded = {
        name: value if is_sharded(value) else torch.empty_like(value, device="cpu") for name, value in expected.items()
    }
    checkpoint.load(loaded, _MODEL)
    module.load_state_dict(loaded)


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: CheckpointReader) -> None:
    """Puts the states of the optimizers back. Learning rates are functions of the step and need none.

    model: as of load_model().
    """
    saved = checkpoint.tensors(_OPTIMIZER)
    names = {parameter: name for name, parameter in unwrap(model).named_parameters()}
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in saved.items():
        key, _, parameter_name = name.partition(".")
        state.setdefault(order.index(parameter_name), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    if isinstance(model, ShardedModel) and (states := model.table_optimizer_states()):
        checkpoint.load(states, _TABLE_OPTIMIZER)


def _check_sizes(checkpoint: CheckpointReader, expected: Mapping[str, torch.Tensor]) -> None:
    saved = {name: tensor.size() for name, tensor in checkpoint.types(_MODEL).items()}
    differences = [f"{name}: only in the checkpoint" for name in sorted(saved.keys() - expected.keys())]
    differences += [f"{name}: only in the model" for name in sorted(expected.keys() - saved.keys())]
    differences += [
        f"{name}: {list(saved[name])} in the checkpoint, {list(tensor.size())} in the model"
        for name, tensor in expected.items()
        if name in saved and saved[name] != tensor.size()
    ]
    if differences:
        listed = "\n  ".join(differences[:20] + [f"and {len(differences) - 20} more"] * (len(differences) > 20))
        raise CheckpointError(
            f"{checkpoint.path}: the weights of another model:\n  {listed}\n"
            "Configure the model that it was saved from, or give a checkpoint of this one."
        )
