from pathlib import Path
from typing import Any

import pytest

from core.config.config_load import load_config_from_yaml
from projects.twhin.config import TwhinConfig
from projects.twhin.data.edges import check_batching
from projects.twhin.tools.config_writer import PreparedGraph, PreparedRelation, write_config


def written(tmp_path: Path, folder: str = "data/mine", **changes: Any) -> TwhinConfig:
    """Write the configuration of a graph in `folder`, with changes to the graph, and return it as it loads."""
    graph = PreparedGraph(
        {"user": 300, "tweet": 200},
        [PreparedRelation("fav", "user", "tweet"), PreparedRelation("follow: a", "user", "user")],
        {"train": 100_000, "validation": 1000, "test": 1000},
    )
    write_config(tmp_path / "config.yaml", Path(folder), graph._replace(**changes))
    return load_config_from_yaml(TwhinConfig, tmp_path / "config.yaml")


def test_configuration_describes_the_graph(tmp_path):
    config = written(tmp_path)
    tables = {name: (table.num_embeddings, table.vocab) for name, table in config.model.tables.items()}
    assert tables == {
        "user": (300, "data/mine/vocabulary/user.parquet"),
        "tweet": (200, "data/mine/vocabulary/tweet.parquet"),
    }
    relations = [(relation.name, relation.lhs, relation.rhs) for relation in config.model.relation_list]
    assert relations == [("fav", "user", "tweet"), ("follow: a", "user", "user")]
    assert config.train_data.data_root == "data/mine/train"
    assert config.evaluation_data["validation"].data_root == "data/mine/validation"
    assert config.metrics.known_edges == ["data/mine/test"]
    assert config.training.num_train_steps == 10 * (100_000 // config.train_data.batch_size(1))


def test_names_with_special_characters_load_unchanged(tmp_path):
    names = ["$HOME", "yes", "1", "a: b #c", "é", "${x}$$"]
    config = written(tmp_path, "data/$mine", relations=[PreparedRelation(name, "user", "tweet") for name in names])
    assert [relation.name for relation in config.model.relation_list] == names
    assert config.train_data.data_root == "data/$mine/train"


@pytest.mark.parametrize("num_edges", [1, 2, 23])
def test_smallest_graphs_are_one_batch(tmp_path, num_edges):
    config = written(tmp_path, num_edges={"train": num_edges})
    check_batching(config.train_data, "train_data", 1)
    assert config.train_data.batch_size(1) == num_edges
    assert config.training.num_train_steps == config.training.num_epochs


@pytest.mark.parametrize(("num_edges", "batch"), [(24, 24), (5000, 48), (300_000_000, 1920)])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
def test_batch_size_suits_the_graph_and_common_world_sizes(tmp_path, num_edges, batch, world_size):
    config = written(tmp_path, num_edges={"train": num_edges})
    check_batching(config.train_data, "train_data", world_size)
    assert config.train_data.batch_size(1) == batch
    assert config.training.num_train_steps == 10 * (num_edges // batch)
    assert config.validation_data == {}
    optimizers = [table.optimizer for table in config.model.embeddings.tables]
    for optimizer in [*optimizers, config.model.translation_optimizer]:
        assert optimizer.rate.linear_ramp_to_cosine is not None
        assert optimizer.rate.linear_ramp_to_cosine.final_num_steps == config.training.num_train_steps


def test_many_relations_have_no_metrics_per_relation(tmp_path):
    many = [PreparedRelation(f"r{number}", "user", "tweet") for number in range(237)]
    assert written(tmp_path).metrics.per_relation
    assert not written(tmp_path, relations=many).metrics.per_relation


def test_evaluation_of_large_graphs_is_bounded(tmp_path):
    small = written(tmp_path)
    large = written(
        tmp_path,
        tables={"user": 10**7, "tweet": 10**6},
        num_edges={"train": 3 * 10**8, "validation": 10**6, "test": 10**6},
    )
    assert (small.metrics.candidates, large.metrics.candidates) == (None, 100_000)
    assert (small.metrics.filtered, large.metrics.filtered) == (True, False)
    assert large.metrics.known_edges == []
    assert (small.evaluation_data["validation"].limit, large.evaluation_data["validation"].limit) == (None, 20_000)
