"""The relations of a graph: their tables, and the segments that a batch is sorted into."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from projects.twhin.data.config import Operator, OperatorSides, Relation

Side = Literal["lhs", "rhs"]
SIDES: tuple[Side, Side] = ("lhs", "rhs")


@dataclass(frozen=True)
class Segment:
    """A group of relations whose edges are computed together: they share both tables and the operator.

    If operators apply to one side only (operator_sides: lhs or rhs), candidates are transformed by each relation's own
    operator, so every relation has its own segment. A relation with a linear operator also has its own segment, because
    it needs its own matrix product.
    """

    lhs: str
    rhs: str
    operator: Operator
    relations: tuple[int, ...]

    def table(self, side: Side) -> str:
        """Return the name of the table that holds the entities on `side`."""
        return self.lhs if side == "lhs" else self.rhs


class Relations:
    """The relations of a model, indexed by their ids.

    Attributes:
      names: name of each relation.
      operators: operator of each relation.
      num_entities: number of rows of each relation's table, by side: [relations], int64.
      segments: segments, in the order of a batch.
      segment_of: position of each relation's segment: [relations], int64.
    """

    def __init__(
        self, relations: Sequence[Relation], num_embeddings: Mapping[str, int], operator_sides: OperatorSides
    ) -> None:
        """Index the relations and group them into segments.

        Args:
          relations: all relations, in the order of their ids.
          num_embeddings: number of rows of each table, by name.
          operator_sides: sides that have operators.
        """
        self.names = tuple(relation.name for relation in relations)
        self.operators: tuple[Operator, ...] = tuple(relation.operator for relation in relations)
        self.num_entities: dict[Side, NDArray[np.int64]] = {
            "lhs": np.array([num_embeddings[relation.lhs] for relation in relations]),
            "rhs": np.array([num_embeddings[relation.rhs] for relation in relations]),
        }
        groups: dict[tuple[object, ...], list[int]] = {}
        for index, relation in enumerate(relations):
            own = (index,) if operator_sides != "both" or relation.operator == "linear" else ()
            groups.setdefault((relation.lhs, relation.rhs, relation.operator, *own), []).append(index)
        self.segments = tuple(
            Segment(first.lhs, first.rhs, first.operator, tuple(group))
            for group in groups.values()
            for first in [relations[group[0]]]
        )
        self.segment_of = np.empty(len(self.names), np.int64)
        for position, segment in enumerate(self.segments):
            self.segment_of[list(segment.relations)] = position

    def segments_of(self, side: Side) -> dict[str, list[int]]:
        """Return the positions of the segments that use each table on `side`, by table, in a fixed order."""
        positions: dict[str, list[int]] = {}
        for position, segment in enumerate(self.segments):
            positions.setdefault(segment.table(side), []).append(position)
        return positions
