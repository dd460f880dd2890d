"""Turns triples of names into edges. Each line has a head, a relation and a tail, separated by tabs."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.reader.files import DataError
from projects.twhin.data.vocabulary import write_vocabulary
from projects.twhin.tools.config_writer import PreparedGraph, PreparedRelation
from projects.twhin.tools.graph_files import EdgeWriter, vocabulary_path
from projects.twhin.tools.text_blocks import Block, line_number, parse, read_blocks

logger = logging.getLogger(__name__)

# White space, and characters of no width that are harmless only within a name.
_INVISIBLE = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\u200b\u200c\u200d\u200e\u200f\u2060\xad"

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


class BlankRemover:
    """Removes the blanks (spaces) around names, because users do not see them, and counts what it finds."""

    def __init__(self) -> None:
        self._num_blank = self._num_invisible = 0
        self._first_blank = self._first_invisible = ""

    def clean(self, table: pa.Table, block: Block, path: Path) -> pa.Table:
        """Return the table of a parsed block without blanks around its names. Other invisible characters stay."""
        for position, name in enumerate(table.column_names):
            names = table.column(name)
            clean = pc.ascii_trim(names, " ")
            if num_blank := self._count(pc.not_equal(clean, names)):
                self._first_blank = self._first_blank or self._place(pc.not_equal(clean, names), names, block, path)
                self._num_blank += num_blank
                table = table.set_column(position, name, clean)
            is_invisible = pc.not_equal(pc.utf8_trim(clean, _INVISIBLE), clean)
            if num_invisible := self._count(is_invisible):
                self._first_invisible = self._first_invisible or self._place(is_invisible, clean, block, path)
                self._num_invisible += num_invisible
        return table

    def warn(self) -> None:
        """Log a warning for blanks, and one for other invisible characters, if there were any."""
        if self._num_blank:
            logger.warning("removed the blanks around %s name(s), first %s", f"{self._num_blank:,}", self._first_blank)
        if self._num_invisible:
            logger.warning(
                "%s name(s) begin or end with invisible characters, which were kept, first %s",
                f"{self._num_invisible:,}",
                self._first_invisible,
            )

    @staticmethod
    def _count(is_found: pa.ChunkedArray) -> int:
        return int(pc.sum(is_found).as_py() or 0)

    @staticmethod
    def _place(is_found: pa.ChunkedArray, names: pa.ChunkedArray, block: Block, path: Path) -> str:
        row = pc.index(is_found, True).as_py()
        return f"{names[row].as_py()!r} ({path}:{line_number(block, row)})"


def prepare_triples(out: Path, splits: Mapping[str, Sequence[Path]], entity_type: str) -> PreparedGraph:
    """Write edges and vocabulary to the directory `out`. Log a warning if names had blanks around them.

    Args:
      out: an existing, empty directory.
      splits: files of each split, plain or compressed. "train" must come first.
      entity_type: name of the table that holds all entities.

    Raises:
      DataError: a file cannot be read or has a line that is not a triple, or a split has no triples.
    """
    entities, relations, blanks = NameIds(), NameIds(), BlankRemover()
    num_edges = {}
    for split, paths in splits.items():
        with EdgeWriter(out / split) as writer:
            for path in paths:
                for block in read_blocks(path):
                    triples = parse(block, path, list(_TYPES), _TYPES, "\t")
                    triples = blanks.clean(triples, block, path).combine_chunks()
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
    blanks.warn()
    write_vocabulary(vocabulary_path(out, entity_type), pa.array(entities.names(), pa.large_string()))
    prepared = [PreparedRelation(name, entity_type, entity_type) for name in relations.names()]
    return PreparedGraph({entity_type: len(entities)}, prepared, num_edges)
