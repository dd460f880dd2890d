"""Defines the options of projects.twhin.predict."""

from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError


@dataclass(frozen=True)
class Options:
    """The options. Exactly one of these selects what to do: heads and tails, queries, or ranks.

    Attributes:
      checkpoint: the checkpoint, its directory, or the save_dir of a run.
      heads, tails, relations: names of queries.
      queries: glob patterns, files or directories of queries.
      ranks: partition, or glob pattern, file or directory of edges to rank.
      known: glob patterns, files or directories of known edges; None if the option is missing.
      k: number of answers per query; None if the option is missing.
      out: directory to create.
    """

    checkpoint: Path
    heads: tuple[str, ...]
    tails: tuple[str, ...]
    relations: tuple[str, ...]
    queries: tuple[str, ...]
    ranks: str | None
    known: tuple[str, ...] | None
    k: int | None
    out: Path | None

    def __post_init__(self) -> None:
        """Raise UserError if options contradict each other, or if one is missing."""
        entities = self.heads + self.tails
        chosen = [
            name
            for name, value in {"--head or --tail": entities, "--queries": self.queries, "--ranks": self.ranks}.items()
            if value
        ]
        if len(chosen) != 1:
            found = " and ".join(chosen) or "none of them"
            raise UserError(f"give one of --head or --tail with --relation, --queries, and --ranks; found {found}")
        if bool(entities) != bool(self.relations):
            raise UserError("--head and --tail need --relation, and --relation needs --head or --tail")
        if self.ranks and self.out is None:
            raise UserError("--ranks needs --out DIR, the directory to write the ranks to")
        if self.ranks and self.k is not None:
            raise UserError("--k has no effect with --ranks, which ranks among all candidates. Remove it")
