"""A YAML file of the original project loads with its original meaning and trains."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from common.checkpointing.directory import complete_steps
from common.checkpointing.reader import read_tensors
from core.config import load_config_from_yaml
from projects.twhin.config import TwhinConfig
from projects.twhin.main import main
from projects.twhin.tools.generate import generate

TABLES = "model.embeddings.tables"
RELATIONS = ("fav", "reply", "retweet", "magic_recs")

YAML = f"""\
runtime:
  enable_amp: false

training:
  save_dir: "/tmp/model"
  num_train_steps: 100000
  checkpoint_every_n: 100000
  train_log_every_n: 10
  num_eval_steps: 1000
  eval_log_every_n: 500
  eval_timeout_in_s: 10000
  num_epochs: 5
  initial_checkpoint_dir: null
  gradient_accumulation: null

model:
  translation_optimizer:
    sgd:
      lr: 0.05
    learning_rate:
      constant: 0.05
  embeddings:
    tables:
    - name: user
      num_embeddings: 424241
      embedding_dim: 4
      data_type: fp32
      pretrained: null
      vocab: null
      optimizer:
        sgd:
          lr: 0.01
        learning_rate:
          constant: 0.01
    - name: tweet
      num_embeddings: 72543
      embedding_dim: 4
      data_type: fp32
      optimizer:
        sgd:
          lr: 0.005
        learning_rate:
          constant: 0.005
    tables_to_log: null
  relations:
{"".join(f"  - {{name: {name}, lhs: user, rhs: tweet, operator: translation}}{chr(10)}" for name in RELATIONS)}

train_data:
  data_root: "${{HOME}}/edges/train/*.parquet"
  per_replica_batch_size: 500
  global_negatives: 0
  in_batch_negatives: 10
  limit: 9990

validation_data:
  data_root: "${{HOME}}/edges/train/*.parquet"
  per_replica_batch_size: 500
  global_negatives: 0
  in_batch_negatives: 10
  limit: 10
  offset: 9990
"""

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the YAML file and a graph of 13,000 edges, 12,480 of them for training."""
    directory = tmp_path_factory.mktemp("home")
    generate(directory / "edges", 0, 2000, 1000, 13_000)
    (directory / "local.yaml").write_text(YAML)
    return directory


@pytest.fixture
def train(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Return a function that trains with small tables and overrides and returns the run's directory."""
    monkeypatch.setenv("HOME", str(home))

    def run(*overrides: str, name: str = "run") -> Path:
        small = [f"{TABLES}[0].num_embeddings=2000", f"{TABLES}[1].num_embeddings=1000"]
        given = [f"training.save_dir={tmp_path / name}", *small, *overrides]
        arguments = [word for override in given for word in ("--set", override)]
        monkeypatch.setattr(sys, "argv", ["main", "--config", str(home / "local.yaml"), *arguments])
        assert main() == 0
        return tmp_path / name

    return run


def lines(save_dir: Path, mode: str) -> list[dict[str, Any]]:
    measured = [json.loads(line) for line in (save_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in measured if line["mode"] == mode]


def tables(save_dir: Path, step: int) -> dict[str, torch.Tensor]:
    return read_tensors(save_dir / f"checkpoints/{step}", "model.tables.")


def test_the_original_keys_keep_their_meaning(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    config = load_config_from_yaml(TwhinConfig, home / "local.yaml")
    model, training = config.model, config.training
    user, tweet = model.embeddings.tables
    assert (user.name, user.num_embeddings, user.embedding_dim, user.data_type) == ("user", 424241, 4, "fp32")
    assert (tweet.name, tweet.num_embeddings, tweet.embedding_dim, tweet.data_type) == ("tweet", 72543, 4, "fp32")
    optimizers = [user.optimizer, tweet.optimizer, model.translation_optimizer]
    assert [optimizer.rate.constant for optimizer in optimizers] == [0.01, 0.005, 0.05]
    relations = [(relation.name, relation.lhs, relation.rhs, relation.operator) for relation in model.relation_list]
    assert relations == [(name, "user", "tweet", "translation") for name in RELATIONS]
    assert (training.num_train_steps, training.num_epochs, training.eval_timeout_in_s) == (100000, 5, 10000.0)
    assert list(config.evaluation_data) == ["validation"]
    # The batch size is that of each process.
    assert [config.train_data.batch_size(processes) for processes in (1, 2)] == [500, 1000]


def test_the_original_yaml_trains(train: Train, home: Path) -> None:
    run = train()
    # Each epoch's 9,990 edges give 19 batches of 500.
    assert complete_steps(run / "checkpoints") == [5 * 19]
    trained = lines(run, "train")
    assert [line["step"] for line in trained] == [*range(10, 100, 10), 95]
    rates = {"relations": 0.05, "table/user": 0.01, "table/tweet": 0.005}
    assert rates.items() == {
        (name.removeprefix("learning_rate/"), value)
        for name, value in trained[-1]["metrics"].items()
        if name.startswith("learning_rate/")
    }
    [evaluated] = lines(run, "evaluate")
    assert evaluated["partition"] == "validation"
    relation_ids = pq.read_table(home / "edges/train", columns=["rel"])["rel"].to_numpy()[9990:10000]
    for number, name in enumerate(RELATIONS):
        assert evaluated["metrics"][f"relation/{name}/examples"] == (relation_ids == number).sum()
    assert evaluated["metrics"]["examples"] == 10


def test_learning_rate_overrides_lr(train: Train) -> None:
    steps = ("training.num_train_steps=2", "validation_data={}")
    optimizers = ("model.translation_optimizer", f"{TABLES}[0].optimizer", f"{TABLES}[1].optimizer")
    as_given = train(*steps)
    other_lr = train(*steps, *(f"{optimizer}.sgd.lr=7.0" for optimizer in optimizers), name="other_lr")
    lr_alone = train(*steps, *(f"{optimizer}.learning_rate=null" for optimizer in optimizers), name="lr_alone")
    one, other, third = (read_tensors(run / "checkpoints/2", "model.") for run in (as_given, other_lr, lr_alone))
    assert len(one) == 2 + 2, "two tables, and the relations of two directions"
    assert all(torch.equal(tensor, other[name]) and torch.equal(tensor, third[name]) for name, tensor in one.items())


@pytest.mark.parametrize("offset", [0, 2000])
def test_limit_and_offset_choose_the_edges_that_are_trained_on(train: Train, home: Path, offset: int) -> None:
    rates = (f"{TABLES}[{table}].optimizer.learning_rate.constant" for table in range(2))
    options = ("train_data.limit=1000", f"train_data.offset={offset}", "training.num_epochs=1", "validation_data={}")
    run = train(*options, *(f"{rate}=1.0" for rate in rates))
    initial = train(
        *options, *(f"{TABLES}[{table}].optimizer={{sgd: {{lr: 0}}}}" for table in range(2)), name="initial"
    )
    edges = pq.read_table(home / "edges/train").slice(offset, 1000)
    before, after = tables(initial, 2), tables(run, 2)
    for table, side in (("user", "lhs"), ("tweet", "rhs")):
        name = f"embeddings.{table}.weight"
        changed = (before[name] != after[name]).any(dim=1).nonzero().flatten()
        # Negatives come from the batch, so they are entities of these edges, too.
        assert changed.tolist() == sorted(set(edges[side].to_pylist()))


@pytest.mark.parametrize(("in_batch", "uniform"), [(10, 0), (0, 10), (10, 10)])
def test_the_first_loss_is_the_loss_of_scores_near_0(train: Train, in_batch: int, uniform: int) -> None:
    """The edge and its negatives together contribute softplus(0) = log 2 each, on both sides."""
    negatives = (f"train_data.in_batch_negatives={in_batch}", f"train_data.global_negatives={uniform}")
    steps = ("training.num_train_steps=1", "training.train_log_every_n=1", "validation_data={}")
    [line] = lines(train(*negatives, *steps), "train")
    assert line["metrics"]["loss"] == pytest.approx(4 * math.log(2), rel=1e-5)
