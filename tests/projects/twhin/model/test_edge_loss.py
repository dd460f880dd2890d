from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch

from projects.twhin.data.batch import EdgeBatch
from projects.twhin.data.relations import SIDES
from projects.twhin.model import fused_loss
from projects.twhin.model.config import RegularizationConfig, TwhinModelConfig
from projects.twhin.model.edge_loss import edge_loss, penalty
from projects.twhin.model.losses import Loss
from projects.twhin.model.negatives import Negatives, draw_negatives
from projects.twhin.model.relations import build_relations
from projects.twhin.model.scorer import EdgeScorer
from tests.support.toy_twhin import (
    LOSSES,
    NoHostSync,
    edge_batch,
    loss_of_edge,
    model_config,
    random_edges,
    relation,
    score,
    scorer_of,
    table_rows,
)

OperatorSides = Literal["both", "lhs", "rhs"]
Comparator = Literal["dot", "cos", "l2"]
OPERATOR_SIDES: tuple[OperatorSides, ...] = ("both", "lhs", "rhs")
COMPARATORS: tuple[Comparator, ...] = ("dot", "cos", "l2")


def lookup_in(tables: Mapping[str, torch.Tensor]) -> Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda ids: {table: tables[table][rows] for table, rows in ids.items()}


def weighted_edges(config: TwhinModelConfig, count: int) -> EdgeBatch:
    weights = np.random.default_rng(1).choice([0.0, 0.5, 2.0], count).tolist()
    return edge_batch(build_relations(config), random_edges(config, count), weights)


def negatives_of(
    config: TwhinModelConfig, batch: EdgeBatch, global_negatives: int = 6, in_batch_negatives: int = 4
) -> Negatives:
    torch.manual_seed(0)
    return draw_negatives(batch, build_relations(config), global_negatives, in_batch_negatives)


def truth(
    config: TwhinModelConfig,
    scorer: EdgeScorer,
    tables: Mapping[str, torch.Tensor],
    batch: EdgeBatch,
    negatives: Negatives,
) -> float:
    """Return the loss by a loop over edges, sides and candidates."""
    edges = list(zip(batch.lhs.tolist(), batch.rel.tolist(), batch.rhs.tolist(), strict=True))
    total = 0.0
    for side in SIDES:
        column = 0 if side == "lhs" else 2
        for edge, weight in zip(edges, batch.weights.tolist(), strict=True):
            table = getattr(config.relation_list[edge[1]], side)
            sharing = [other for other in edges if getattr(config.relation_list[other[1]], side) == table]
            candidates = negatives.uniform[side, table].tolist()
            candidates += [sharing[position][column] for position in negatives.in_batch[side, table].tolist()]
            others = [entity for entity in candidates if entity != edge[column]]
            corrupted = [(*edge[:column], entity, *edge[column + 1 :]) for entity in others]
            scores = [score(config, scorer, tables, other, side) for other in corrupted]
            positive = score(config, scorer, tables, edge, side)
            total += weight * loss_of_edge(config.loss, config.margin, positive, scores)
            row = tables[table][edge[column]].tolist()
            if config.regularization != RegularizationConfig():
                total += weight * row_penalty(config.regularization, config.relation_list[edge[1]].operator, row)
    if config.regularization.operators:
        relations = [relation for _, relation, _ in edges]
        for name, weight in scorer.named_parameters():
            operator = name.split(".")[2].rpartition("_")[0]
            owners = [index for index, relation in enumerate(config.relation_list) if relation.operator == operator]
            for owner, row in zip(owners, weight.flatten(1).tolist(), strict=True):
                times = sum(w for w, r in zip(batch.weights.tolist(), relations, strict=True) if r == owner)
                directions = 2 if config.operator_sides == "both" else 1
                total += times / directions * row_penalty(config.regularization, operator, row)
    return total / max(len(edges), 1)


def row_penalty(config: RegularizationConfig, operator: str, row: list[float]) -> float:
    if config.l2 is not None:
        return config.l2 * sum(x**2 for x in row)
    assert config.n3 is not None
    if operator == "complex_diagonal":
        half = len(row) // 2
        row = [abs(complex(*parts)) for parts in zip(row[:half], row[half:], strict=True)]
    return config.n3 * sum(abs(x) ** 3 for x in row)


def check(config: TwhinModelConfig, batch: EdgeBatch, **negatives: int) -> None:
    scorer, tables = scorer_of(config), table_rows(config)
    drawn = negatives_of(config, batch, **negatives)
    found = edge_loss(scorer, config, batch, drawn, lookup_in(tables))
    assert found.shape == ()
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.item(), truth(config, scorer, tables, batch, drawn), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("comparator", COMPARATORS)
@pytest.mark.parametrize("operator_sides", OPERATOR_SIDES)
def test_equals_the_closed_form(loss: Loss, comparator: Comparator, operator_sides: OperatorSides):
    """The example has all operators, candidates that are edges' own entities, and weights of 0."""
    config = model_config(loss=loss, comparator=comparator, operator_sides=operator_sides, margin=0.4)
    check(config, weighted_edges(config, 17))


@pytest.mark.parametrize("comparator", COMPARATORS)
@pytest.mark.parametrize("operator_sides", OPERATOR_SIDES)
@pytest.mark.parametrize(("edges", "uniform", "in_batch"), [(0, 3, 3), (5, 0, 0), (5, 0, 3), (1, 3, 0), (0, 0, 0)])
def test_few_or_no_edges_and_candidates(
    comparator: Comparator, operator_sides: OperatorSides, edges: int, uniform: int, in_batch: int
):
    config = model_config(comparator=comparator, operator_sides=operator_sides)
    check(config, weighted_edges(config, edges), global_negatives=uniform, in_batch_negatives=in_batch)


@pytest.mark.parametrize("operator_sides", ["both", "rhs"])
@pytest.mark.parametrize("operators", [False, True])
@pytest.mark.parametrize("penalty", [{"n3": 0.3}, {"l2": 0.2}])
def test_regularization_equals_the_closed_form(
    penalty: dict[str, float], operators: bool, operator_sides: OperatorSides
):
    regularization = RegularizationConfig.model_validate({**penalty, "operators": operators})
    config = model_config(regularization=regularization, operator_sides=operator_sides)
    check(config, weighted_edges(config, 17))


def test_the_gradient_of_n3_is_0_at_0():
    for operator in ("translation", "complex_diagonal"):
        zeros = torch.zeros(2, 4, requires_grad=True)
        total = penalty(RegularizationConfig(n3=1.0), operator, zeros, torch.ones(2))
        assert not torch.autograd.grad(total, zeros)[0].any()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("comparator", COMPARATORS)
@pytest.mark.parametrize("operator_sides", OPERATOR_SIDES)
def test_gradients_equal_finite_differences(loss: Loss, comparator: Comparator, operator_sides: OperatorSides):
    config = model_config(
        dim=2,
        loss=loss,
        comparator=comparator,
        operator_sides=operator_sides,
        regularization=RegularizationConfig(n3=0.1),
    )
    scorer, tables = scorer_of(config), table_rows(config)
    batch = weighted_edges(config, 12)
    drawn = negatives_of(config, batch)
    names = [name for name, _ in scorer.named_parameters()]

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scorer = scorer

        def forward(self, rows: Mapping[str, torch.Tensor]) -> torch.Tensor:
            return edge_loss(self.scorer, config, batch, drawn, lookup_in(rows))

    def total(*leaves: torch.Tensor) -> Any:
        rows = dict(zip(tables, leaves, strict=False))
        parameters = {f"scorer.{name}": leaf for name, leaf in zip(names, leaves[len(tables) :], strict=True)}
        return torch.func.functional_call(Loss(), parameters, (rows,))

    assert torch.autograd.gradcheck(total, (*tables.values(), *scorer.parameters()), fast_mode=True)


@pytest.mark.parametrize("comparator", COMPARATORS)
@pytest.mark.parametrize("operator_sides", OPERATOR_SIDES)
@pytest.mark.parametrize("edges", [[], [(0, 0, 1)]])
def test_every_parameter_and_table_gets_a_gradient(
    comparator: Comparator, operator_sides: OperatorSides, edges: Sequence[tuple[int, int, int]]
):
    """Most relations have no edge in the batch, but other ranks wait for their gradients."""
    config = model_config(comparator=comparator, operator_sides=operator_sides)
    scorer, tables = scorer_of(config), table_rows(config)
    batch = edge_batch(build_relations(config), edges)
    drawn = negatives_of(config, batch)
    torch.autograd.backward(edge_loss(scorer, config, batch, drawn, lookup_in(tables)))
    generator, step = torch.Generator().manual_seed(0), 1e-5
    for name, leaf in [*scorer.named_parameters(), *tables.items()]:
        assert leaf.grad is not None, name
        if not edges:
            assert not leaf.grad.any()
        direction = torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)
        losses = []
        for shift in (step, -2 * step):
            with torch.no_grad():
                leaf += shift * direction
            losses.append(truth(config, scorer, tables, batch, drawn))
        with torch.no_grad():
            leaf += step * direction
        slope = (losses[0] - losses[1]) / (2 * step)
        assert (leaf.grad * direction).sum().item() == pytest.approx(slope, rel=1e-5, abs=1e-7), name


def test_each_table_is_looked_up_once():
    config = model_config()
    tables = table_rows(config)
    seen = []

    def lookup(ids: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append({table: len(rows) for table, rows in ids.items()})
        return lookup_in(tables)(ids)

    batch = edge_batch(build_relations(config), [(0, 0, 1), (0, 1, 1)])
    edge_loss(scorer_of(config), config, batch, negatives_of(config, batch), lookup)
    assert seen == [{"user": 3 + 2 * 6, "tweet": 1 + 2 * 6}]


@pytest.mark.parametrize("comparator", COMPARATORS)
@pytest.mark.parametrize("operator_sides", OPERATOR_SIDES)
def test_no_operation_waits_for_the_device(
    comparator: Comparator, operator_sides: OperatorSides, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fused_loss, "_is_asynchronous", lambda _: True)
    config = model_config(comparator=comparator, operator_sides=operator_sides)
    scorer, tables = scorer_of(config), table_rows(config)
    batch = weighted_edges(config, 17)
    with NoHostSync():  # type: ignore[no-untyped-call]
        drawn = negatives_of(config, batch)
        total = edge_loss(scorer, config, batch, drawn, lookup_in(tables))
        torch.autograd.backward(total)
    np.testing.assert_allclose(total.item(), truth(config, scorer, tables, batch, drawn), rtol=1e-6)


def test_halves_of_a_batch_average_to_the_whole():
    """Two ranks with the same negatives have the loss of one rank."""
    config = model_config(regularization=RegularizationConfig(l2=0.1))
    scorer, tables = scorer_of(config), table_rows(config)
    relations = build_relations(config)
    edges, weights = random_edges(config, 16), np.linspace(0, 1, 16).tolist()
    batches = [edge_batch(relations, edges[part], weights[part]) for part in (slice(16), slice(8), slice(8, 16))]
    drawn = negatives_of(config, batches[0], in_batch_negatives=0)
    whole, *halves = (edge_loss(scorer, config, batch, drawn, lookup_in(tables)).item() for batch in batches)
    np.testing.assert_allclose(np.mean(halves), whole, rtol=1e-12)


@pytest.mark.parametrize("comparator", COMPARATORS)
def test_autocast(comparator: Comparator):
    """Products use bfloat16, but the loss and all gradients are float32."""
    config = model_config(comparator=comparator, loss="softmax")
    batch = weighted_edges(config, 40)
    drawn = negatives_of(config, batch)
    results = []
    for enabled in (False, True):
        scorer = scorer_of(config).float()
        tables = {name: rows.detach().float().requires_grad_() for name, rows in table_rows(config).items()}
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            total = edge_loss(scorer, config, batch, drawn, lookup_in(tables))
        leaves = [*tables.values(), *scorer.parameters()]
        results.append([total.detach(), *torch.autograd.grad(total, leaves)])
    for exact, rounded in zip(*results, strict=True):
        assert rounded.dtype == torch.float32
        assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_relations_with_one_operator_may_use_tables_of_different_dimensions():
    config = model_config(
        [relation("follow", "user", "user", "translation"), relation("same", "tweet", "tweet", "translation")]
    )
    wider = config.embeddings.tables[0].model_copy(update={"embedding_dim": 4})
    embeddings = config.embeddings.model_copy(update={"tables": [wider, config.embeddings.tables[1]]})
    config = config.model_copy(update={"embeddings": embeddings})
    scorer, tables = scorer_of(config), table_rows(config)
    assert {name: tuple(x.shape) for name, x in scorer.named_parameters() if ".lhs." in name} == {
        "operators.lhs.translation_4.weight": (1, 4),
        "operators.lhs.translation_6.weight": (1, 6),
    }
    batch = edge_batch(build_relations(config), [(0, 0, 1), (3, 1, 4), (5, 1, 3)])
    drawn = negatives_of(config, batch)
    total = edge_loss(scorer, config, batch, drawn, lookup_in(tables))
    np.testing.assert_allclose(total.item(), truth(config, scorer, tables, batch, drawn), rtol=1e-6)
