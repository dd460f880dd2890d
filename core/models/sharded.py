"""Spreads embedding tables over the ranks: TorchRec's planner and DistributedModelParallel.

Owns the plan and the learning rates of the tables' optimizers; what is in a table, table_rows.py. torchrec is imported
within functions: a dense model trains where it can't be installed.
"""

import copy
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torch.distributed.remote_device import _remote_device

from common.distributed.consensus import RankConsensus
from common.distributed.world import World
from common.errors import ConfigError
from common.modules.embedding.config import EmbeddingBagConfig
from common.modules.embedding.tables import quiet
from common.optimizers.config import LearningRate
from common.optimizers.learning_rate import learning_rate_at
from common.process.environment import local_world_size_from_env
from core.models.table_rows import draw_rows

if TYPE_CHECKING:
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.types import ShardingPlan

logger = logging.getLogger(__name__)

# TorchRec uses what torch would like to see replaced: it is told at the first step, and wherever it is used.
warnings.filterwarnings("ignore", message="Please use DTensor instead", category=FutureWarning)
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


class ShardedModel(nn.Module):
    """A model whose embedding tables are spread over the ranks; the rest of it is on all of them.

    Tables are updated within backward().
    """

    def __init__(self, parallel: "DistributedModelParallel") -> None:
        super().__init__()
        self._parallel = parallel

    def forward(self, batch: Any) -> Any:
        """As the model's."""
        return self._parallel(batch)

    @property
    def module(self) -> nn.Module:
        """The model within."""
        module: nn.Module = self._parallel.module
        return module

    @property
    def table_optimizer(self) -> torch.optim.Optimizer:
        """Of this rank's shards; step() does nothing but take over a learning rate."""
        optimizer: torch.optim.Optimizer = self._parallel.fused_optimizer
        return optimizer

    def replicate_dense(self) -> None:
        """Puts the rest of the model under DistributedDataParallel. Collective."""
        with quiet():
            self._parallel.init_data_parallel()

    def tables(self) -> dict[str, ShardedTensor]:
        """Weights by the name of their table. They are the tables' memory."""
        state = self.module.state_dict()
        return {table_of(name): tensor for name, tensor in state.items() if is_sharded(tensor)}

    def table_optimizer_states(self) -> dict[str, ShardedTensor]:
        """What the tables' optimizers remember, by name: `<state>.<parameter>`. It is their memory."""
        by_parameter = self._parallel.fused_optimizer.state_dict()["state"]
        return {f"{name}.{key}": state for key, states in by_parameter.items() for name, state in states.items()}


def is_sharded(tensor: Any) -> TypeGuard[ShardedTensor]:
    """Whether a tensor of a state is spread over the ranks."""
    return isinstance(tensor, ShardedTensor)


def shards_like(tensor: ShardedTensor, pin_memory: bool) -> ShardedTensor:
    """A tensor that is spread in the same way, in host memory, uninitialised.

    No collective: of a table-wise table's optimizer a rank that doesn't hold it has no state at all.
    """
    metadata = copy.deepcopy(tensor.metadata())
    for part in metadata.shards_metadata:
        assert part.placement is not None
        part.placement = _remote_device(f"rank:{part.placement.rank()}/cpu")
    own = {tuple(part.shard_offsets): part for part in metadata.shards_metadata}
    shards = [
        Shard(
            torch.empty_like(local.tensor, device="cpu", pin_memory=pin_memory),
            own[tuple(local.metadata.shard_offsets)],
        )
        for local in tensor.local_shards()
    ]
    return ShardedTensor._init_from_local_shards_and_global_metadata(shards, metadata)


def shard(
    model: nn.Module, tables: Sequence[EmbeddingBagConfig], place: str, world: World, *, seed: int, deterministic: bool
) -> ShardedModel:
    """Spreads the tables of a model over the ranks, and draws their initial values. Collective, in a process group.

    Initial values are a function of (seed, name of the table, row), not of the number of ranks or the plan.

    Args:
      model: has one EmbeddingCollection, of common.modules.embedding.tables.build_tables(); the rest is equal on all
        ranks. It is changed.
      tables: the collection's.
      place: of `tables` in the configuration, for messages.
      world: this process's place and device.
      seed: of the initial values.
      deterministic: as of core.models.dense.parallelize().

    Raises:
      ConfigError: the tables can't be spread as they ask, or their optimizers can't work here.
    """
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.model_parallel import DefaultDataParallelWrapper, DistributedModelParallel
    from torchrec.distributed.types import ShardingEnv

    _check_tables(tables, place, world)
    assert dist.group.WORLD is not None, "tables are spread over a process group, be it of one process"
    find_unused = deterministic and world.size > 2
    with quiet():
        plan = _plan(model, tables, place, world)
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
    sharded = ShardedModel(parallel)
    _tell(plan, tables)
    scales = {table.name: table.init_scale for table in tables}
    for table, weight in sharded.tables().items():
        draw_rows(weight, table, scales[table], seed)
    return sharded


def table_of(parameter: str) -> str:
    """The table of a parameter `tables.embeddings.<table>.weight`."""
    return parameter.rsplit(".", 2)[1]


def _check_tables(tables: Sequence[EmbeddingBagConfig], place: str, world: World) -> None:
    for index, table in enumerate(tables):
        where = f"{place}[{index}]"
        if table.embedding_dim % 4:
            raise ConfigError(
                f"{where}.embedding_dim: {table.embedding_dim} given, but the kernels that look rows up take multiples "
                "of 4"
            )
        if table.optimizer.adam is not None and world.device.type == "cpu":
            raise ConfigError(
                f"{where}.optimizer.adam: TorchRec updates tables with Adam on CUDA only, and this is a CPU; use "
                "row_wise_adagrad, adagrad or sgd"
            )
        if table.optimizer.sgd is not None and table.optimizer.sgd.momentum > 0:
            raise ConfigError(
                f"{where}.optimizer.sgd.momentum: {table.optimizer.sgd.momentum:g} given, but a table's updates within "
                "the backward pass know no momentum; set it to 0"
            )
        if table.sharding == "column_wise" and table.optimizer.row_wise_adagrad is not None:
            raise ConfigError(
                f"{where}.sharding: column_wise cuts rows apart, and row_wise_adagrad has one sum for a whole row; use "
                "row_wise or table_wise, or adagrad"
            )


def _plan(model: nn.Module, tables: Sequence[EmbeddingBagConfig], place: str, world: World) -> "ShardingPlan":
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.planner import EmbeddingShardingPlanner
    from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
    from torchrec.distributed.planner.types import ParameterConstraints, PlannerError, Topology

    def kinds(table: EmbeddingBagConfig) -> list[str]:
        if table.sharding is not None:
            return [table.sharding]
        # Not data_parallel: such tables would silently get another optimizer. And nothing between which the planner
        # would toss a coin, at every start another: on one process all kinds are alike.
        return ["table_wise", "row_wise"] if world.size > 1 else ["table_wise"]

    local_world_size = local_world_size_from_env()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // local_world_size
    on_gpu = world.device.type == "cuda"
    video_memory = torch.cuda.get_device_properties(world.device).total_memory if on_gpu else 0
    capacity = video_memory if on_gpu else memory
    planner = EmbeddingShardingPlanner(
        topology=Topology(
            world_size=world.size,
            local_world_size=local_world_size,
            compute_device=world.device.type,
            ddr_cap=memory,
            hbm_cap=video_memory,
        ),
        storage_reservation=FixedPercentageStorageReservation(0.15),
        constraints={
            table.name: ParameterConstraints(
                sharding_types=kinds(table),
                compute_kernels=["fused"],
                # Columns of a shard: as equal as kernels can have them, which take four at a time.
                min_partition=-(-table.embedding_dim // (4 * world.size)) * 4,
            )
            for table in tables
        },
        debug=False,
    )

    def plan() -> "ShardingPlan":
        try:
            return planner.plan(model, [EmbeddingCollectionSharder()])
        except PlannerError as error:
            asked = ", ".join(f"{table.name}: {table.sharding or 'any'}, {_gib(_size(table))}" for table in tables)
            cause = str(error).strip().splitlines()[0].strip()
            raise ConfigError(
                f"{place}: the tables can't be spread over {world.size} process(es) ({asked}, without what optimizers "
                f"remember; a process has {_gib(capacity)}): {cause} Lower num_embeddings or embedding_dim, or give "
                "more processes or machines"
            ) from error

    # The planner's own way to one plan for all leaves the others waiting where rank 0 finds none.
    return RankConsensus(world.timeout).broadcast_from_rank_zero(plan)


def _size(table: EmbeddingBagConfig) -> int:
    """Bytes."""
    return table.num_embeddings * table.embedding_dim * (2 if table.data_type == "fp16" else 4)


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"


def _tell(plan: "ShardingPlan", tables: Sequence[EmbeddingBagConfig]) -> None:
    by_table = {name: sharding for module in plan.plan.values() for name, sharding in module.items()}
    for table in tables:
        sharding = by_table[table.name]
        logger.info(
            "table %s: %s x %d %s, %s on rank(s) %s",
            table.name,
            f"{table.num_embeddings:,}",
            table.embedding_dim,
            table.data_type,
            sharding.sharding_type,
            ", ".join(map(str, sharding.ranks)),
        )


class TableScheduler:
    """The learning rates of a model's tables, as common.optimizers.learning_rate.LearningRateSchedule."""

    def __init__(self, model: ShardedModel, rates: Mapping[str, LearningRate]) -> None:
        """rates: by table."""
        self._optimizer = model.table_optimizer
        self._rates = rates
        names = {id(parameter): table_of(name) for name, parameter in self._optimizer.params.items()}  # type: ignore[attr-defined]
        # Tables of one group are updated together and have equal rates (build_tables()).
        self._table_of_group = [names[id(group["params"][0])] for group in self._optimizer.param_groups]

    def apply(self, step: int) -> None:
        """Sets the learning rates of the update that makes `step`."""
        for group, table in zip(self._optimizer.param_groups, self._table_of_group, strict=True):
            group["lr"] = learning_rate_at(self._rates[table], step)
        self._optimizer.zero_grad()  # takes them over

    def at(self, step: int) -> dict[str, float]:
        """The learning rate of each table at `step`, as `table/<name>`."""
        return {f"table/{table}": learning_rate_at(rate, step) for table, rate in self._rates.items()}
