"""Defines the options of a search. They are light to import."""

from dataclasses import dataclass
from pathlib import Path

from projects.twhin.model.config import ComparatorName

RECALLS = ("0.95", "0.99")
"""Shares of the ten exact nearest neighbors that a search with an index can ask for."""


@dataclass(frozen=True)
class Options:
    """Values of the command line's options.

    Attributes:
      embeddings: file of embeddings, or directory of an export.
      table: table of the entities; None if there is only one.
      names: names of the entities.
      entities: file with more names; None for none.
      k: number of neighbors per entity.
      comparator: how embeddings are compared.
      of: table or file to search; None for the table of the entities.
      index: directory of an index of the searched table; None to search without.
      recall: one of RECALLS; unused without an index.
      out: directory to create for neighbors.parquet; None to print.
    """

    embeddings: str
    table: str | None
    names: tuple[str, ...]
    entities: Path | None
    k: int
    comparator: ComparatorName
    of: str | None
    index: Path | None
    recall: str
    out: Path | None
