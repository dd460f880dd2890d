"""Runs TwHIN's program in this process and in two processes: effects of its options, and errors."""

import contextlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from common.checkpointing.directory import complete_steps
from common.checkpointing.reader import read_tensors
from common.distributed.world import World
from common.errors import ConfigError, UserError
from core import project
from projects.twhin.data.vocabulary import write_vocabulary
from projects.twhin.export.tables import export
from projects.twhin.main import main
from tests.support.programs import TWHIN, finish
from tests.support.ranks import run_ranks
from tests.support.runs import small_twhin_run

Train = Callable[..., int]

TABLES = "model.embeddings.tables"


def arguments(data: Path, save_dir: Path, *options: str) -> list[str]:
    """Return arguments of the program. Options that begin with -- are flags, and all others are overrides."""
    flags = [word for option in options if option.startswith("--") for word in option.split()]
    return [*small_twhin_run(data, save_dir, *(o for o in options if not o.startswith("--"))), *flags]


@pytest.fixture
def train(twhin_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Return a function that runs the program with the arguments of small_twhin_run()."""

    def run(*options: str, save_dir: Path = tmp_path / "run") -> int:
        monkeypatch.setattr(sys, "argv", ["main", *arguments(twhin_data, save_dir, *options)])
        return main()

    return run


def lines(path: Path, mode: str) -> list[dict[str, Any]]:
    measured = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in measured if line["mode"] == mode]


def assert_equal_tensors(one: Path, other: Path) -> None:
    tensors, others = read_tensors(one), read_tensors(other)
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


def write_edges(path: Path, lhs: list[int], rel: list[int], rhs: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"lhs": np.array(lhs, int), "rel": np.array(rel, int), "rhs": np.array(rhs, int)}), path)


# --- One process ---


def test_mean_norms_of_tables_are_logged(train: Train, tmp_path: Path) -> None:
    assert train("training.eval_every_n=0") == 0
    assert complete_steps(tmp_path / "run/checkpoints") == [8, 12]
    logged = lines(tmp_path / "run/metrics.jsonl", "train")
    assert [line["step"] for line in logged] == [3, 6, 9, 12]
    tables = read_tensors(tmp_path / "run/checkpoints/12", "model.tables.embeddings.")
    for name in ("user", "tweet"):
        mean_norm = tables[f"{name}.weight"].double().norm(dim=1).mean().item()
        assert logged[-1]["metrics"][f"mean_norm/{name}"] == pytest.approx(mean_norm, rel=1e-12)


def test_the_debug_loop_takes_the_same_first_step_and_writes_nothing(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("training.train_log_every_n=1", "training.num_train_steps=1") == 0
    capsys.readouterr()
    assert train("--debug_loop", "training.num_train_steps=2", save_dir=tmp_path / "debug") == 0
    assert not (tmp_path / "debug").exists()
    printed = capsys.readouterr().err
    [first] = lines(tmp_path / "run/metrics.jsonl", "train")
    assert f"step 1: loss {first['metrics']['loss']:.6f}" in printed
    assert "step 2: loss" in printed


def test_a_table_is_initialized_from_an_export_that_a_resume_does_not_need(train: Train, tmp_path: Path) -> None:
    assert train("training.eval_every_n=0") == 0
    export(tmp_path / "run/checkpoints/12", tmp_path / "export")
    frozen = "optimizer={sgd: {lr: 0.0}}"
    options = (
        "training.eval_every_n=0",
        f"{TABLES}[0].pretrained={{emb_name: user, embedding_snapshot_uri: {tmp_path}/export}}",
        f"{TABLES}[0].{frozen}",
        f"{TABLES}[1].{frozen}",
    )
    assert train(*options, "training.num_train_steps=1", save_dir=tmp_path / "second") == 0
    trained, initialized = (
        read_tensors(path, "model.tables.embeddings.")
        for path in (tmp_path / "run/checkpoints/12", tmp_path / "second/checkpoints/1")
    )
    assert torch.equal(trained["user.weight"], initialized["user.weight"])
    assert not torch.equal(trained["tweet.weight"], initialized["tweet.weight"])
    shutil.rmtree(tmp_path / "export")
    assert train(*options, "training.num_train_steps=2", save_dir=tmp_path / "second") == 0
    with pytest.raises(ConfigError, match=r"embedding_snapshot_uri: .*/export: no such directory"):
        train(*options, save_dir=tmp_path / "third")


# --- Two processes ---


def tables(**rows: int) -> str:
    optimizer = "optimizer: {adagrad: {lr: 0.1}}"
    definitions = (
        f"name: {name}, num_embeddings: {n}, embedding_dim: 8, data_type: fp16, {optimizer}" for name, n in rows.items()
    )
    return f"{TABLES}=[{', '.join(f'{{{table}}}' for table in definitions)}]"


def relations(operator: str, **rhs: str) -> str:
    definitions = (f"name: {name}, lhs: user, rhs: {table}, operator: {operator}" for name, table in rhs.items())
    return f"model.relations=[{', '.join(f'{{{relation}}}' for relation in definitions)}]"


# No dense parameters, 16-bit tables, and a table without edges.
BARE = (
    "model.embeddings.tables_to_log=null",
    tables(user=1000, tweet=600, list=50),
    relations("identity", fav="tweet", reply="tweet", retweet="tweet", magic_recs="tweet", lists="list"),
    "training.eval_every_n=0",
)
BARE_FLOAT32 = tuple(option.replace("data_type: fp16, ", "") for option in BARE)


def run_all(world: World, runs: list[list[str]]) -> list[int | str]:
    """Run the program once per list of arguments. Returns each exit status or error message."""
    outcomes: list[int | str] = []
    with pytest.MonkeyPatch.context() as patcher:
        patcher.setattr(project, "joined_world", lambda *_, **__: contextlib.nullcontext(world))
        for run in runs:
            patcher.setattr(sys, "argv", ["main", *run])
            try:
                outcomes.append(main())
            except UserError as error:
                outcomes.append(str(error))
    return outcomes


@pytest.fixture(scope="module")
def two(twhin_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Run two processes. Returns the directory of the runs, and each run's exit status or error message by name."""
    root = tmp_path_factory.mktemp("two")
    # A run of one process, whose per-replica batch size gives another global batch size on two processes.
    with pytest.MonkeyPatch.context() as patcher:
        per_replica = ("train_data.global_batch_size=null", "train_data.per_replica_batch_size=300")
        one = arguments(twhin_data, root / "replica", *per_replica, "training.eval_every_n=0")
        patcher.setattr(sys, "argv", ["main", *one])
        assert main() == 0
    runs = {
        "run": arguments(twhin_data, root / "run"),
        "evaluator": arguments(twhin_data, root / "run", "--mode evaluate"),
        "whole": arguments(twhin_data, root / "whole", *BARE),
        "float32": arguments(twhin_data, root / "float32", *BARE_FLOAT32),
        "part": arguments(twhin_data, root / "parts", *BARE, "training.num_train_steps=4"),
        "rest": arguments(twhin_data, root / "parts", *BARE),
        "replica": arguments(twhin_data, root / "replica", *per_replica, "training.num_train_steps=16"),
        "lanes": arguments(twhin_data, root / "lanes", "train_data.lanes=3"),
        "adam": arguments(twhin_data, root / "adam", f"{TABLES}[1].optimizer={{adam: {{lr: 0.1}}}}"),
        "columns": arguments(
            twhin_data,
            root / "columns",
            f"{TABLES}[0].sharding=column_wise",
            f"{TABLES}[0].optimizer={{row_wise_adagrad: {{lr: 0.1}}}}",
        ),
    }
    ranks = run_ranks(run_all, list(runs.values()))
    assert ranks[0] == ranks[1]
    return root, dict(zip(runs, ranks[0], strict=True))


@pytest.mark.faults
def test_a_follower_computes_the_trainers_metrics_on_any_number_of_processes(
    two: tuple[Path, dict[str, Any]], train: Train, tmp_path: Path
) -> None:
    root, outcomes = two
    assert (outcomes["run"], outcomes["evaluator"]) == (0, 0)
    shutil.copytree(root / "run/checkpoints", tmp_path / "run/checkpoints")
    assert train("--mode evaluate") == 0
    [*_, by_trainer] = lines(root / "run/metrics.jsonl", "evaluate")
    [*_, by_two] = lines(root / "run/metrics-evaluator.jsonl", "evaluate")
    [*_, by_one] = lines(tmp_path / "run/metrics-evaluator.jsonl", "evaluate")
    assert by_trainer["metrics"]["examples"] == 100
    for other in (by_two, by_one):
        assert other["step"] == by_trainer["step"] == 12
        assert other["metrics"] == pytest.approx(by_trainer["metrics"], rel=1e-12)


def test_16_bit_tables_resume_bit_for_bit_and_are_close_to_float32_tables(
    two: tuple[Path, dict[str, Any]], train: Train, tmp_path: Path
) -> None:
    """Operators are identities, and one table has no edges. Runs on two processes and on one."""
    root, outcomes = two
    assert [outcomes[name] for name in ("whole", "float32", "part", "rest")] == [0] * 4
    assert train(*BARE_FLOAT32, save_dir=tmp_path / "float32") == 0
    assert train(*BARE, save_dir=tmp_path / "whole") == 0
    assert train(*BARE, "training.num_train_steps=4", save_dir=tmp_path / "parts") == 0
    assert train(*BARE, save_dir=tmp_path / "parts") == 0
    for directory in (root, tmp_path):
        assert_equal_tensors(directory / "whole/checkpoints/12", directory / "parts/checkpoints/12")
        after, before = (
            read_tensors(directory / f"whole/checkpoints/{step}", "model.tables.embeddings.") for step in (12, 8)
        )
        assert {name: (tensor.dtype, len(tensor)) for name, tensor in after.items()} == {
            "user.weight": (torch.float16, 1000),
            "tweet.weight": (torch.float16, 600),
            "list.weight": (torch.float16, 50),
        }
        exact = read_tensors(directory / "float32/checkpoints/12", "model.tables.embeddings.")
        for name, tensor in after.items():
            # Adagrad's first updates only depend on signs of gradients, so a few differ when gradients are near 0.
            assert (tensor.double() - exact[name].double()).norm() < 0.1 * exact[name].double().norm()
        assert [name for name in after if torch.equal(after[name], before[name])] == ["list.weight"]
        losses = [line["metrics"]["loss"] for line in lines(directory / "whole/metrics.jsonl", "train")]
        assert losses[-1] < losses[0]


# --- Errors ---


@pytest.mark.faults
def test_options_that_do_not_fit_two_processes_are_errors(two: tuple[Path, dict[str, Any]]) -> None:
    _, outcomes = two
    for fact in ("train_data.global_batch_size: ", "300", "600", "all processes together", "per_replica_batch_size"):
        assert fact in outcomes["replica"]
    assert outcomes["lanes"].startswith("train_data: ")
    assert "lanes" in outcomes["lanes"]
    assert outcomes["adam"].startswith(f"{TABLES}[1].optimizer")
    assert "CUDA" in outcomes["adam"]
    assert outcomes["columns"].startswith(f"{TABLES}[0].sharding")
    for fact in ("column_wise", "row_wise_adagrad"):
        assert fact in outcomes["columns"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["train_data.data_root={tmp}/entity"], r"b.parquet: row group 0, row 1 .*: column 'rhs': found 600"),
        (["train_data.data_root={tmp}/relation"], r"a.parquet: row group 0, row 0 .*: column 'rel': found 4"),
        (["train_data.data_root={tmp}/no"], r"/no: no file matches"),
        (["train_data.data_root={tmp}/empty"], r"empty/a.parquet: .*Parquet: "),
        (["train_data.data_root={tmp}/no_rows"], r"/no_rows: 1 file.* row"),
        (["train_data.offset=4800"], r"train_data.offset is 4800, but .* has only 4800 edges"),
        (["validation_data.validation.offset=500"], r"validation_data.validation.offset is 500, but "),
        ([f"{TABLES}[0].vocab={{tmp}}/vocabulary.parquet"], r"tables\[user\].vocab: .* has 1001 entities, but .* 1000"),
        ([f"{TABLES}[0].embedding_dim=30", f"{TABLES}[1].embedding_dim=30"], r"\[0\].embedding_dim\b.* 30\b"),
        (
            ["model.relations[0].operator=complex_diagonal", *(f"{TABLES}[{i}].embedding_dim=5" for i in range(2))],
            r"\[0\].embedding_dim\b.* 5\b",
        ),
        (
            ["metrics={filtered: false, known_edges: [{tmp}/entity]}"],
            r"metrics.*: known_edges is set, but filtered is false",
        ),
    ],
)
def test_a_user_error_is_raised_before_anything_is_written(
    train: Train, tmp_path: Path, options: list[str], message: str
) -> None:
    write_edges(tmp_path / "entity/a.parquet", [0, 1], [0, 3], [0, 599])
    write_edges(tmp_path / "entity/b.parquet", [0, 999], [0, 3], [0, 600])
    write_edges(tmp_path / "relation/a.parquet", [0, 1], [4, 3], [0, 599])
    write_edges(tmp_path / "no_rows/a.parquet", [], [], [])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/a.parquet").touch()
    write_vocabulary(tmp_path / "vocabulary.parquet", pa.array(range(1001)))
    with pytest.raises(UserError, match=message):
        train(*(option.replace("{tmp}", str(tmp_path)) for option in options), "train_data.global_batch_size=2")
    assert not (tmp_path / "run").exists()


@pytest.mark.faults
def test_an_error_on_one_rank_is_one_message_and_status_2_on_both(twhin_data: Path, tmp_path: Path) -> None:
    """The bad edge is in a lane that the other rank does not read."""
    write_edges(tmp_path / "edges/a.parquet", [*range(400)], [0] * 400, [*range(400)])
    write_edges(tmp_path / "edges/b.parquet", [*range(400)], [3] * 400, [*range(399), 600])
    options = ("validation_data={}", f"train_data.data_root={tmp_path}/edges", "train_data.lanes=2")
    ended = finish(arguments(twhin_data, tmp_path / "run", *options), 2, module=TWHIN)
    assert (
        ended.stderr.count(
            f"{tmp_path}/edges/b.parquet: row group 0, row 399 (both counted from 0): column 'rhs': found 600, but the "
            "table tweet has 600 rows (relation magic_recs)"
        )
        == 1
    )
    assert set(re.findall(r"exitcode *: (\d+)", ended.stderr)) == {"2"}
    assert "DataError" not in ended.stderr
    assert complete_steps(tmp_path / "run/checkpoints") == []


def test_tables_may_have_the_names_of_attributes_of_modules(train: Train, twhin_data: Path, tmp_path: Path) -> None:
    """Train, resume and export tables that a module dictionary could not hold under their own names."""
    relations = "model.relations=[{name: fav, lhs: items, rhs: type}]"
    graph = tmp_path / "graph"
    names = (f"{TABLES}[0].name=items", f"{TABLES}[1].name=type", "model.embeddings.tables_to_log=[type]", relations)
    for split in ("train", "validation"):
        (graph / split).mkdir(parents=True)
        edges = pq.read_table(twhin_data / split)
        zeros = pa.array(np.zeros(len(edges)), edges.schema.field("rel").type)
        pq.write_table(edges.set_column(1, "rel", zeros), graph / split / "0.parquet")
    data = (f"train_data.data_root={graph}/train", f"validation_data.validation.data_root={graph}/validation")
    assert train(*names, *data, "training.num_train_steps=4") == 0
    assert train(*names, *data, "training.num_train_steps=8") == 0
    rates = lines(tmp_path / "run/metrics.jsonl", "train")[-1]["metrics"]
    assert {"learning_rate/table/items", "learning_rate/table/type", "mean_norm/type"} <= rates.keys()
    export(tmp_path / "run/checkpoints/8", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").glob("*.parquet")} == {"items.parquet", "type.parquet"}
    saved = read_tensors(tmp_path / "run/checkpoints/8", "model.tables.embeddings.")
    exported = np.stack(pq.read_table(tmp_path / "out/items.parquet")["embedding"].to_numpy())
    [table] = [tensor for name, tensor in saved.items() if "items" in name]
    assert np.array_equal(exported, table.numpy())
