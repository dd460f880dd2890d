"""Shards embedding tables over the ranks with TorchRec's planner and DistributedModelParallel.

Owns the learning rates of the tables' optimizers. plan.py decides how tables are sharded, and table_rows.py handles
their rows. Functions import torchrec lazily, so that dense models can be trained on systems where it cannot be
installed.
"""

import contextlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor

from common.distributed.world import World
from common.modules.embedding.config import EmbeddingBagConfig
from common.modules.embedding.tables import quiet
from common.optimizers.config import LearningRate
from common.optimizers.learning_rate import learning_rate_at
from core.models.averaging import WeightAverage
from core.models.dense import broadcast_buffers
from core.models.looked_up_rows import LookedUpRows
from core.models.plan import check_tables, log_plan, plan_sharding
from core.models.shards import is_sharded, table_of
from core.models.table_rows import draw_rows

if TYPE_CHECKING:
    from torchrec.distributed.model_parallel import DistributedModelParallel

logger = logging.getLogger(__name__)


class ShardedModel:
    """A model whose embedding tables are sharded over the ranks. Every rank has a replica of its dense part.

    backward() computes gradients, and update_tables() updates the tables with them.
    """

    has_sharded_tables = True

    def __init__(self, parallel: "DistributedModelParallel", world: World) -> None:
        """Initialize without communication.

        Args:
          parallel: TorchRec's wrapper, without a wrapper of the dense part.
          world: rank of this process, world size and device.
        """
        self._parallel = parallel
        self._world = world
        self._rows = LookedUpRows(parallel)
        self.average: WeightAverage | None = None

    def __call__(self, batch: Any) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """Compute the loss and outputs of a batch."""
        self._rows.clear()
        outputs: tuple[torch.Tensor, Mapping[str, torch.Tensor]] = self._parallel(batch)
        return outputs

    def row_gradients(self) -> list[torch.Tensor]:
        """Return this rank's gradients of the rows that the last forward pass looked up."""
        return self._rows.gradients()

    def update_tables(self) -> None:
        """Update the tables with row_gradients(). Collective."""
        self._rows.update()

    @property
    def module(self) -> nn.Module:
        """The model inside the wrapper."""
        module: nn.Module = self._parallel.module
        return module

    @property
    def table_optimizer(self) -> torch.optim.Optimizer:
        """Optimizer of this rank's shards. Its step() only applies a new learning rate."""
        optimizer: torch.optim.Optimizer = self._parallel.fused_optimizer
        return optimizer

    def replicate(self) -> None:
        """Wrap the dense part in DDP if there are several ranks. Collective."""
        if self._world.size > 1:
            with quiet():
                self._parallel.init_data_parallel()

    def no_sync(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context that changes nothing, because tables do not support gradient accumulation."""
        return contextlib.nullcontext()

    def without_gradients(self) -> contextlib.AbstractContextManager[Any]:
        """Return torch.no_grad(), because TorchRec's lookups do not support inference mode."""
        return torch.no_grad()

    def averaged_weights(self) -> contextlib.AbstractContextManager[None]:
        """Return a context that changes nothing, because tables have no moving average."""
        return contextlib.nullcontext()

    def share_buffers(self) -> None:
        """Give every rank the buffers of rank 0. Collective."""
        broadcast_buffers(self.module.buffers(), self._world)

    def tables(self) -> dict[str, ShardedTensor]:
        """Return the weights of the tables, by table. Nothing is copied."""
        state = self.module.state_dict()
        return {table_of(name): tensor for name, tensor in state.items() if is_sharded(tensor)}

    def fused_optimizer_states(self) -> dict[str, torch.Tensor]:
        """Return the states of the tables' optimizers, as `<parameter>.<state>`. Nothing is copied."""
        by_parameter = self._parallel.fused_optimizer.state_dict()["state"]
        return {f"{name}.{key}": state for key, states in by_parameter.items() for name, state in states.items()}

    @property
    def num_parameters(self) -> int:
        """Number of trainable values, on all ranks together."""
        dense = {name for name, tensor in self.module.state_dict().items() if not is_sharded(tensor)}
        in_tables = sum(weight.size().numel() for weight in self.tables().values())
        return in_tables + sum(p.numel() for name, p in self.module.named_parameters() if name in dense)


def shard(
    model: nn.Module,
    tables: Sequence[EmbeddingBagConfig],
    key_path: str,
    world: World,
    *,
    seed: int,
    deterministic: bool,
) -> ShardedModel:
    """Shard the tables of a model over the ranks, and draw their initial values. Collective.

    Needs a process group, even in a world of one. Initial values are a function of (seed, name of the table, row), not
    of the number of ranks or the plan.

    Args:
      model: a model with one EmbeddingCollection from common.modules.embedding.tables.build_tables(). Its dense part is
        equal on all ranks. The model is modified.
      tables: configuration of the collection's tables.
      key_path: key path of `tables` in the configuration, for messages.
      world: rank of this process, world size and device.
      seed: seed of the initial values.
      deterministic: keep DDP's gradient buckets fixed (core.models.dense.DenseModel).

    Raises:
      ConfigError: the tables cannot be sharded as configured, or their optimizers do not work on this device.
    """
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.model_parallel import DefaultDataParallelWrapper, DistributedModelParallel
    from torchrec.distributed.types import ShardingEnv

    check_tables(tables, key_path, world)
    _silence_deprecations()
    assert dist.group.WORLD is not None, "sharded tables need a process group, even in a world of one"
    find_unused = deterministic and world.size > 2
    with quiet():
        plan = plan_sharding(model, tables, key_path, world)
        parallel = DistributedModelParallel(
            model,
            env=ShardingEnv.from_process_group(dist.group.WORLD),
            device=world.device,
            plan=plan,
            sharders=[EmbeddingCollectionSharder()],
            init_data_parallel=False,
            data_parallel_wrapper=DefaultDataParallelWrapper(
                static_graph=not find_unused, find_unused_parameters=find_unused
            ),
        )
    sharded = ShardedModel(parallel, world)
    log_plan(plan, tables)
    scales = {table.name: table.init_scale for table in tables}
    for table, weight in sharded.tables().items():
        draw_rows(weight, table, scales[table], seed)
    return sharded


def _silence_deprecations() -> None:
    """Silence torch's deprecation warnings about features that TorchRec still uses, at the first step and later."""
    warnings.filterwarnings("ignore", message="Please use DTensor instead", category=FutureWarning)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


class TableScheduler:
    """Sets the learning rates of a model's tables. Implements LearningRateSchedule of common.optimizers."""

    def __init__(self, model: ShardedModel, rates: Mapping[str, LearningRate]) -> None:
        """Initialize.

        Args:
          model: the model with the tables.
          rates: learning rates by table.
        """
        self._optimizer = model.table_optimizer
        self._rates = rates
        names = {id(parameter): table_of(name) for name, parameter in self._optimizer.params.items()}  # type: ignore[attr-defined]
        # build_tables() groups tables that have equal rates; a group is updated as one.
        self._table_of_group = [names[id(group["params"][0])] for group in self._optimizer.param_groups]

    def apply(self, step: int) -> None:
        """Set the learning rates for the update of `step`."""
        for group, table in zip(self._optimizer.param_groups, self._table_of_group, strict=True):
            group["lr"] = learning_rate_at(self._rates[table], step)
        self._optimizer.zero_grad()  # applies them

    def at(self, step: int) -> dict[str, float]:
        """Return the learning rate of each table at `step`, as `table/<name>`."""
        return {f"table/{table}": learning_rate_at(rate, step) for table, rate in self._rates.items()}
