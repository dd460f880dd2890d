"""Tiny tables train on one to four ranks with any plan that is accepted; plans that would starve a rank are refused."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import pytest
import torch
from torch import nn

from common.distributed.world import World
from common.errors import ConfigError
from common.modules.embedding.config import EmbeddingBagConfig
from common.modules.embedding.tables import build_tables, look_up
from core.models.sharded import TableScheduler, shard
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.faults

DIM = 8
Sharding = Literal["table_wise", "row_wise", "column_wise"] | None


class Table(NamedTuple):
    rows: int
    sharding: Sharding = None
    optimizer: str = "sgd"
    data_type: str = "fp32"


class Case(NamedTuple):
    tables: Sequence[Table]
    starved: Mapping[int, tuple[list[int], list[int]]]
    """For each number of ranks whose plan is refused: positions of the tables to blame, and the ranks without rows."""


CASES = {
    "one table": Case([Table(5, "row_wise")], {4: ([0], [3])}),
    "two small tables": Case(
        [Table(1, "row_wise"), Table(1, "row_wise")], {n: ([0, 1], [*range(1, n)]) for n in (2, 3, 4)}
    ),
    "a larger table of the group": Case([Table(1, "row_wise"), Table(10, "row_wise")], {}),
    "a larger table with another optimizer": Case(
        [Table(1, "row_wise"), Table(10, "row_wise", "adagrad")], {n: ([0], [*range(1, n)]) for n in (2, 3, 4)}
    ),
    "a larger table with another data type": Case(
        [Table(10, "row_wise"), Table(2, "row_wise", data_type="fp16")], {3: ([1], [2]), 4: ([1], [2, 3])}
    ),
    "a larger table that is not row_wise": Case(
        [Table(10, "table_wise"), Table(2, "row_wise")], {3: ([1], [2]), 4: ([1], [2, 3])}
    ),
    "planner": Case([Table(1), Table(4), Table(5, None, "adagrad"), Table(3, None, "row_wise_adagrad", "fp16")], {}),
    "planner, with a configured table": Case([Table(1), Table(40000, "row_wise"), Table(1, None, "adagrad")], {}),
    "table_wise": Case([Table(1, "table_wise"), Table(1, "table_wise", "adagrad")], {}),
    "column_wise": Case([Table(1, "column_wise"), Table(3, "column_wise", "adagrad"), Table(1)], {}),
}


class Tables(nn.Module):
    """Model whose loss depends on rows of all tables."""

    def __init__(self, configs: list[EmbeddingBagConfig]) -> None:
        super().__init__()
        self.tables = build_tables(configs)
        self.names = [config.name for config in configs]
        self.between = nn.Parameter(torch.ones(DIM))

    def forward(self, ids: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        rows = look_up(self.tables, self.names, ids)
        return torch.stack([(each * self.between - 1).square().mean() for each in rows.values()]).sum(), {}


def train(world: World, case: Case) -> dict[str, Any] | str:
    """Train three steps. Return the losses and the sharding of each table, or the message of the refusal."""
    configs = [
        EmbeddingBagConfig.model_validate(
            {
                "name": f"t{index}",
                "num_embeddings": table.rows,
                "embedding_dim": DIM,
                "optimizer": {table.optimizer: {"lr": 0.1}},
                "sharding": table.sharding,
                "data_type": table.data_type,
            }
        )
        for index, table in enumerate(case.tables)
    ]
    try:
        model = shard(Tables(configs), configs, "model.embeddings.tables", world, seed=0, deterministic=True)
    except ConfigError as error:
        return str(error)
    model.replicate()
    scheduler = TableScheduler(model, {config.name: config.optimizer.rate for config in configs})
    losses = []
    for step in range(1, 4):
        scheduler.apply(step)
        loss, _ = model({config.name: torch.arange(config.num_embeddings)[:6] for config in configs})
        torch.autograd.backward(loss)
        model.update_tables()
        losses.append(loss.item())
    shards = {
        name: [tuple(shard.shard_sizes) for shard in weight.metadata().shards_metadata]
        for name, weight in model.tables().items()
    }
    return {"losses": losses, "shards": shards}


def train_all(world: World) -> dict[str, dict[str, Any] | str]:
    return {name: train(world, case) for name, case in CASES.items()}


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_tiny_tables_train_or_are_refused_with_the_reason(world_size: int) -> None:
    ranks = run_ranks(train_all, world_size=world_size, timeout_in_s=240)
    for name, case in CASES.items():
        results = [rank[name] for rank in ranks]
        if world_size in case.starved:
            tables, starved = case.starved[world_size]
            message = results[0]
            assert results == [message] * world_size, name
            assert isinstance(message, str), (name, message)
            keys, _, reason = message.partition(": ")
            assert keys == ", ".join(f"model.embeddings.tables[{index}].sharding" for index in tables), name
            assert reason.startswith(f"row_wise over {world_size} processes leaves rank(s) "), name
            assert re.search(r"rank\(s\) ([\d, ]+) without", reason)[1] == ", ".join(map(str, starved)), name  # type: ignore[index]
        else:
            assert not any(isinstance(result, str) for result in results), (name, results)
            for result in results:
                assert isinstance(result, dict)
                assert result["losses"][0] > result["losses"][1] > result["losses"][2] > 0, name
                for index, table in enumerate(case.tables):
                    shards = result["shards"][f"t{index}"]
                    assert sum(rows * columns for rows, columns in shards) == table.rows * DIM, name
