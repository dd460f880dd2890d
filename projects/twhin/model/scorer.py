"""Scores of edges: embeddings, changed by the relation's operator, compared.

The model is PyTorch-BigGraph's (arXiv 1903.12287, section 3). An operator per direction, as its `dynamic_relations`
have: of a translation and a dot product, (s + r) . t, the part r . t is the same for every s and can't rank them.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from projects.twhin.data.relations import SIDES, Relations, Segment, Side
from projects.twhin.model.comparators import comparator
from projects.twhin.model.config import TwhinModelConfig
from projects.twhin.model.operators import RelationOperator


class EdgeScorer(nn.Module):
    """Holds the relations' parameters and makes what is compared.

    Scores are comparator.pairs or .all_pairs of query() and candidates(). With op_lhs applied to left entities and
    op_rhs to right ones, the ranking of right entities compares op_lhs(lhs) with rhs, that of left ones lhs with
    op_rhs(rhs) (operator_sides: both). With one operator (lhs or rhs) both compare op_lhs(lhs) with rhs, or lhs with
    op_rhs(rhs).
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
            of_side = self.operators[side]
            assert isinstance(of_side, nn.ModuleDict)
            for key in dict.fromkeys(self._key.values()):
                segments = [segment for segment, its in self._key.items() if its == key]
                of_side[key] = RelationOperator(
                    segments[0].operator,
                    config.tables[segments[0].lhs].embedding_dim,
                    sorted(relation for segment in segments for relation in segment.relations),
                    len(relations.names),
                )

    @property
    def num_directions(self) -> int:
        """Operators that a relation has."""
        return len(self._sides)

    def parametrised(self) -> Iterator[RelationOperator]:
        """All operators that have parameters, of all directions."""
        for module in self.operators.modules():
            if isinstance(module, RelationOperator):
                yield module

    def query(self, side: Side, segment: Segment, other: torch.Tensor, relations: torch.Tensor) -> torch.Tensor:
        """What entities of `side` are compared with.

        Args:
          segment: of the edges.
          other: [n, dim], embeddings of the edges' entities on the other side.
          relations: [n], int64, ids of the edges' relations.

        Returns:
          [n, dim].
        """
        return self.queries(side, [segment], [other], [relations])[0]

    def queries(
        self,
        side: Side,
        segments: Sequence[Segment],
        others: Sequence[torch.Tensor],
        relations: Sequence[torch.Tensor],
    ) -> list[torch.Tensor]:
        """query() of several segments at once: each operator's parameters are read once."""
        other_side: Side = "rhs" if side == "lhs" else "lhs"
        if other_side not in self._sides:
            return list(others)
        results = list(others)
        of_key: dict[str, list[int]] = {}
        for position, segment in enumerate(segments):
            if segment in self._key:
                of_key.setdefault(self._key[segment], []).append(position)
        for key, positions in of_key.items():
            changed = self._operator(other_side, key)(
                [others[position] for position in positions],
                [relations[position] for position in positions],
                [segments[position].relations for position in positions],
            )
            for position, result in zip(positions, changed, strict=True):
                results[position] = result
        return results

    def candidates(self, side: Side, segment: Segment, rows: torch.Tensor) -> torch.Tensor:
        """Entities of `side` as they are compared with the queries of a segment's edges.

        Args:
          rows: [m, dim], their embeddings.

        Returns:
          [m, dim].
        """
        if not self.transforms_candidates(side) or segment not in self._key:
            return rows
        (relation,) = segment.relations
        relations = torch.full((1,), relation, device=rows.device)
        operator = self._operator(side, self._key[segment])
        results: list[torch.Tensor] = operator([rows], [relations], [segment.relations])
        return results[0]

    def transforms_candidates(self, side: Side) -> bool:
        """Whether candidates() depends on the segment: one operator, applied to this side always."""
        return self._sides == (side,)

    def _operator(self, side: Side, key: str) -> nn.Module:
        of_side = self.operators[side]
        assert isinstance(of_side, nn.ModuleDict)
        return of_side[key]
