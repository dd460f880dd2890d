"""TwHIN on one, two and three ranks: gradients, exact resume, other numbers of ranks."""

import contextlib
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from torch import nn

from common.checkpointing.storage import complete_steps, read_state, read_tensors, write_checkpoint
from common.device import World
from common.modules.embedding.tables import build_tables, look_up
from core.parallel import parallelize
from core.sharding import shard
from core.train_step import Autocast, TrainStep
from core.training_state import training_tensors
from projects.twhin.data.batch import EdgeBatch
from projects.twhin.model.config import TwhinModelConfig
from projects.twhin.model.edge_loss import edge_loss
from projects.twhin.model.negatives import Negatives, draw_negatives
from projects.twhin.model.relations import Relations
from projects.twhin.model.scorer import EdgeScorer
from projects.twhin.optimizer import build_optimizers
from tests.conftest import small_twhin_run
from tests.distributed.harness import run_ranks
from tests.distributed.programs import TIMEOUT_IN_S, TWHIN, finish, started, wait_for_line, worker_pids
from tests.distributed.test_golden import assert_equal_runs, logged

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
                # Of which no batch has an edge.
                {"name": "near", "lhs": "user_geo", "rhs": "user_geo", "operator": "diagonal"},
            ],
            "operator_sides": sides,
            "loss": "softmax",
            "regularization": {"n3": 0.01},
            "translation_optimizer": {"adagrad": {"lr": 0.1}},
        }
    )


def edges(relations: Relations, step: int, rank: int) -> tuple[EdgeBatch, Negatives]:
    """A rank's batch and negatives of a step."""
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


class AskedError(Exception):
    """Ends a loss at its lookup."""


class Given(nn.Module):
    """The loss with given negatives, a mean over the batches of several ranks, with one lookup for all: a row is
    updated once a step, by the sum of its gradients."""

    def __init__(self, config: TwhinModelConfig, relations: Relations) -> None:
        super().__init__()
        self.config = config
        self.tables = build_tables(config.embeddings.tables)
        self.scorer = EdgeScorer(config, relations)

    def forward(self, batches: list[tuple[EdgeBatch, Negatives]]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        asked: list[dict[str, torch.Tensor]] = []

        def ask(ids: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            asked.append(dict(ids))
            raise AskedError

        for batch, negatives in batches:
            with contextlib.suppress(AskedError):
                edge_loss(self.scorer, self.config, batch, negatives, ask)
        rows = look_up(self.tables, list(ROWS), {name: torch.cat([ids[name] for ids in asked]) for name in ROWS})
        parts = {name: iter(torch.split(rows[name], [len(ids[name]) for ids in asked])) for name in ROWS}
        losses = [
            edge_loss(self.scorer, self.config, batch, negatives, lambda ids: {name: next(parts[name]) for name in ids})
            for batch, negatives in batches
        ]
        return torch.stack(losses).mean(), {}


def train(world: World, root: Path, cases: list[tuple[str, str, str]]) -> list[dict[str, Any]]:
    """The same global batches and negatives on any number of ranks up to RANKS."""
    group = dist.new_group(backend="gloo") if world.size > 1 else None
    found = []
    for case in cases:
        config = model_config(*case)
        relations = Relations(config)
        torch.manual_seed(0)
        given = Given(config, relations)
        for parameter in given.scorer.parameters():
            nn.init.normal_(parameter)
        model = shard(given, config.embeddings.tables, "tables", world, seed=1, deterministic=False)
        optimizer, rates = build_optimizers(model, config, given.scorer)
        step = TrainStep(
            parallelize(model, world), optimizer, rates, world=world, autocast=Autocast(world.device, None)
        )
        gradients: list[dict[str, torch.Tensor]] = []
        for number in range(1, STEPS + 1):
            batches = [edges(relations, number, rank) for rank in range(world.rank, RANKS, world.size)]
            step([batches], number)  # type: ignore[list-item]
            grads = {name: p.grad for name, p in given.scorer.named_parameters()}
            gradients.append({name: grad.clone() for name, grad in grads.items() if grad is not None})
        path = write_checkpoint(root / "-".join(case), STEPS, training_tensors(model, optimizer), {}, group)
        found.append({"gradients": gradients, "tensors": read_tensors(path)})
    return found


CASES = [
    ("sgd", "row_wise", "both"),
    ("adagrad", "table_wise", "both"),
    ("row_wise_adagrad", "row_wise", "rhs"),
]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = run_ranks(train, tmp_path_factory.mktemp("one"), CASES, world_size=1)[0]
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    return run_ranks(train, tmp_path_factory.mktemp("two"), CASES)


@pytest.mark.parametrize("case", range(len(CASES)), ids=[" ".join(case) for case in CASES])
def test_two_ranks_train_as_one_on_the_same_edges_and_negatives(one, two, case):
    expected = one[case]
    for rank in two:
        found = rank[case]
        for its, other in zip(found["gradients"], expected["gradients"], strict=True):
            assert its.keys() == other.keys()
            assert len(its) == {"both": 8, "rhs": 4}[CASES[case][2]], "also of the relation without edges"
            assert max((its[name] - other[name]).abs().max().item() for name in its) < 1e-6
            assert any(gradient.abs().max() > 1e-3 for gradient in other.values())
        assert found["tensors"].keys() == expected["tensors"].keys()
        for name, tensor in expected["tensors"].items():
            assert (found["tensors"][name].double() - tensor.double()).abs().max() < 1e-5, name


# --- The program ---


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_and_resumed_is_bit_equal(twhin_data: Path, tmp_path: Path, processes: int) -> None:
    whole_run, killed = tmp_path / "whole", tmp_path / "killed"
    options = ("training.num_epochs=3", "training.num_train_steps=20", "model.embeddings.tables[0].sharding=table_wise")
    ended = finish(small_twhin_run(twhin_data, whole_run, *options), processes, module=TWHIN)
    assert ended.returncode == 0, ended.stderr
    assert len(logged(whole_run)) == 7 + 5

    arguments = small_twhin_run(twhin_data, killed, *options)
    with started(arguments, processes, "--max-restarts=2", module=TWHIN) as process:
        wait_for_line(process, "step 9 of 20")  # after the checkpoint at 8
        os.kill(worker_pids(process)[1] if processes > 1 else process.pid, signal.SIGKILL)
        if processes > 1:
            resumed = process.communicate(timeout=TIMEOUT_IN_S)[1]
            assert "rank 0: another rank has died or doesn't answer" in resumed
    if processes == 1:
        assert complete_steps(killed / "checkpoints")[-1] < 20
        resumed = finish(arguments, module=TWHIN).stderr
    assert "continuing after step" in resumed
    assert_equal_runs(whole_run, killed, 20)


def test_a_run_goes_on_with_other_numbers_of_ranks(twhin_data: Path, tmp_path: Path) -> None:
    """Two ranks, then one, then three: nothing of the epoch's edges is repeated or left out. Of the one edge that there
    is to evaluate on, two of three ranks have none."""
    run, one = tmp_path / "run", tmp_path / "one"
    one.mkdir()
    edges = pq.read_table(next((twhin_data / "validation").glob("*.parquet")))
    pq.write_table(edges.slice(0, 1), one / "edge.parquet")
    for processes, steps in ((2, 4), (1, 6), (3, 8)):
        options = (f"training.num_train_steps={steps}", f"validation_data.validation.data_root={one}")
        ended = finish(small_twhin_run(twhin_data, run, *options), processes, module=TWHIN)
        assert ended.returncode == 0, ended.stderr
        progress = read_state(run / f"checkpoints/{steps}")["progress"]
        # 4,800 edges are 8 batches; a lane of 24 has a 24th of each.
        assert progress["position"] == {"epoch": 0, "cursors": [steps * 600 // 24] * 24}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["mode"] == "train"] == [3, 4, 6, 8]
    assert [line["metrics"]["examples"] for line in lines if line["mode"] == "evaluate"] == [1, 1, 1]
    assert all(torch.isfinite(tensor).all() for tensor in read_tensors(run / "checkpoints/8").values())
