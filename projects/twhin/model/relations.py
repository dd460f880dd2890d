"""Which tables and operator each relation has, and the segments that a batch is sorted into."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from projects.twhin.model.config import Operator, TwhinModelConfig

Side = Literal["lhs", "rhs"]
SIDES: tuple[Side, Side] = ("lhs", "rhs")


@dataclass(frozen=True)
class Segment:
    """Relations whose edges are computed together: of one pair of tables and one operator.

    Where a relation's operator is applied to one side always (operator_sides: lhs or rhs), candidates go through it,
    each relation's through its own: then every relation is a segment. So is each with a linear operator, a matrix
    product of its own.
    """

    lhs: str
    rhs: str
    operator: Operator
    relations: tuple[int, ...]

    def table(self, side: Side) -> str:
        """The table of that side's entities."""
        return self.lhs if side == "lhs" else self.rhs


class Relations:
    """The relations of a model, by their ids."""

    def __init__(self, config: TwhinModelConfig) -> None:
        tables = config.tables
        self.names = tuple(relation.name for relation in config.relation_list)
        self.operators: tuple[Operator, ...] = tuple(relation.operator for relation in config.relation_list)
        self.num_entities: dict[Side, NDArray[np.int64]] = {
            "lhs": np.array([tables[relation.lhs].num_embeddings for relation in config.relation_list]),
            "rhs": np.array([tables[relation.rhs].num_embeddings for relation in config.relation_list]),
        }
        """Rows of each relation's table on that side."""
        groups: dict[tuple[object, ...], list[int]] = {}
        for index, relation in enumerate(config.relation_list):
            own = (index,) if config.operator_sides != "both" or relation.operator == "linear" else ()
            groups.setdefault((relation.lhs, relation.rhs, relation.operator, *own), []).append(index)
        self.segments = tuple(
            Segment(first.lhs, first.rhs, first.operator, tuple(group))
            for group in groups.values()
            for first in [config.relation_list[group[0]]]
        )
        self.segment_of = np.empty(len(self.names), np.int64)
        """[relations]: position of each relation's segment."""
        for position, segment in enumerate(self.segments):
            self.segment_of[list(segment.relations)] = position

    def segments_of(self, side: Side) -> dict[str, list[int]]:
        """By table, in a fixed order: positions of the segments whose entities on that side are the table's."""
        positions: dict[str, list[int]] = {}
        for position, segment in enumerate(self.segments):
            positions.setdefault(segment.table(side), []).append(position)
        return positions
