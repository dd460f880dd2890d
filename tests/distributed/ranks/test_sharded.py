"""Embedding tables have the same values, updates and checkpoints on one, two and three ranks, for every sharding."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from common.batch import Batch
from common.checkpointing.reader import CheckpointReader, read_tensors
from common.checkpointing.writer import write_checkpoint
from common.distributed.world import World
from common.errors import ConfigError
from common.modules.embedding.config import EmbeddingBagConfig
from common.modules.embedding.tables import build_tables, look_up
from common.optimizers.build import build_optimizer
from common.optimizers.config import OptimizerConfig
from common.optimizers.learning_rate import CombinedSchedule
from core.autocast import Autocast
from core.loop.step import TrainStep
from core.models.sharded import ShardedModel, TableScheduler, shard
from core.models.table_rows import mean_norms, set_rows
from core.run.tensors import load_model, load_optimizer, training_tensors
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.faults

DIM = 8
# One name is a prefix of the other.
ROWS = {"user": 37, "user_geo": 11}
STEPS = 3
BATCH = 24

RATE = {"piecewise_constant": {"learning_rate_boundaries": [1], "learning_rate_values": [0.5, 0.1]}}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"sgd": {"lr": 0.3}},
    "adagrad": {"learning_rate": RATE, "adagrad": {"lr": 9.0}},
    "row_wise_adagrad": {"row_wise_adagrad": {"lr": 0.2}},
}


@dataclasses.dataclass(frozen=True)
class Pairs(Batch):
    user: torch.Tensor
    geo: torch.Tensor


def batch_of(step: int, begin: int, end: int) -> Pairs:
    random = np.random.default_rng(step)
    # A batch contains rows several times.
    user, geo = (torch.from_numpy(random.integers(0, rows // 2, BATCH)) for rows in ROWS.values())
    return Pairs(user[begin:end], geo[begin:end])


class TwoTables(nn.Module):
    """Model whose loss is the mean of (dot product - 1)^2. The dot product is weighted by a dense vector."""

    def __init__(self, configs: list[EmbeddingBagConfig]) -> None:
        super().__init__()
        self.tables = build_tables(configs)
        self.between = nn.Parameter(torch.linspace(0.5, 1.5, DIM))

    def forward(self, batch: Pairs) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        rows = look_up(self.tables, list(ROWS), {"user": batch.user, "user_geo": batch.geo})
        return ((rows["user"] * self.between * rows["user_geo"]).sum(1) - 1).square().mean(), {}


def configs_of(optimizer: str, sharding: str | None) -> list[EmbeddingBagConfig]:
    # The tables have different learning rates.
    options = [OPTIMIZERS[optimizer], {**OPTIMIZERS[optimizer], "learning_rate": {"constant": 0.05}}]
    return [
        EmbeddingBagConfig.model_validate(
            {
                "name": name,
                "num_embeddings": rows,
                "embedding_dim": DIM,
                "init_scale": 0.5,
                "optimizer": option,
                "sharding": sharding,
            }
        )
        for (name, rows), option in zip(ROWS.items(), options, strict=True)
    ]


def build(
    world: World, optimizer: str, sharding: str | None
) -> tuple[ShardedModel, torch.optim.Optimizer, CombinedSchedule]:
    configs = configs_of(optimizer, sharding)
    model = shard(TwoTables(configs), configs, "tables", world, seed=5, deterministic=True)
    dense = OptimizerConfig.model_validate({"adagrad": {"lr": 0.1}})
    dense_optimizer, rates = build_optimizer([model.module.get_parameter("between")], dense, "between")
    table_scheduler = TableScheduler(model, {config.name: config.optimizer.rate for config in configs})
    return model, dense_optimizer, CombinedSchedule(rates, table_scheduler)


def save(root: Path, model: ShardedModel, optimizer: torch.optim.Optimizer, group: Any) -> Path:
    return write_checkpoint(root, STEPS, training_tensors(model, optimizer), {}, group)


def train(world: World, root: Path, optimizer: str, sharding: str | None) -> dict[str, Any]:
    model, dense_optimizer, rates = build(world, optimizer, sharding)
    group = dist.new_group(backend="gloo") if world.size > 1 else None
    begin = save(root / "begin", model, dense_optimizer, group)
    model.replicate()
    step = TrainStep(model, dense_optimizer, rates, world=world, autocast=Autocast(world.device, None))
    share = BATCH // world.size
    losses = []
    for number in range(1, STEPS + 1):
        loss, skipped = step([batch_of(number, world.rank * share, (world.rank + 1) * share)], number)
        assert not skipped.item()
        losses.append(loss.item())
    end = save(root / "end", model, dense_optimizer, group)
    return {
        "begin": read_tensors(begin),
        "end": read_tensors(end),
        "losses": losses,
        "norms": mean_norms(model.tables()),
        "parameters": model.num_parameters,
        "rates": rates.at(2),
        "shards": [tuple(local.metadata.shard_sizes) for local in model.tables()["user"].local_shards()],
    }


def train_cases(world: World, root: Path, cases: list[tuple[str, str | None]]) -> list[dict[str, Any]]:
    return [train(world, root / f"{optimizer}-{sharding}", optimizer, sharding) for optimizer, sharding in cases]


CASES: list[tuple[str, str | None]] = [
    ("sgd", "row_wise"),
    ("adagrad", "row_wise"),
    ("adagrad", "table_wise"),
    ("adagrad", "column_wise"),
    ("row_wise_adagrad", "row_wise"),
    ("row_wise_adagrad", None),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharding")


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[tuple[str, str | None], dict[str, Any]]:
    return dict(zip(CASES, run_ranks(train_cases, folder / "one", CASES, world_size=1)[0], strict=True))


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[tuple[str, str | None], dict[str, Any]]]:
    return [dict(zip(CASES, rank, strict=True)) for rank in run_ranks(train_cases, folder / "two", CASES)]


def truth(optimizer: str, begin: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights after the same steps, from the definitions of the optimizers, with dense float64 tensors."""
    weights = {name: begin[f"model.tables.embeddings.{name}.weight"].double().requires_grad_() for name in ROWS}
    between = begin["model.between"].double().requires_grad_()
    sums = {name: torch.zeros_like(weight) for name, weight in {**weights, "between": between}.items()}
    for number in range(1, STEPS + 1):
        batch = batch_of(number, 0, BATCH)
        dot = (weights["user"][batch.user] * between * weights["user_geo"][batch.geo]).sum(1)
        parameters = {**weights, "between": between}
        gradients = torch.autograd.grad((dot - 1).square().mean(), list(parameters.values()))
        rates = {
            "user": {"sgd": 0.3, "adagrad": 0.5 if number == 1 else 0.1, "row_wise_adagrad": 0.2}[optimizer],
            "user_geo": 0.05,
            "between": 0.1,
        }
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            kind = "adagrad" if name == "between" else optimizer
            square = gradient.square()
            sums[name] += square.mean(1, keepdim=True) if kind == "row_wise_adagrad" else square
            change = gradient if kind == "sgd" else gradient / (sums[name].sqrt() + 1e-10)
            with torch.no_grad():
                parameter -= rates[name] * change
    return {f"model.tables.embeddings.{name}.weight": weights[name].detach() for name in ROWS} | {
        "model.between": between.detach()
    }


@pytest.mark.parametrize("case", CASES, ids=str)
def test_updates_on_one_rank_follow_the_definitions_of_the_optimizers(one, case):
    expected = truth(case[0], one[case]["begin"])
    for name, tensor in expected.items():
        assert (one[case]["end"][name].double() - tensor).abs().max() < 1e-5, name
        assert (one[case]["end"][name] - one[case]["begin"][name]).abs().max() > 1e-3, "otherwise nothing is compared"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_ranks_make_the_updates_of_one_rank_with_the_global_batch(one, two, case):
    expected, found = one[case]["end"], two[0][case]["end"]
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].double() - tensor.double()).abs().max() < 1e-5, name
    for position, loss in enumerate(one[case]["losses"]):
        assert sum(rank[case]["losses"][position] for rank in two) / 2 == pytest.approx(loss, rel=1e-5)


def test_initial_values_depend_on_neither_the_number_of_ranks_nor_the_sharding(one, two):
    name = "model.tables.embeddings.user.weight"
    expected = one[CASES[0]]["begin"][name]
    other = one[CASES[0]]["begin"][name.replace("user", "user_geo")]
    assert all(torch.equal(run[case]["begin"][name], expected) for run in (one, *two) for case in CASES)
    assert 0.35 < expected.std() < 0.65
    assert abs(np.corrcoef(expected[: ROWS["user_geo"]].flatten(), other.flatten())[0, 1]) < 0.4


def test_tables_are_sharded_as_configured(two):
    rows = ROWS["user"]
    shards = {
        sharding: [rank["adagrad", sharding]["shards"] for rank in two] for sharding in ("row_wise", "column_wise")
    }
    assert shards == {"row_wise": [[(19, DIM)], [(18, DIM)]], "column_wise": [[(rows, DIM // 2)], [(rows, DIM // 2)]]}
    assert sorted(two[rank]["adagrad", "table_wise"]["shards"] for rank in (0, 1)) == [[], [(rows, DIM)]]


def test_checkpoints_hold_the_states_of_stateful_optimizers(two):
    states = {
        case: {name: tuple(tensor.shape) for name, tensor in two[0][case]["end"].items() if name.startswith("table_")}
        for case in CASES
    }
    assert states["sgd", "row_wise"] == {}
    whole = {
        f"table_optimizer.{name}.momentum1.tables.embeddings.{name}.weight": (rows, DIM) for name, rows in ROWS.items()
    }
    assert states["adagrad", "row_wise"] == states["adagrad", "table_wise"] == whole
    assert set(states["row_wise_adagrad", "row_wise"].values()) == {(rows,) for rows in ROWS.values()}


def test_norms_learning_rates_and_sizes_are_the_same_on_all_ranks(one, two):
    for case in CASES:
        weights = {name: two[0][case]["end"][f"model.tables.embeddings.{name}.weight"] for name in ROWS}
        for run in two:
            for name, weight in weights.items():
                assert run[case]["norms"][name] == pytest.approx(weight.double().norm(dim=1).mean().item())
            assert run[case]["parameters"] == DIM * (sum(ROWS.values()) + 1)
            assert run[case]["rates"] == one[case]["rates"]
    assert one["adagrad", "row_wise"]["rates"] == {"between": 0.1, "table/user": 0.1, "table/user_geo": 0.05}


# --- Other numbers of ranks ---


def load_and_save(world: World, saved: Path, root: Path, cases: list[tuple[str, str | None]]) -> list[dict[str, Any]]:
    """Load checkpoints and save them again unchanged. Return the tensors of the new ones."""
    group = dist.new_group(backend="gloo") if world.size > 1 else None
    found = []
    for optimizer, sharding in cases:
        path = saved / f"{optimizer}-{sharding}/end/{STEPS}"
        model, dense_optimizer, _ = build(world, optimizer, sharding)
        with CheckpointReader(path) as checkpoint:
            load_model(model, checkpoint)
            load_optimizer(model, dense_optimizer, checkpoint)
        path = save(root / f"{world.size}-{optimizer}-{sharding}", model, dense_optimizer, group)
        found.append(read_tensors(path))
    return found


@pytest.mark.parametrize("world_size", [1, 3])
def test_checkpoints_of_two_ranks_are_restored_bit_for_bit_on_other_numbers_of_ranks(two, folder, world_size):
    ranks = run_ranks(load_and_save, folder / "two", folder / "again", CASES, world_size=world_size)
    for case, found in zip(CASES, ranks[0], strict=True):
        expected = two[0][case]["end"]
        assert found.keys() == expected.keys()
        assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items()), case


# --- Setting rows, and refused configurations ---


def set_rows_and_refuse(world: World) -> dict[str, Any]:
    """Return rows after setting them, and the error message of each wrong configuration."""
    found: dict[str, Any] = {}
    model, _, _ = build(world, "sgd", "row_wise")
    weights = model.tables()
    rows = np.array([30, 0, 18, 19, 36])
    set_rows(weights["user"], rows, np.arange(len(rows) * DIM, dtype=np.float32).reshape(-1, DIM))
    ids = torch.tensor([0, 36, 18, 19, 30]) if world.rank == 0 else torch.empty(0, dtype=torch.int64)
    with torch.no_grad():
        found["rows"] = look_up(model.module.get_submodule("tables"), list(ROWS), {"user": ids})["user"].tolist()
    wrong: dict[str, dict[str, Any]] = {
        "adam": {"optimizer": {"adam": {"lr": 0.1}}},
        "dimension": {"embedding_dim": 6},
        "momentum": {"optimizer": {"sgd": {"lr": 0.1, "momentum": 0.9}}},
        "sharding": {"optimizer": {"row_wise_adagrad": {"lr": 0.1}}, "sharding": "column_wise"},
        "huge": {"num_embeddings": 10**12},
    }
    for name, changes in wrong.items():
        first = configs_of("sgd", None)[0].model_dump() | changes
        second = configs_of("sgd", None)[1].model_dump() | {"embedding_dim": first["embedding_dim"]}
        configs = [EmbeddingBagConfig.model_validate(table) for table in (first, second)]
        try:
            shard(TwoTables(configs), configs, "model.embeddings.tables", world, seed=0, deterministic=False)
        except ConfigError as error:
            found[name] = str(error)
    return found


@pytest.fixture(scope="module")
def special_cases() -> list[dict[str, Any]]:
    return run_ranks(set_rows_and_refuse)


def test_rows_are_set_on_the_ranks_that_hold_them(special_cases):
    order = [1, 4, 2, 3, 0]
    assert special_cases[0]["rows"] == [[float(DIM * index + column) for column in range(DIM)] for index in order]
    assert special_cases[1]["rows"] == [], "a rank without ids participates"


@pytest.mark.parametrize(
    ("name", "key", "facts"),
    [
        ("adam", "model.embeddings.tables[0].optimizer.adam", ["Adam", "CUDA"]),
        ("dimension", "model.embeddings.tables[0].embedding_dim", ["is 6"]),
        ("momentum", "model.embeddings.tables[0].optimizer.sgd.momentum", ["is 0.9"]),
        ("sharding", "model.embeddings.tables[0].sharding", ["is column_wise"]),
        ("huge", "model.embeddings.tables", ["2 process(es)", "(user: any, "]),
    ],
)
def test_unsupported_configurations_are_refused_with_their_key_and_the_reason(special_cases, name, key, facts):
    for rank in special_cases:
        assert re.match(rf"{re.escape(key)}(:| is) ", rank[name])
        assert [fact for fact in facts if fact not in rank[name]] == []
