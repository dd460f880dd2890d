"""Defines the state of a training run apart from its tensors: its progress, and what else a resume needs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from common.checkpointing.manifest import CheckpointError
from common.checkpointing.reader import CheckpointReader
from common.errors import ConfigError
from common.reader.order import Position
from common.reader.reader import BatchReader
from core.config.training import TrainingConfig


@dataclasses.dataclass
class TrainingState:
    """The state that the training loop advances, and that every checkpoint holds alongside its tensors."""

    identity: Mapping[str, Any]
    """Values that distinguish the run from others (core/run/identity.py)."""
    position: Position
    """Position in the training data after the last step."""
    step: int = 0
    """Number of steps done."""
    window: dict[str, float | None] = dataclasses.field(default_factory=dict)
    """Running sums since the last train log (core/loop/window.py)."""
    skipped_in_a_row: int = 0
    """Number of consecutive steps, up to `step`, whose update was skipped."""
    scaler: dict[str, Any] = dataclasses.field(default_factory=dict)
    """State of the GradScaler; empty without float16."""
    averaged_updates: int = 0
    """Number of updates in the moving average of the weights; 0 without one."""
    early_stopping: dict[str, Any] = dataclasses.field(default_factory=dict)
    """State of early stopping before an evaluation of `step` (core/run/early_stopping.py); empty without it."""
    tracker_run_id: str | None = None
    """Id that a tracking service knows the run by."""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The resolved configuration as JSON values, for those who use what was trained. Empty in older checkpoints."""
    inputs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Names of the run's copies of the files that the configuration names (core/run/inputs.py), by path."""

    def to_json(self) -> dict[str, Any]:
        """Return a copy as JSON values, which a save in the background can write. Floats keep every bit."""
        return {
            "progress": {
                "step": self.step,
                "position": dataclasses.asdict(self.position),
                "window": dict(self.window),
                "nonfinite_steps": self.skipped_in_a_row,
                "averaged_updates": self.averaged_updates,
            },
            "scaler": dict(self.scaler),
            "early_stopping": dict(self.early_stopping),
            "identity": self.identity,
            "tracker_run_id": self.tracker_run_id,
            "config": self.config,
            "inputs": self.inputs,
        }

    @classmethod
    def from_checkpoint(cls, checkpoint: CheckpointReader) -> "TrainingState":
        """Read the state in a checkpoint.

        Raises:
          CheckpointError: the checkpoint is damaged, or was not saved by a training run.
        """
        values = checkpoint.state()
        try:
            progress = values["progress"]
            return cls(
                identity=dict(values["identity"]),
                position=Position(progress["position"]["epoch"], tuple(progress["position"]["cursors"])),
                step=progress["step"],
                window=progress["window"],
                skipped_in_a_row=progress.get("nonfinite_steps", 0),
                scaler=dict(values["scaler"]),
                averaged_updates=progress.get("averaged_updates", 0),
                early_stopping=dict(values.get("early_stopping", {})),
                tracker_run_id=values["tracker_run_id"],
                config=dict(values.get("config", {})),
                inputs=dict(values.get("inputs", {})),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{checkpoint.path}: its state is not that of a training run ({error!r}); give a training checkpoint"
            ) from error


def check_run_length(config: TrainingConfig, reader: BatchReader[Any]) -> None:
    """Raise ConfigError if the epochs of a run have less data than one step needs."""
    available = reader.remaining_batches(Position.start(reader.lanes), config.num_epochs)
    if available < config.num_micro_batches:
        raise ConfigError(
            f"training.gradient_accumulation is {config.num_micro_batches}, but training.num_epochs "
            f"{config.num_epochs} gives only {available:.0f} batches, so there would be no step. Lower "
            "gradient_accumulation or global_batch_size, or raise num_epochs"
        )


def find_last_step(config: TrainingConfig, reader: BatchReader[Any], state: TrainingState) -> int:
    """Return the step at which the run ends: num_train_steps, or the last step that its epochs have data for."""
    remaining = reader.remaining_batches(state.position, config.num_epochs)
    return max(int(min(config.num_train_steps, state.step + remaining // config.num_micro_batches)), state.step)
