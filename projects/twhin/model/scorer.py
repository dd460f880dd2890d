"""Scores edges: transforms an embedding with the relation's operator and compares it with the other embedding.

The model is that of PyTorch-BigGraph (arXiv 1903.12287, section 3). As with its `dynamic_relations`, each direction has
its own operator. With one translation and a dot product, the score is (s + r) . t = s . t + r . t. The term r . t is
the same for every s, so the relation would not affect the ranking of left entities.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from projects.twhin.data.relations import SIDES, Relations, Segment, Side
from projects.twhin.model.comparators import comparator
from projects.twhin.model.config import TwhinModelConfig
from projects.twhin.model.operators import RelationOperator


class EdgeScorer(nn.Module):
    """Holds the relations' parameters and computes the vectors that are compared.

    Scores are comparator.pairs() or comparator.all_pairs() of the results of query() and candidates(). Let op_lhs be
    the operator of left entities and op_rhs that of right entities. The compared vectors are:

    - operator_sides both: op_lhs(lhs) and rhs to rank right entities; lhs and op_rhs(rhs) to rank left entities.
    - operator_sides lhs: op_lhs(lhs) and rhs for both sides.
    - operator_sides rhs: lhs and op_rhs(rhs) for both sides.
    """

    def __init__(self, config: TwhinModelConfig, relations: Relations) -> None:
        super().__init__()
        self.relations = relations
        self.comparator = comparator(config.comparator)
        self._sides: tuple[Side, ...] = SIDES if config.operator_sides == "both" else (config.operator_sides,)
        self._key = {
            segment: f"{segment.operator}_{config.tables[segment.lhs].embedding_dim}"
            for segment in relations.segments
            if segment.operator != "identity"
        }
        self.operators = nn.ModuleDict({side: nn.ModuleDict() for side in self._sides})
        for side in self._sides:
            operators = self.operators[side]
            assert isinstance(operators, nn.ModuleDict)
            for key in dict.fromkeys(self._key.values()):
                segments = [segment for segment, segment_key in self._key.items() if segment_key == key]
                operators[key] = RelationOperator(
                    segments[0].operator,
                    config.tables[segments[0].lhs].embedding_dim,
                    sorted(relation for segment in segments for relation in segment.relations),
                    len(relations.names),
                )

    @property
    def num_directions(self) -> int:
        """Number of operators per relation."""
        return len(self._sides)

    def relation_operators(self) -> Iterator[RelationOperator]:
        """Iterate over the operators of all directions, except identities, which have no parameters."""
        for module in self.operators.modules():
            if isinstance(module, RelationOperator):
                yield module

    def query(self, side: Side, segment: Segment, other: torch.Tensor, relations: torch.Tensor) -> torch.Tensor:
        """Return the vectors that entities on `side` are compared with, [n, dim].

        Args:
          side: side whose entities are ranked.
          segment: segment of the edges.
          other: embeddings of the edges' entities on the other side, [n, dim].
          relations: ids of the edges' relations, [n], int64.
        """
        return self.queries(side, [segment], [other], [relations])[0]

    def queries(
        self,
        side: Side,
        segments: Sequence[Segment],
        others: Sequence[torch.Tensor],
        relations: Sequence[torch.Tensor],
    ) -> list[torch.Tensor]:
        """Return the result of query() for several segments. Each operator's parameters are read only once."""
        other_side: Side = "rhs" if side == "lhs" else "lhs"
        if other_side not in self._sides:
            return list(others)
        results = list(others)
        positions_by_key: dict[str, list[int]] = {}
        for position, segment in enumerate(segments):
            if segment in self._key:
                positions_by_key.setdefault(self._key[segment], []).append(position)
        for key, positions in positions_by_key.items():
            transformed = self._operator(other_side, key)(
                [others[position] for position in positions],
                [relations[position] for position in positions],
                [segments[position].relations for position in positions],
            )
            for position, result in zip(positions, transformed, strict=True):
                results[position] = result
        return results

    def candidates(self, side: Side, segment: Segment, rows: torch.Tensor) -> torch.Tensor:
        """Return the vectors that the queries of a segment's edges are compared with, [m, dim].

        Args:
          side: side whose entities are ranked.
          segment: segment of the edges.
          rows: embeddings of candidates for that side, [m, dim].
        """
        if not self.transforms_candidates(side) or segment not in self._key:
            return rows
        (relation,) = segment.relations
        relations = torch.full((1,), relation, device=rows.device)
        operator = self._operator(side, self._key[segment])
        results: list[torch.Tensor] = operator([rows], [relations], [segment.relations])
        return results[0]

    def transforms_candidates(self, side: Side) -> bool:
        """Return True if candidates() depends on the segment, because operators apply to this side only."""
        return self._sides == (side,)

    def _operator(self, side: Side, key: str) -> nn.Module:
        operators = self.operators[side]
        assert isinstance(operators, nn.ModuleDict)
        return operators[key]
