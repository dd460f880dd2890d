"""Turns triples of names into edges. Each line has a head, a relation and a tail, separated by tabs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common.reader.files import DataError
from projects.twhin.data.vocabulary import write_vocabulary
from projects.twhin.tools.config_writer import PreparedGraph, PreparedRelation
from projects.twhin.tools.graph_files import EdgeWriter, vocabulary_path
from projects.twhin.tools.text_blocks import parse, read_blocks

_TYPES = {"head": pa.string(), "relation": pa.string(), "tail": pa.string()}


class NameIds:
    """Assigns ids to names in the order of their first appearance. Holds all names in memory."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def assign(self, names: pa.Array) -> NDArray[np.int64]:
        """Return the ids of `names`, [names] int64. New names get the next ids."""
        encoded = names.dictionary_encode()
        ids = self._ids
        distinct_ids = [ids.setdefault(name, len(ids)) for name in encoded.dictionary.to_pylist()]
        return np.asarray(np.array(distinct_ids, np.int64)[encoded.indices.to_numpy()])

    def __len__(self) -> int:
        return len(self._ids)

    def names(self) -> list[str]:
        """Return all names in the order of their ids."""
        return list(self._ids)


def prepare_triples(out: Path, splits: Mapping[str, Sequence[Path]], entity_type: str) -> PreparedGraph:
    """Write edges and vocabulary to the directory `out`.

    Args:
      out: an existing, empty directory.
      splits: files of each split, plain or compressed. "train" must come first.
      entity_type: name of the table that holds all entities.

    Raises:
      DataError: a file cannot be read or has a line that is not a triple, or a split has no triples.
    """
    entities, relations = NameIds(), NameIds()
    num_edges = {}
    for split, paths in splits.items():
        with EdgeWriter(out / split) as writer:
            for path in paths:
                for block in read_blocks(path):
                    triples = parse(block, path, list(_TYPES), _TYPES, "\t").combine_chunks()
                    if triples.num_rows == 0:
                        continue
                    head, relation, tail = (triples.column(name).chunk(0) for name in _TYPES)
                    # Interleave heads and tails, so that entities get their ids in the order in which they appear.
                    interleaved = np.arange(2 * len(head)).reshape(2, -1).T.ravel()
                    ends = entities.assign(pa.concat_arrays([head, tail]).take(pa.array(interleaved)))
                    writer.write(ends[::2], relations.assign(relation), ends[1::2])
            if writer.num_edges == 0:
                files = ", ".join(map(str, paths))
                raise DataError(
                    f"--{split} {files}: no triples found. Give files with lines of head, relation and tail"
                )
            num_edges[split] = writer.num_edges
    write_vocabulary(vocabulary_path(out, entity_type), pa.array(entities.names(), pa.large_string()))
    prepared = [PreparedRelation(name, entity_type, entity_type) for name in relations.names()]
    return PreparedGraph({entity_type: len(entities)}, prepared, num_edges)
