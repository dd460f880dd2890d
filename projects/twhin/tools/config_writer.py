"""Writes a configuration that is ready to train on a prepared graph.

Tables, relations and paths come from the graph. The hyperparameters are a starting point that suits its size.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from core.config.yaml_writer import to_yaml
from projects.twhin.tools.graph_files import relation_names_path, vocabulary_path


class PreparedRelation(NamedTuple):
    """A relation and the tables of its left and right entities."""

    name: str
    lhs: str
    rhs: str


class PreparedGraph(NamedTuple):
    """Sizes and relations of a graph that `prepare` wrote.

    Attributes:
      tables: number of rows by table name.
      relations: relations in the order of their ids.
      num_edges: number of edges by split.
    """

    tables: Mapping[str, int]
    relations: Sequence[PreparedRelation]
    num_edges: Mapping[str, int]


_DIMENSION = 100
_NUM_EPOCHS = 10
# A multiple of 24 suits 1, 2, 3, 4, 6, 8, 12 and 24 processes. Graphs with fewer edges get one batch per epoch.
_MAX_BATCH, _BATCH_UNIT, _STEPS_PER_EPOCH = 1920, 24, 100
_LOGS_PER_EPOCH = 10
# Without a penalty and with a constant learning rate, the model memorizes small graphs: its metrics get worse from
# the second or third epoch.
_N3, _RATE, _FINAL_RATE, _RAMP = 0.1, 0.1, 0.002, 0.01
# More relations than this make the list of relations and the table of metrics per relation too long to read.
_MAX_LISTED_RELATIONS = 20
# These limits keep an evaluation within minutes.
_MAX_CANDIDATES, _MAX_EVALUATED, _MAX_KNOWN = 100_000, 20_000, 20_000_000


def write_config(path: Path, folder: Path, graph: PreparedGraph) -> None:
    """Write the YAML of a TwhinConfig.

    Args:
      path: file to write.
      folder: directory of the graph, as the configuration names it.
      graph: sizes and relations of the graph.
    """
    num_edges = graph.num_edges["train"]
    batch = min(_MAX_BATCH, max(_BATCH_UNIT, num_edges // _STEPS_PER_EPOCH // _BATCH_UNIT * _BATCH_UNIT), num_edges)
    steps_per_epoch = num_edges // batch
    config: dict[str, Any] = {
        "training": {
            "save_dir": str(Path("runs") / folder.resolve().name),
            "num_train_steps": _NUM_EPOCHS * steps_per_epoch,
            "num_epochs": _NUM_EPOCHS,
            "checkpoint_every_n": steps_per_epoch,
            "checkpoint_max_to_keep": 2,
            "train_log_every_n": max(1, steps_per_epoch // _LOGS_PER_EPOCH),
            "num_eval_steps": -1,
        },
        "train_data": {
            "data_root": str(folder / "train"),
            "global_batch_size": batch,
            "in_batch_negatives": 50,
            "global_negatives": 1000,
        },
    }
    if "validation" in graph.num_edges:
        config |= _evaluation(folder, graph)
    config["model"] = _model(folder, graph, steps_per_epoch)
    path.write_text(to_yaml(config), encoding="utf-8")


def _evaluation(folder: Path, graph: PreparedGraph) -> dict[str, Any]:
    filtered = graph.num_edges["train"] <= _MAX_KNOWN
    many = graph.num_edges["validation"] > _MAX_EVALUATED
    return {
        "validation_data": {
            "data_root": str(folder / "validation"),
            "global_batch_size": 240,
            "global_negatives": 100,
            **({"limit": _MAX_EVALUATED} if many else {}),
        },
        "metrics": {
            "candidates": _MAX_CANDIDATES if max(graph.tables.values()) > _MAX_CANDIDATES else None,
            "filtered": filtered,
            "per_relation": len(graph.relations) <= _MAX_LISTED_RELATIONS,
            "known_edges": [str(folder / "test")] if filtered and "test" in graph.num_edges else [],
        },
    }


def _model(folder: Path, graph: PreparedGraph, steps_per_epoch: int) -> dict[str, Any]:
    schedule = {
        "learning_rate": _RATE,
        "final_learning_rate": _FINAL_RATE,
        "num_ramp_steps": max(1, int(_RAMP * _NUM_EPOCHS * steps_per_epoch)),
        "final_num_steps": _NUM_EPOCHS * steps_per_epoch,
    }
    optimizer = {"adagrad": {}, "learning_rate": {"linear_ramp_to_cosine": schedule}}
    tables = [
        {
            "name": name,
            "num_embeddings": rows,
            "embedding_dim": _DIMENSION,
            "vocab": str(vocabulary_path(folder, name)),
            "optimizer": optimizer,
        }
        for name, rows in graph.tables.items()
    ]
    return {
        "embeddings": {"tables": tables},
        "relations": _relations(folder, graph.relations),
        "loss": "softmax",
        "regularization": {"n3": _N3},
        "translation_optimizer": optimizer,
    }


def _relations(folder: Path, relations: Sequence[PreparedRelation]) -> Any:
    sides = {(relation.lhs, relation.rhs) for relation in relations}
    if len(relations) <= _MAX_LISTED_RELATIONS or len(sides) > 1:
        return [relation._asdict() for relation in relations]
    ((lhs, rhs),) = sides
    return {"names_path": str(relation_names_path(folder)), "lhs": lhs, "rhs": rhs}
