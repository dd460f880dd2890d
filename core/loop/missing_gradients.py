"""Names the parameters that training would not change because they get no gradient.

Without this check, one process silently never trains them, and on several ranks DDP fails with their indices, or hangs
if only some ranks use them.
"""

from torch import nn

from common.distributed.consensus import RankConsensus
from common.errors import UserError
from core.models.interface import DistributedModel
from core.models.shards import is_sharded

_MOST_NAMES = 10
"""Maximum number of names in the message."""


def check_gradients(model: DistributedModel, consensus: RankConsensus) -> None:
    """Check that every trainable parameter has a gradient, after the first backward pass. Collective.

    Frozen parameters (requires_grad is False) need none, and neither do sharded tables, which have gradients only of
    the rows that were looked up.

    Raises:
      UserError: a parameter has no gradient on some rank, or there are no trainable parameters. All ranks raise it.
    """
    parameters = _trainable_parameters(model)
    missing = [name for name, parameter in parameters.items() if parameter.grad is None]
    by_rank = consensus.gather(missing)
    if not parameters and not model.has_sharded_tables:
        raise UserError("the model has no trainable parameters: requires_grad is False for all of them")
    names = list(dict.fromkeys(name for names in by_rank for name in names))
    if not names:
        return
    ranks = [str(rank) for rank, names in enumerate(by_rank) if names]
    where = f" on rank {', '.join(ranks)}" if len(ranks) < len(by_rank) else ""
    hidden = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    raise UserError(
        f"{len(names):,} of the model's {len(parameters):,} trainable parameters got no gradient in the first backward "
        f"pass{where}, so training would not change them: {', '.join(names[:_MOST_NAMES])}{hidden}.\n"
        "Use them in the loss of every batch, remove them from the model, or freeze them with requires_grad_(False)."
    )


def _trainable_parameters(model: DistributedModel) -> dict[str, nn.Parameter]:
    sharded = {name for name, tensor in model.module.state_dict().items() if is_sharded(tensor)}
    named = model.module.named_parameters()
    return {name: parameter for name, parameter in named if parameter.requires_grad and name not in sharded}
