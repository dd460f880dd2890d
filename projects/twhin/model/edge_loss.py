"""Computes the loss of a batch of edges against their negatives, with a single lookup of embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from common.modules.embedding.tables import Lookup
from projects.twhin.data.batch import EdgeBatch
from projects.twhin.data.config import Operator
from projects.twhin.data.relations import SIDES, Relations, Side
from projects.twhin.model.comparators import DotProduct
from projects.twhin.model.config import RegularizationConfig, TwhinModelConfig
from projects.twhin.model.fused_loss import fused_loss
from projects.twhin.model.losses import edge_losses
from projects.twhin.model.negatives import Negatives
from projects.twhin.model.operators import concat
from projects.twhin.model.scorer import EdgeScorer


def edge_loss(
    scorer: EdgeScorer, config: TwhinModelConfig, batch: EdgeBatch, negatives: Negatives, lookup: Lookup
) -> torch.Tensor:
    """Return the weighted sum of the edges' losses, divided by the number of edges.

    The loss of an edge is the loss of its right entity plus the loss of its left entity (losses.py) plus the penalty on
    its embeddings. The negatives of an edge on a side are the candidates for that side and table, except its own
    entity. All parameters of the scorer get a gradient, regardless of the edges in the batch.

    Args:
      scorer: scorer of the model.
      config: configuration of the model.
      batch: edges.
      negatives: negatives drawn for this batch.
      lookup: looks up rows of tables. It is called exactly once, with all tables, because it is collective.

    Returns:
      The loss: a scalar, float32 (float64 if rows are float64).
    """
    relations = scorer.relations
    sizes = list(batch.segment_sizes)
    rel = torch.split(batch.rel, sizes)
    weights = torch.split(batch.weights / max(batch.batch_size, 1), sizes)
    entities = _look_up(relations, batch, negatives, lookup)
    rows = {side: _rows_by_segment(entities[side], sizes) for side in SIDES}
    terms = []
    for side, other in zip(SIDES, SIDES[::-1], strict=True):
        queries = scorer.queries(side, relations.segments, rows[other], rel)
        for edges in entities[side]:
            for part in _split_by_candidates(scorer, side, edges, sizes):
                part_queries, part_weights = (concat([x[p] for p in part.segments]) for x in (queries, weights))
                terms.append(_loss(scorer, config, part_queries, part, part_weights))
    if (config.regularization.n3 or config.regularization.l2) is not None:
        for segment, *embeddings, segment_weights in zip(
            relations.segments, rows["lhs"], rows["rhs"], weights, strict=True
        ):
            terms.extend(penalty(config.regularization, segment.operator, x, segment_weights) for x in embeddings)
        if config.regularization.operators:
            terms.extend(_operator_penalties(scorer, config.regularization, batch))
    return torch.stack(terms).sum()


def _operator_penalties(scorer: EdgeScorer, config: RegularizationConfig, batch: EdgeBatch) -> list[torch.Tensor]:
    """Return the penalties on the edges' operators, averaged over directions, one term per parameter of the scorer."""
    weights = batch.weights / max(batch.batch_size, 1)
    weight_by_relation = weights.new_zeros(len(scorer.relations.names)).index_add_(0, batch.rel, weights)
    terms = []
    for operator in scorer.relation_operators():
        row_weights = weight_by_relation[operator.relations] / scorer.num_directions
        terms.append(penalty(config, operator.operator, operator.weight.flatten(1), row_weights))
    return terms


def penalty(
    config: RegularizationConfig, operator: Operator, embeddings: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Return the weighted sum of the rows' penalties.

    The penalty of a row x is n3 * sum |x|^3 (Lacroix, Usunier and Obozinski 2018, arXiv 1806.07297) or l2 * sum x^2.
    For n3 with complex_diagonal, |x| are the absolute values of complex numbers.

    Args:
      config: weight of n3 or l2.
      operator: operator of the edges' relations.
      embeddings: embeddings before the operator is applied: [n, dim].
      weights: weights of the rows: [n].
    """
    if config.l2 is not None:
        return config.l2 * (weights * embeddings.square().sum(1)).sum()
    assert config.n3 is not None
    if operator == "complex_diagonal":
        real, imaginary = embeddings.chunk(2, dim=1)
        # Unlike the gradient of the absolute value, the gradient of this expression is finite at 0.
        cubes = (real.square() + imaginary.square()).pow(1.5)
    else:
        cubes = embeddings.abs().pow(3)
    return config.n3 * (weights * cubes.sum(1)).sum()


@dataclass(frozen=True)
class _Entities:
    """The entities of edges on one side and in one table, with the candidates that they share.

    Attributes:
      segments: positions of the edges' segments.
      ids: the edges' entities: [n], int64.
      rows: embeddings of these entities: [n, dim].
      candidate_ids: candidates: [m], int64.
      candidates: embeddings of the candidates: [m, dim].
    """

    segments: Sequence[int]
    ids: torch.Tensor
    rows: torch.Tensor
    candidate_ids: torch.Tensor
    candidates: torch.Tensor


def _look_up(
    relations: Relations, batch: EdgeBatch, negatives: Negatives, lookup: Lookup
) -> dict[Side, list[_Entities]]:
    ids: dict[tuple[Side, str], torch.Tensor] = {}
    wanted: dict[str, list[torch.Tensor]] = {}
    for side in SIDES:
        segment_ids = torch.split(batch.lhs if side == "lhs" else batch.rhs, list(batch.segment_sizes))
        for table, segments in relations.segments_of(side).items():
            ids[side, table] = concat([segment_ids[position] for position in segments])
            wanted.setdefault(table, []).extend([ids[side, table], negatives.uniform[side, table]])
    rows = lookup({table: torch.cat(parts) for table, parts in wanted.items()})
    pieces = {table: iter(torch.split(rows[table], [len(part) for part in wanted[table]])) for table in wanted}
    entities: dict[Side, list[_Entities]] = {side: [] for side in SIDES}
    for (side, table), own_ids in ids.items():
        own, uniform = next(pieces[table]), next(pieces[table])
        in_batch = negatives.in_batch[side, table]
        entities[side].append(
            _Entities(
                relations.segments_of(side)[table],
                own_ids,
                own,
                torch.cat([negatives.uniform[side, table], own_ids.index_select(0, in_batch)]),
                torch.cat([uniform, own.index_select(0, in_batch)]),
            )
        )
    return entities


def _rows_by_segment(entities: Sequence[_Entities], sizes: Sequence[int]) -> list[torch.Tensor]:
    """Return the rows of each segment, in the segments' order."""
    rows: dict[int, torch.Tensor] = {}
    for edges in entities:
        parts = torch.split(edges.rows, [sizes[position] for position in edges.segments])
        rows.update(zip(edges.segments, parts, strict=True))
    return [rows[position] for position in range(len(sizes))]


def _split_by_candidates(scorer: EdgeScorer, side: Side, edges: _Entities, sizes: Sequence[int]) -> Sequence[_Entities]:
    """Split edges into parts whose candidates have the same vectors.

    There is one part for all edges, or one per segment if the segment's operator transforms candidates.
    """
    if not scorer.transforms_candidates(side):
        return [edges]
    segment_sizes = [sizes[position] for position in edges.segments]
    parts = []
    for position, ids, rows in zip(
        edges.segments, torch.split(edges.ids, segment_sizes), torch.split(edges.rows, segment_sizes), strict=True
    ):
        # A segment without edges needs no candidates, but its operator still needs a gradient.
        count = len(edges.candidates) if len(ids) else 0
        segment = scorer.relations.segments[position]
        transformed = scorer.candidates(side, segment, torch.cat([rows, edges.candidates[:count]]))
        own, candidates = torch.split(transformed, [len(ids), count])
        parts.append(_Entities([position], ids, own, edges.candidate_ids[:count], candidates))
    return parts


def _loss(
    scorer: EdgeScorer, config: TwhinModelConfig, queries: torch.Tensor, edges: _Entities, weights: torch.Tensor
) -> torch.Tensor:
    """Return the weighted sum of the edges' losses on one side."""
    comparator = scorer.comparator
    if isinstance(comparator, DotProduct):
        queries, own, candidates = (comparator.prepare(x) for x in (queries, edges.rows, edges.candidates))
        return fused_loss(config.loss, config.margin, queries, own, candidates, edges.ids, edges.candidate_ids, weights)
    positives = comparator.pairs(queries, edges.rows)
    scores = comparator.all_pairs(queries, edges.candidates)
    masked = edges.ids[:, None] == edges.candidate_ids
    return (edge_losses(config.loss, config.margin, positives, scores, masked) * weights).sum()
