"""The loss of a batch of edges against their negatives: looks embeddings up once, scores, adds up."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from projects.twhin.data.batch import EdgeBatch
from projects.twhin.data.relations import SIDES, Operator, Relations, Side
from projects.twhin.model.comparators import DotProduct
from projects.twhin.model.config import RegularizationConfig, TwhinModelConfig
from projects.twhin.model.fused_loss import fused_loss
from projects.twhin.model.losses import edge_losses
from projects.twhin.model.negatives import Negatives
from projects.twhin.model.operators import concat
from projects.twhin.model.scorer import EdgeScorer

Lookup = Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]]
"""By table: ids [n], int64, to rows [n, dim]. Collective: every rank calls it equally often, with all tables."""


def edge_loss(
    scorer: EdgeScorer, config: TwhinModelConfig, batch: EdgeBatch, negatives: Negatives, lookup: Lookup
) -> torch.Tensor:
    """Adds up the edges' weight * (loss of the right entity + loss of the left one + penalty), divided by their number.

    losses.py has the losses, penalty() the last term. An edge's negatives on a side are the candidates for that side
    and table that aren't its own entity there. All parameters of the scorer get a gradient, whatever edges there are.

    Args:
      negatives: of this batch.
      lookup: called once.

    Returns:
      a scalar, float32 (float64 for rows of float64).
    """
    relations = scorer.relations
    sizes = list(batch.segment_sizes)
    rel = torch.split(batch.rel, sizes)
    weights = torch.split(batch.weights / max(batch.batch_size, 1), sizes)
    entities = _look_up(relations, batch, negatives, lookup)
    rows = {side: _by_segment(entities[side], sizes) for side in SIDES}
    terms = []
    for side, other in zip(SIDES, SIDES[::-1], strict=True):
        queries = scorer.queries(side, relations.segments, rows[other], rel)
        for edges in entities[side]:
            for part in _compared_together(scorer, side, edges, sizes):
                its_queries, its_weights = (concat([of[p] for p in part.segments]) for of in (queries, weights))
                terms.append(_loss(scorer, config, its_queries, part, its_weights))
    if (config.regularization.n3 or config.regularization.l2) is not None:
        for segment, *embeddings, its_weights in zip(
            relations.segments, rows["lhs"], rows["rhs"], weights, strict=True
        ):
            terms.extend(penalty(config.regularization, segment.operator, x, its_weights) for x in embeddings)
        if config.regularization.operators:
            terms.extend(_operator_penalties(scorer, config.regularization, batch))
    return torch.stack(terms).sum()


def _operator_penalties(scorer: EdgeScorer, config: RegularizationConfig, batch: EdgeBatch) -> list[torch.Tensor]:
    """penalty() of each edge's operators, a mean over its directions; a term for each of the scorer's parameters."""
    weights = batch.weights / max(batch.batch_size, 1)
    by_relation = weights.new_zeros(len(scorer.relations.names)).index_add_(0, batch.rel, weights)
    terms = []
    for operator in scorer.parametrised():
        its_weights = by_relation[operator.relations] / scorer.num_directions
        terms.append(penalty(config, operator.operator, operator.weight.flatten(1), its_weights))
    return terms


def penalty(
    config: RegularizationConfig, operator: Operator, embeddings: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """n3: its weight * sum |x|^3 (Lacroix, Usunier and Obozinski 2018, arXiv 1806.07297), of the absolute
    values of complex numbers where the operator is complex_diagonal. l2: its weight * sum x^2.

    Args:
      embeddings: [n, dim], before the operator.
      weights: [n].

    Returns:
      the weighted sum over embeddings, a scalar.
    """
    if config.l2 is not None:
        return config.l2 * (weights * embeddings.square().sum(1)).sum()
    assert config.n3 is not None
    if operator == "complex_diagonal":
        real, imaginary = embeddings.chunk(2, dim=1)
        cubes = (real.square() + imaginary.square()).pow(1.5)  # its gradient is finite at 0, the modulus' is not
    else:
        cubes = embeddings.abs().pow(3)
    return config.n3 * (weights * cubes.sum(1)).sum()


@dataclass(frozen=True)
class _Entities:
    """Of edges, on one side, of one table, with what they are compared with.

    Attributes:
      segments: positions of the edges' segments.
      ids: [n]; rows: [n, dim].
      candidate_ids: [m]; candidates: [m, dim].
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
        of_segment = torch.split(batch.lhs if side == "lhs" else batch.rhs, list(batch.segment_sizes))
        for table, segments in relations.segments_of(side).items():
            ids[side, table] = concat([of_segment[position] for position in segments])
            wanted.setdefault(table, []).extend([ids[side, table], negatives.uniform[side, table]])
    found = lookup({table: torch.cat(its_ids) for table, its_ids in wanted.items()})
    pieces = {table: iter(torch.split(found[table], [len(its_ids) for its_ids in wanted[table]])) for table in wanted}
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


def _by_segment(entities: Sequence[_Entities], sizes: Sequence[int]) -> list[torch.Tensor]:
    """Rows of each segment, in their order."""
    rows: dict[int, torch.Tensor] = {}
    for edges in entities:
        parts = torch.split(edges.rows, [sizes[position] for position in edges.segments])
        rows.update(zip(edges.segments, parts, strict=True))
    return [rows[position] for position in range(len(sizes))]


def _compared_together(scorer: EdgeScorer, side: Side, edges: _Entities, sizes: Sequence[int]) -> Sequence[_Entities]:
    """Edges with the same candidates: all of them, or each segment's, whose operator the candidates go through."""
    if not scorer.transforms_candidates(side):
        return [edges]
    of_segments = [sizes[position] for position in edges.segments]
    parts = []
    for position, ids, rows in zip(
        edges.segments, torch.split(edges.ids, of_segments), torch.split(edges.rows, of_segments), strict=True
    ):
        # Without edges no candidates, but still a gradient.
        count = len(edges.candidates) if len(ids) else 0
        segment = scorer.relations.segments[position]
        changed = scorer.candidates(side, segment, torch.cat([rows, edges.candidates[:count]]))
        own, candidates = torch.split(changed, [len(ids), count])
        parts.append(_Entities([position], ids, own, edges.candidate_ids[:count], candidates))
    return parts


def _loss(
    scorer: EdgeScorer, config: TwhinModelConfig, queries: torch.Tensor, edges: _Entities, weights: torch.Tensor
) -> torch.Tensor:
    """Weighted sum of the edges' losses."""
    comparator = scorer.comparator
    if isinstance(comparator, DotProduct):
        queries, own, candidates = (comparator.prepare(x) for x in (queries, edges.rows, edges.candidates))
        return fused_loss(config.loss, config.margin, queries, own, candidates, edges.ids, edges.candidate_ids, weights)
    positives = comparator.pairs(queries, edges.rows)
    scores = comparator.all_pairs(queries, edges.candidates)
    masked = edges.ids[:, None] == edges.candidate_ids
    return (edge_losses(config.loss, config.margin, positives, scores, masked) * weights).sum()
