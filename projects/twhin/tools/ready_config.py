"""A configuration that trains on a prepared graph at once."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from projects.twhin.tools.graph_files import names_path, vocabulary_path


class RelationOf(NamedTuple):
    """A relation and the tables of its two sides."""

    name: str
    lhs: str
    rhs: str


class Graph(NamedTuple):
    """What was prepared.

    Attributes:
      tables: rows of each.
      relations: in the order of their ids.
      num_edges: by split.
    """

    tables: Mapping[str, int]
    relations: Sequence[RelationOf]
    num_edges: Mapping[str, int]


_DIMENSION = 100
_NUM_EPOCHS = 10
# A multiple of 24, for 1, 2, 3, 4, 6, 8, 12 and 24 processes, unless there are fewer edges.
_MAX_BATCH, _BATCH_UNIT, _STEPS_PER_EPOCH = 1920, 24, 100
_LOGS_PER_EPOCH = 10
# Without a penalty, and at a rate that stays, small graphs are learned by heart: evaluations get worse from the second
# or third epoch on.
_N3, _RATE, _FINAL_RATE, _RAMP = 0.1, 0.1, 0.002, 0.01
# A table of more is too long to be read.
_MAX_TOLD_RELATIONS = 20
# What an evaluation can do within minutes.
_MAX_CANDIDATES, _MAX_EVALUATED, _MAX_KNOWN = 100_000, 20_000, 20_000_000


def ready_config(folder: Path, graph: Graph) -> str:
    """YAML of a TwhinConfig for the graph in `folder`; what it says about training is only a beginning."""
    num_edges = graph.num_edges["train"]
    batch = min(_MAX_BATCH, max(_BATCH_UNIT, num_edges // _STEPS_PER_EPOCH // _BATCH_UNIT * _BATCH_UNIT), num_edges)
    steps = num_edges // batch
    rate = {
        "learning_rate": _RATE,
        "final_learning_rate": _FINAL_RATE,
        "num_ramp_steps": max(1, int(_RAMP * _NUM_EPOCHS * steps)),
        "final_num_steps": _NUM_EPOCHS * steps,
    }
    optimizer = {"adagrad": {}, "learning_rate": {"linear_ramp_to_cosine": rate}}
    config: dict[str, Any] = {
        "training": {
            "save_dir": str(Path("runs") / folder.name),
            "num_train_steps": _NUM_EPOCHS * steps,
            "num_epochs": _NUM_EPOCHS,
            "checkpoint_every_n": steps,
            "checkpoint_max_to_keep": 2,
            "train_log_every_n": max(1, steps // _LOGS_PER_EPOCH),
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
        filtered = num_edges <= _MAX_KNOWN
        many = graph.num_edges["validation"] > _MAX_EVALUATED
        config["validation_data"] = {
            "data_root": str(folder / "validation"),
            "global_batch_size": 240,
            "global_negatives": 100,
            **({"limit": _MAX_EVALUATED} if many else {}),
        }
        config["metrics"] = {
            "candidates": _MAX_CANDIDATES if max(graph.tables.values()) > _MAX_CANDIDATES else None,
            "filtered": filtered,
            "per_relation": len(graph.relations) <= _MAX_TOLD_RELATIONS,
            "known_edges": [str(folder / "test")] if filtered and "test" in graph.num_edges else [],
        }
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
    config["model"] = {
        "embeddings": {"tables": tables},
        "relations": _relations(folder, graph.relations),
        "loss": "softmax",
        "regularization": {"n3": _N3},
        "translation_optimizer": optimizer,
    }
    return yaml.safe_dump(_as_it_is(config), sort_keys=False, allow_unicode=True, width=120)


def _relations(folder: Path, relations: Sequence[RelationOf]) -> Any:
    sides = {(relation.lhs, relation.rhs) for relation in relations}
    if len(relations) <= _MAX_TOLD_RELATIONS or len(sides) > 1:
        return [relation._asdict() for relation in relations]
    ((lhs, rhs),) = sides
    return {"names_path": str(names_path(folder)), "lhs": lhs, "rhs": rhs}


def _as_it_is(value: Any) -> Any:
    """With $ written so that it stands for itself."""
    if isinstance(value, dict):
        return {key: _as_it_is(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_it_is(item) for item in value]
    return value.replace("$", "$$") if isinstance(value, str) else value
