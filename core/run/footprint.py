"""Refuses a run whose gradients, optimizer states and copies for checkpoints do not fit into memory."""

from common.errors import ConfigError
from common.process.memory import format_bytes, memory_shortage
from core.models.shards import local_parts
from core.run.components import TrainingComponents
from core.run.tensors import training_tensors


def check_memory(components: TrainingComponents) -> None:
    """Check the memory that training allocates after the model: by its first update, and by its first checkpoint.

    Raises:
      ConfigError: this process and the others on its machine need more memory than there is.
    """
    model, optimizer, world = components.model, components.optimizer, components.world
    tensors = training_tensors(model, optimizer)
    copies = sum(part.tensor.nbytes for tensor in tensors.values() for part in local_parts(tensor))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    dense = sum(parameter.nbytes for parameter in parameters)
    # Adam creates two states like each parameter at its first update.
    new_states = 2 * dense if "betas" in optimizer.defaults and not optimizer.state else 0
    averages = dense if components.config.training.ema_decay is not None else 0
    copies += new_states + averages
    updates = dense + new_states + averages if world.device.type == "cpu" else 0
    held = "gradients, averages and optimizer states" if averages else "gradients and optimizer states"
    if shortage := memory_shortage(copies + updates):
        raise ConfigError(
            f"training the model {shortage}. Of this, {format_bytes(updates)} is for {held}, "
            f"and {format_bytes(copies)} for the copy from which checkpoints are written. Configure smaller tables or "
            "layers, or use more processes or machines"
        )
