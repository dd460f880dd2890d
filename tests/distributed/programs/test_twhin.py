"""TwHIN trains on two ranks as on one."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from common.checkpointing.reader import read_tensors
from common.checkpointing.writer import write_checkpoint
from common.distributed.world import World
from common.modules.embedding.tables import build_tables, look_up
from core.autocast import Autocast
from core.loop.step import TrainStep
from core.models.sharded import shard
from core.run.tensors import training_tensors
from projects.twhin.data.batch import EdgeBatch
from projects.twhin.data.relations import Relations
from projects.twhin.model.config import TwhinModelConfig
from projects.twhin.model.edge_loss import edge_loss
from projects.twhin.model.negatives import Negatives, draw_negatives
from projects.twhin.model.relations import build_relations
from projects.twhin.model.scorer import EdgeScorer
from projects.twhin.optimizer import build_optimizers
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.faults

ROWS = {"user": 50, "user_geo": 20}
RANKS, STEPS, EDGES = 2, 3, 30


def model_config(optimizer: str, sharding: str, sides: str) -> TwhinModelConfig:
    return TwhinModelConfig.model_validate(
        {
            "embeddings": {
                "tables": [
                    {
                        "name": name,
                        "num_embeddings": rows,
                        "embedding_dim": 8,
                        "init_scale": 0.5,
                        "optimizer": {optimizer: {"lr": 0.5}},
                        "sharding": sharding,
                    }
                    for name, rows in ROWS.items()
                ]
            },
            "relations": [
                {"name": "lives_in", "lhs": "user", "rhs": "user_geo", "operator": "translation"},
                {"name": "follows", "lhs": "user", "rhs": "user", "operator": "complex_diagonal"},
                {"name": "mutes", "lhs": "user", "rhs": "user", "operator": "linear"},
                # No batch has an edge of this relation.
                {"name": "near", "lhs": "user_geo", "rhs": "user_geo", "operator": "diagonal"},
            ],
            "operator_sides": sides,
            "loss": "softmax",
            "regularization": {"n3": 0.01},
            "translation_optimizer": {"adagrad": {"lr": 0.1}},
        }
    )


def edges(relations: Relations, step: int, rank: int) -> tuple[EdgeBatch, Negatives]:
    """Return a rank's batch and negatives for a step."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    rel = torch.randint(3, (EDGES,), generator=generator).sort().values
    segments = torch.from_numpy(relations.segment_of)[rel]
    order = segments.argsort(stable=True)
    limits = {side: torch.from_numpy(relations.num_entities[side])[rel] for side in ("lhs", "rhs")}
    lhs, rhs = ((torch.rand(EDGES, generator=generator) * limits[side]).long() for side in ("lhs", "rhs"))
    sizes = tuple(torch.bincount(segments, minlength=len(relations.segments)).tolist())
    batch = EdgeBatch(lhs[order], rel[order], rhs[order], torch.rand(EDGES, generator=generator), sizes)
    torch.manual_seed(1000 * step + rank)
    return batch, draw_negatives(batch, relations, 7, 5)


class LookupCalledError(Exception):
    """Stops the computation of a loss at its lookup."""


class MeanLoss(nn.Module):
    """Computes the mean loss of the batches of several ranks with given negatives.

    There is one lookup for all batches, so each row is updated once per step, by the sum of its gradients.
    """

    def __init__(self, config: TwhinModelConfig, relations: Relations) -> None:
        super().__init__()
        self.config = config
        self.tables = build_tables(config.embeddings.tables)
        self.scorer = EdgeScorer(config, relations)

    def forward(self, batches: list[tuple[EdgeBatch, Negatives]]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        requests: list[dict[str, torch.Tensor]] = []

        def record(ids: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            requests.append(dict(ids))
            raise LookupCalledError

        for batch, negatives in batches:
            with contextlib.suppress(LookupCalledError):
                edge_loss(self.scorer, self.config, batch, negatives, record)
        rows = look_up(self.tables, list(ROWS), {name: torch.cat([ids[name] for ids in requests]) for name in ROWS})
        parts = {name: iter(torch.split(rows[name], [len(ids[name]) for ids in requests])) for name in ROWS}
        losses = [
            edge_loss(self.scorer, self.config, batch, negatives, lambda ids: {name: next(parts[name]) for name in ids})
            for batch, negatives in batches
        ]
        return torch.stack(losses).mean(), {}


def train(world: World, root: Path, cases: list[tuple[str, str, str]]) -> list[dict[str, Any]]:
    """Train on the same global batches and negatives on any number of ranks up to RANKS."""
    group = dist.new_group(backend="gloo") if world.size > 1 else None
    results = []
    for case in cases:
        config = model_config(*case)
        relations = build_relations(config)
        torch.manual_seed(0)
        mean_loss = MeanLoss(config, relations)
        for parameter in mean_loss.scorer.parameters():
            nn.init.normal_(parameter)
        model = shard(mean_loss, config.embeddings.tables, "tables", world, seed=1, deterministic=False)
        optimizer, rates = build_optimizers(model, config, mean_loss.scorer)
        model.replicate()
        step = TrainStep(model, optimizer, rates, world=world, autocast=Autocast(world.device, None))
        gradients: list[dict[str, torch.Tensor]] = []
        for number in range(1, STEPS + 1):
            batches = [edges(relations, number, rank) for rank in range(world.rank, RANKS, world.size)]
            step([batches], number)  # type: ignore[list-item]
            grads = {name: p.grad for name, p in mean_loss.scorer.named_parameters()}
            gradients.append({name: grad.clone() for name, grad in grads.items() if grad is not None})
        path = write_checkpoint(root / "-".join(case), STEPS, training_tensors(model, optimizer), {}, group)
        results.append({"gradients": gradients, "tensors": read_tensors(path)})
    return results


CASES = [
    ("sgd", "row_wise", "both"),
    ("adagrad", "table_wise", "both"),
    ("row_wise_adagrad", "row_wise", "rhs"),
]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = run_ranks(train, tmp_path_factory.mktemp("one"), CASES, world_size=1)[0]
    return results


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    return run_ranks(train, tmp_path_factory.mktemp("two"), CASES)


@pytest.mark.parametrize("case", range(len(CASES)), ids=[" ".join(case) for case in CASES])
def test_two_ranks_train_as_one_on_the_same_edges_and_negatives(one, two, case):
    expected = one[case]
    for rank in two:
        found = rank[case]
        for actual, exact in zip(found["gradients"], expected["gradients"], strict=True):
            assert actual.keys() == exact.keys()
            assert len(actual) == {"both": 8, "rhs": 4}[CASES[case][2]], "including the relation without edges"
            assert max((actual[name] - exact[name]).abs().max().item() for name in actual) < 1e-6
            assert any(gradient.abs().max() > 1e-3 for gradient in exact.values())
        assert found["tensors"].keys() == expected["tensors"].keys()
        for name, tensor in expected["tensors"].items():
            assert (found["tensors"][name].double() - tensor.double()).abs().max() < 1e-5, name
