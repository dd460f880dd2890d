"""Plans how embedding tables are sharded over the ranks, with TorchRec's planner, and refuses plans that cannot run."""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from common.distributed.world import World
from common.errors import ConfigError
from common.modules.embedding.config import EmbeddingBagConfig
from common.modules.keys import module_key
from common.process.environment import local_world_size_from_env
from common.process.memory import format_bytes, free_memory

if TYPE_CHECKING:
    from torchrec.distributed.types import ShardingPlan

logger = logging.getLogger(__name__)


def check_tables(tables: Sequence[EmbeddingBagConfig], key_path: str, world: World) -> None:
    """Raise ConfigError for a table that no plan can train on this device, or whose sharding its optimizer forbids."""
    for index, table in enumerate(tables):
        where = f"{key_path}[{index}]"
        if table.embedding_dim % 4:
            raise ConfigError(
                f"{where}.embedding_dim is {table.embedding_dim}, but the lookup kernels need a multiple of 4"
            )
        if table.optimizer.adam is not None and world.device.type == "cpu":
            raise ConfigError(
                f"{where}.optimizer.adam: TorchRec updates tables with Adam on CUDA only, and this device is a CPU; "
                "use row_wise_adagrad, adagrad or sgd"
            )
        if table.optimizer.sgd is not None and table.optimizer.sgd.momentum > 0:
            raise ConfigError(
                f"{where}.optimizer.sgd.momentum is {table.optimizer.sgd.momentum:g}, but updates inside the backward "
                "pass do not support momentum; set it to 0"
            )
        if table.sharding == "column_wise" and table.optimizer.row_wise_adagrad is not None:
            raise ConfigError(
                f"{where}.sharding is column_wise, which splits rows, but row_wise_adagrad keeps one sum per row; use "
                "row_wise or table_wise, or adagrad"
            )


def plan_sharding(
    model: nn.Module, tables: Sequence[EmbeddingBagConfig], key_path: str, world: World
) -> "ShardingPlan":
    """Return a plan that all ranks can run. Collective.

    TorchRec's kernels fail on a rank that has no row of any row_wise table of a group, which one kernel updates. If the
    planner chooses row_wise for such tables, they become table_wise.

    Args:
      model: a model with one EmbeddingCollection that has the tables.
      tables: configuration of the tables.
      key_path: key path of `tables` in the configuration, for messages.
      world: rank of this process, world size and device.

    Raises:
      ConfigError: the tables do not fit into memory, or the configured sharding leaves a rank without rows.
    """
    # The planner's own collective plan leaves the other ranks waiting if rank 0 finds none.
    return world.consensus.broadcast_from_rank_zero(lambda: _plan(model, tables, key_path, world))


def _plan(model: nn.Module, tables: Sequence[EmbeddingBagConfig], key_path: str, world: World) -> "ShardingPlan":
    # Exclude data_parallel, because such tables would silently get a different optimizer. Exclude types between which
    # the planner breaks ties at random, differently at every start: with one rank, all types are equal.
    chosen = ["table_wise", "row_wise"] if world.size > 1 else ["table_wise"]
    types: dict[str, list[str]] = {
        table.name: chosen if table.sharding is None else [table.sharding] for table in tables
    }
    while True:
        plan = _planned(model, tables, key_path, world, types)
        starved = [group for group in _row_wise_groups(plan, tables) if group.ranks_without_rows(world.size)]
        if not starved:
            return plan
        free = [table.name for group in starved for table in group.tables if table.sharding is None]
        if not free:
            raise _starved_error(starved[0], tables, key_path, world.size)
        types |= {name: ["table_wise"] for name in free}


class _Group(NamedTuple):
    """Row-wise tables with the same optimizer and data type, which one kernel per rank holds and updates."""

    tables: list[EmbeddingBagConfig]
    ranks_with_rows: set[int]

    def ranks_without_rows(self, world_size: int) -> list[int]:
        return [rank for rank in range(world_size) if rank not in self.ranks_with_rows]


def _row_wise_groups(plan: "ShardingPlan", tables: Sequence[EmbeddingBagConfig]) -> list[_Group]:
    groups: list[_Group] = []
    shardings = _by_table(plan)
    for table in tables:
        sharding = shardings[module_key(table.name)]
        if sharding.sharding_type != "row_wise":
            continue
        key = (table.optimizer, table.data_type)
        group = next((g for g in groups if (g.tables[0].optimizer, g.tables[0].data_type) == key), None)
        if group is None:
            groups.append(group := _Group([], set()))
        group.tables.append(table)
        for shard in sharding.sharding_spec.shards:
            if shard.shard_sizes[0] > 0:
                group.ranks_with_rows.add(shard.placement.rank())
    return groups


def _starved_error(group: _Group, tables: Sequence[EmbeddingBagConfig], key_path: str, world_size: int) -> ConfigError:
    names = [table.name for table in tables]
    where = ", ".join(f"{key_path}[{names.index(table.name)}].sharding" for table in group.tables)
    rows = ", ".join(f"{table.name} {table.num_embeddings:,}" for table in group.tables)
    without = ", ".join(map(str, group.ranks_without_rows(world_size)))
    return ConfigError(
        f"{where}: row_wise over {world_size} processes leaves rank(s) {without} without a row of these tables, which "
        f"have too few rows ({rows}); the lookup kernels cannot update tables with the same optimizer and data type "
        "on a rank that has no row of any of them. Use table_wise or null, or fewer processes"
    )


def _planned(
    model: nn.Module,
    tables: Sequence[EmbeddingBagConfig],
    key_path: str,
    world: World,
    types: Mapping[str, list[str]],
) -> "ShardingPlan":
    """Return the planner's plan that shards each table in one of its types."""
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.planner import EmbeddingShardingPlanner
    from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
    from torchrec.distributed.planner.types import ParameterConstraints, PlannerError, Topology

    local_world_size = local_world_size_from_env()
    memory = free_memory(local_world_size)
    on_gpu = world.device.type == "cuda"
    video_memory = torch.cuda.get_device_properties(world.device).total_memory if on_gpu else 0
    planner = EmbeddingShardingPlanner(
        topology=Topology(
            world_size=world.size,
            local_world_size=local_world_size,
            compute_device=world.device.type,
            ddr_cap=memory.num_bytes,
            hbm_cap=video_memory,
        ),
        storage_reservation=FixedPercentageStorageReservation(0.15),
        constraints={
            module_key(table.name): ParameterConstraints(
                sharding_types=types[table.name],
                compute_kernels=["fused"],
                # Columns per shard. They are as equal as the kernels allow, which need multiples of 4.
                min_partition=-(-table.embedding_dim // (4 * world.size)) * 4,
            )
            for table in tables
        },
        debug=False,
    )

    try:
        return planner.plan(model, [EmbeddingCollectionSharder()])
    except PlannerError as error:
        requested = ", ".join(
            f"{table.name}: {table.sharding or 'any'}, {format_bytes(_size(table))}" for table in tables
        )
        limit = f"{format_bytes(memory.num_bytes)}; {memory.reason}"
        if on_gpu:
            limit = f"{format_bytes(video_memory)} on its GPU"
        cause = str(error).strip().splitlines()[0].strip()
        raise ConfigError(
            f"{key_path}: cannot shard the tables over {world.size} process(es) ({requested}, without optimizer "
            f"states; each process can use {limit}): {cause} Lower num_embeddings or embedding_dim, or use more "
            "processes or machines"
        ) from error


def _size(table: EmbeddingBagConfig) -> int:
    """Return the size of a table's weights in bytes."""
    return table.num_embeddings * table.embedding_dim * (2 if table.data_type == "fp16" else 4)


def log_plan(plan: "ShardingPlan", tables: Sequence[EmbeddingBagConfig]) -> None:
    """Log how each table is sharded."""
    shardings = _by_table(plan)
    for table in tables:
        sharding = shardings[module_key(table.name)]
        logger.info(
            "table %s: %s x %d %s, %s on rank(s) %s",
            table.name,
            f"{table.num_embeddings:,}",
            table.embedding_dim,
            table.data_type,
            sharding.sharding_type,
            ", ".join(map(str, sharding.ranks)),
        )


def _by_table(plan: "ShardingPlan") -> dict[str, Any]:
    """Return how each table is sharded (a ParameterSharding), by its name in the collection."""
    return {name: sharding for module in plan.plan.values() for name, sharding in module.items()}
