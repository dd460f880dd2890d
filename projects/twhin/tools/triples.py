"""Triples of names into edges: lines of head, relation and tail, separated by tabs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common.reader.files import DataError
from projects.twhin.data.vocabulary import write_vocabulary
from projects.twhin.tools.graph_files import EdgeWriter, vocabulary_path
from projects.twhin.tools.ready_config import Graph, RelationOf
from projects.twhin.tools.text_blocks import parse, read_blocks

_TYPES = {"head": pa.string(), "relation": pa.string(), "tail": pa.string()}


class Names:
    """Numbers names in the order of their first appearance. Memory: the names."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __call__(self, names: pa.Array) -> NDArray[np.int64]:
        """The number of each of [names]."""
        encoded = names.dictionary_encode()
        numbers = self._numbers
        of_distinct = [numbers.setdefault(name, len(numbers)) for name in encoded.dictionary.to_pylist()]
        return np.asarray(np.array(of_distinct, np.int64)[encoded.indices.to_numpy()])

    def __len__(self) -> int:
        return len(self._numbers)

    def all(self) -> list[str]:
        """In the order of their numbers."""
        return list(self._numbers)


def prepare_triples(out: Path, splits: Mapping[str, Sequence[Path]], entity_type: str) -> Graph:
    """Writes edges and vocabulary to the folder `out`.

    Args:
      out: a new folder.
      splits: the files of each split, plain or compressed; those of "train" are to come first.
      entity_type: name of the table that all entities are in.

    Raises:
      DataError: a file can't be read, or holds a line that is no triple; a split has no triple.
    """
    entities, relations = Names(), Names()
    num_edges = {}
    for split, paths in splits.items():
        with EdgeWriter(out / split) as writer:
            for path in paths:
                for block in read_blocks(path):
                    triples = parse(block, path, list(_TYPES), _TYPES, "\t").combine_chunks()
                    if triples.num_rows == 0:
                        continue
                    head, relation, tail = (triples.column(name).chunk(0) for name in _TYPES)
                    # Head, tail, head, tail, ...: entities are numbered as they appear.
                    places = np.arange(2 * len(head)).reshape(2, -1).T.ravel()
                    ends = entities(pa.concat_arrays([head, tail]).take(pa.array(places)))
                    writer.write(ends[::2], relations(relation), ends[1::2])
            if writer.num_edges == 0:
                given = ", ".join(map(str, paths))
                raise DataError(f"--{split} {given}: not one triple; give files with lines of head, relation and tail")
            num_edges[split] = writer.num_edges
    write_vocabulary(vocabulary_path(out, entity_type), pa.array(entities.all(), pa.large_string()))
    named = [RelationOf(name, entity_type, entity_type) for name in relations.all()]
    return Graph({entity_type: len(entities)}, named, num_edges)
