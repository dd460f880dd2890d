"""Maps the names of entities to the rows of their tables and back."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.files.embedding_files import comparable, wide_type
from projects.twhin.data.relations import SIDES, Relations, Side
from projects.twhin.data.similar_names import similar_names
from projects.twhin.model.config import TwhinModelConfig
from projects.twhin.model.pretrained import read_table_vocabulary


class EntityNames:
    """The names of all entities: those of the vocabularies, and the row indices of tables without one.

    Attributes:
      kind: type of all names: int64, uint64, or large_string if the tables' types differ.
    """

    def __init__(self, config: TwhinModelConfig, relations: Relations) -> None:
        """Read the vocabularies.

        Args:
          config: configuration of the model.
          relations: relations of the model.

        Raises:
          ConfigError: a vocabulary cannot be read, or has more entities than the table has rows.
        """
        arrays = []
        for table in config.embeddings.tables:
            entities = read_table_vocabulary(table)
            entities = pa.array(np.arange(table.num_embeddings)) if entities is None else entities
            arrays.append(entities.cast(wide_type(entities.type)))
        kinds = {array.type for array in arrays}
        self.kind: pa.DataType = kinds.pop() if len(kinds) == 1 else pa.large_string()
        self._names = pa.concat_arrays([array.cast(self.kind) for array in arrays])
        self._counts = np.array([len(array) for array in arrays])
        self._starts = np.cumsum(self._counts) - self._counts
        self._tables: list[str] = list(config.tables)
        self._vocabularies = {name: table.vocab for name, table in config.tables.items()}
        self._table_of = {
            side: np.array([self._tables.index(relations.segments[s].table(side)) for s in relations.segment_of])
            for side in SIDES
        }

    def count(self, table: str) -> int:
        """Return the number of entities of a table. Rows beyond its vocabulary belong to no entity."""
        return int(self._counts[self._tables.index(table)])

    def table(self, side: Side, relation: int) -> str:
        """Return the table of a relation's entities on a side."""
        return self._tables[int(self._table_of[side][relation])]

    def share_a_table(self, relations: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether the entities on both sides of relations are in the same table, [relations]."""
        same: NDArray[np.bool_] = self._table_of["lhs"][relations] == self._table_of["rhs"][relations]
        return same

    def take(self, side: Side, relations: NDArray[np.int64], rows: NDArray[np.int64]) -> pa.Array:
        """Return the names of entities on a side of edges, [edges]; null for a row beyond the vocabulary.

        Args:
          side: side of the entities.
          relations: ids of the edges' relations, [edges].
          rows: rows of the entities in their tables, [edges].
        """
        tables = self._table_of[side][relations]
        return self._names.take(pa.array(self._starts[tables] + rows, mask=rows >= self._counts[tables]))

    def find(self, side: Side, relations: NDArray[np.int64], names: pa.Array) -> NDArray[np.int64]:
        """Return the rows of named entities in their tables, [names]; -1 for an unknown name.

        An integer is the same as the text that writes it in decimal.

        Args:
          side: side of the entities.
          relations: ids of the relations that select the tables, [names].
          names: names, strings or integers.
        """
        tables = self._table_of[side][relations]
        rows = np.full(len(names), -1)
        for table in np.unique(tables).tolist():
            chosen = np.flatnonzero(tables == table)
            wanted, known = comparable(names.take(pa.array(chosen)), self._of_table(table))
            rows[chosen] = pc.fill_null(pc.index_in(wanted, known), -1).to_numpy()
        return rows

    def describe_unknown(self, side: Side, relation: int, name: str) -> str:
        """Return what a message says about an unknown name, with similar ones, without the last period."""
        table = self._table_of[side][relation]
        entities = self._of_table(table)
        vocabulary = self._vocabularies[self._tables[table]]
        problem = f"{name} is not among the {len(entities):,} entities of the table {self._tables[table]}"
        if vocabulary is None:
            return f"{problem}, which has no vocabulary: they are its row indices, 0 to {len(entities) - 1}"
        return f"{problem} ({vocabulary}). {similar_names('entities', entities, name)}"

    def _of_table(self, table: int) -> pa.Array:
        return self._names.slice(self._starts[table], self._counts[table])
