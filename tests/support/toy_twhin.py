"""A small model with two tables, batches for it, and its scores and losses in closed form, one edge at a time."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

from common.modules.embedding.config import EmbeddingBagConfig
from common.optimizers.config import OptimizerConfig, SgdConfig
from projects.twhin.data.batch import EdgeBatch
from projects.twhin.data.config import Operator, Relation
from projects.twhin.data.relations import Relations, Side
from projects.twhin.model.config import TwhinEmbeddingsConfig, TwhinModelConfig
from projects.twhin.model.losses import Loss
from projects.twhin.model.relations import build_relations
from projects.twhin.model.scorer import EdgeScorer

SGD = OptimizerConfig(sgd=SgdConfig(lr=0.1))
LOSSES: tuple[Loss, ...] = ("logistic", "softmax", "margin")
OPERATORS: tuple[Operator, ...] = ("identity", "translation", "diagonal", "linear", "complex_diagonal")
Array = NDArray[np.float64]


def relation(name: str, lhs: str, rhs: str, operator: Operator) -> Relation:
    return Relation(name=name, lhs=lhs, rhs=rhs, operator=operator)


MIXED = (
    relation("follow", "user", "user", "translation"),
    relation("fav", "user", "tweet", "diagonal"),
    relation("reply", "user", "tweet", "diagonal"),
    relation("by", "tweet", "user", "complex_diagonal"),
    relation("same", "tweet", "tweet", "linear"),
    relation("near", "tweet", "tweet", "linear"),
    relation("block", "user", "user", "identity"),
    relation("mute", "user", "user", "translation"),
)
"""All operators, tables shared by relations that are not adjacent, and segments of several relations."""


def model_config(relations: Sequence[Relation] = MIXED, dim: int = 6, **fields: Any) -> TwhinModelConfig:
    """Return the configuration of a model with 11 users and 7 tweets."""
    used = {table for each in relations for table in (each.lhs, each.rhs)}
    tables = [
        EmbeddingBagConfig(name=name, num_embeddings=rows, embedding_dim=dim, optimizer=SGD)
        for name, rows in {"user": 11, "tweet": 7}.items()
        if name in used
    ]
    return TwhinModelConfig(
        embeddings=TwhinEmbeddingsConfig(tables=tables),
        relations=list(relations),
        translation_optimizer=SGD,
        **fields,
    )


def edge_batch(relations: Relations, edges: Sequence[tuple[int, int, int]], weights: Sequence[float] = ()) -> EdgeBatch:
    """Return a batch of edges (lhs, rel, rhs), sorted as a reader sorts them."""
    order = sorted(range(len(edges)), key=lambda edge: relations.segment_of[edges[edge][1]])
    lhs, rel, rhs = torch.tensor([edges[edge] for edge in order], dtype=torch.int64).reshape(-1, 3).T.contiguous()
    segments = [int(relations.segment_of[edge[1]]) for edge in edges]
    return EdgeBatch(
        lhs,
        rel,
        rhs,
        torch.tensor([weights[edge] if weights else 1.0 for edge in order]),
        tuple(segments.count(segment) for segment in range(len(relations.segments))),
    )


def random_edges(config: TwhinModelConfig, count: int, seed: int = 0) -> list[tuple[int, int, int]]:
    """Return random edges of all relations except the last, which has none."""
    random = np.random.default_rng(seed)
    tables = config.tables
    edges = []
    for _ in range(count):
        rel = int(random.integers(max(len(config.relation_list) - 1, 1)))
        relation = config.relation_list[rel]
        lhs, rhs = (int(random.integers(tables[table].num_embeddings)) for table in (relation.lhs, relation.rhs))
        edges.append((lhs, rel, rhs))
    return edges


def scorer_of(config: TwhinModelConfig, seed: int = 0) -> EdgeScorer:
    """Return a scorer in float64 whose operators are not the identity."""
    scorer = EdgeScorer(config, build_relations(config)).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in scorer.parameters():
            parameter.normal_(generator=generator)
    return scorer


def table_rows(config: TwhinModelConfig, seed: int = 1) -> dict[str, torch.Tensor]:
    """Return random rows of each table, float64, that require gradients."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(
            table.num_embeddings, table.embedding_dim, generator=generator, dtype=torch.float64
        ).requires_grad_()
        for name, table in config.tables.items()
    }


class NoHostSync(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations that would make the host wait for a GPU if the tensors were on one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in {"_local_scalar_dense", "nonzero", "masked_select", "repeat_interleave", "unique"}, name
        if name == "index":
            assert all(index is None or index.dtype != torch.bool for index in args[1]), name
        return func(*args, **(kwargs or {}))


# --- Closed forms. ---


def parameter_of(scorer: EdgeScorer, config: TwhinModelConfig, side: str, rel: int) -> Array | None:
    """Return the relation's parameter of the operator that is applied to `side`."""
    dims = [config.tables[each.lhs].embedding_dim for each in config.relation_list]
    operator = config.relation_list[rel].operator
    if operator == "identity":
        return None
    owners = [i for i, each in enumerate(config.relation_list) if (each.operator, dims[i]) == (operator, dims[rel])]
    weight = scorer.get_parameter(f"operators.{side}.{operator}_{dims[rel]}.weight")
    array: Array = weight.detach().numpy()[owners.index(rel)]
    return array


def transformed(operator: Operator, x: Array, parameter: Array | None) -> Array:
    if parameter is None:
        return x
    match operator:
        case "translation":
            return x + parameter
        case "diagonal":
            return x * parameter
        case "linear":
            return np.array([sum(w * v for w, v in zip(row, x, strict=True)) for row in parameter])
        case _:
            half = len(x) // 2
            product = (x[:half] + 1j * x[half:]) * (parameter[:half] + 1j * parameter[half:])
            return np.concatenate([product.real, product.imag])


def compared(comparator: Literal["dot", "cos", "l2"], a: Array, b: Array) -> float:
    match comparator:
        case "dot":
            return float(np.dot(a, b))
        case "cos":
            return float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))
        case "l2":
            return -float(np.linalg.norm(a - b))


def score(
    config: TwhinModelConfig,
    scorer: EdgeScorer,
    tables: Mapping[str, torch.Tensor],
    edge: tuple[int, int, int],
    ranked: Side,
) -> float:
    """Return the score of an edge (lhs, rel, rhs) when its entity on the side `ranked` is ranked."""
    lhs_id, rel, rhs_id = edge
    relation = config.relation_list[rel]
    lhs, rhs = tables[relation.lhs][lhs_id].detach().numpy(), tables[relation.rhs][rhs_id].detach().numpy()
    side = {"both": {"lhs": "rhs", "rhs": "lhs"}[ranked]}.get(config.operator_sides, config.operator_sides)
    parameter = parameter_of(scorer, config, side, rel)
    if side == "lhs":
        return compared(config.comparator, transformed(relation.operator, lhs, parameter), rhs)
    return compared(config.comparator, lhs, transformed(relation.operator, rhs, parameter))


def loss_of_edge(loss: Loss, margin: float, positive: float, negatives: Sequence[float]) -> float:
    """Return the loss of an edge by the formula in the papers, which overflows for large scores."""
    if loss == "softmax":
        return -math.log(math.exp(positive) / (math.exp(positive) + sum(math.exp(s) for s in negatives)))
    share = 1 / max(len(negatives), 1)
    if loss == "margin":
        return share * sum(max(0.0, margin - positive + s) for s in negatives)
    return math.log1p(math.exp(-positive)) + share * sum(math.log1p(math.exp(s)) for s in negatives)
