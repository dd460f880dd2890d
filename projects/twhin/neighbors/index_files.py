"""Saves an index to a directory, and opens it again for the embeddings that it was built from."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from common.errors import UserError
from common.files.embedding_files import EmbeddingFile
from common.process.optional_packages import require_packages
from projects.twhin.model.config import ComparatorName
from projects.twhin.neighbors.index import IndexFacts, NeighborIndex
from projects.twhin.neighbors.loaded import load_embeddings
from projects.twhin.neighbors.options import RECALLS
from projects.twhin.neighbors.space import import_faiss

_FORMAT = 1
_INDEX, _FACTS = "index.faiss", "index.json"


def save_index(index: NeighborIndex, directory: Path) -> None:
    """Write index.faiss, and index.json with the facts and the digest of index.faiss, to an existing directory.

    Raises:
      OSError: a file cannot be written.
    """
    faiss = import_faiss()
    try:
        faiss.write_index(index.lists, str(directory / _INDEX))
    except RuntimeError as error:
        raise OSError(f"{_INDEX}: {error}") from error
    facts = asdict(index.facts) | {"format": _FORMAT, "faiss": faiss.__version__, "blake2b": _digest(directory)}
    (directory / _FACTS).write_text(json.dumps(facts, indent=2) + "\n")


def open_index(directory: Path, file: EmbeddingFile, comparator: ComparatorName) -> NeighborIndex:
    """Open an index that was built from the embeddings of a file, and read the embeddings.

    Raises:
      UserError: faiss is not installed; the directory does not hold an index, is damaged, or holds an index of other
        embeddings or of another comparator; or the embeddings cannot be read, or do not fit into memory.
    """
    require_packages("--index", ["faiss"])
    facts, digest = _read_facts(directory)
    rebuild = "Build it again with python -m projects.twhin.neighbors.build_index"
    if facts.comparator != comparator:
        raise UserError(
            f"--index {directory}: was built for --comparator {facts.comparator}, but this search compares by "
            f"{comparator}. Give --comparator {facts.comparator}, or another index"
        )
    # Reading the embeddings takes long.
    table = load_embeddings(file) if (facts.num_rows, facts.dim) == (file.num_rows, file.dim) else None
    if table is None or table.digest != facts.embeddings:
        raise UserError(
            f"--index {directory}: was built from other embeddings ({facts.num_rows:,} of dimension {facts.dim}) than "
            f"those of {file.path} ({file.num_rows:,} of dimension {file.dim}). {rebuild}"
        )
    try:
        if _digest(directory) != digest:
            raise UserError(f"--index {directory}: {_INDEX} is damaged: its digest differs from {_FACTS}. {rebuild}")
        lists = import_faiss().read_index(str(directory / _INDEX))
    except (OSError, RuntimeError) as error:
        raise UserError(f"--index {directory}: cannot read {_INDEX}: {error}. {rebuild}") from error
    return NeighborIndex(table, lists, facts)


def _read_facts(directory: Path) -> tuple[IndexFacts, str]:
    """Return the content of index.json: the facts, and the digest of index.faiss."""
    path = directory / _FACTS
    if not path.exists():
        raise UserError(
            f"--index {directory}: no {_FACTS} there, so this is not an index. Give the --out of python -m "
            "projects.twhin.neighbors.build_index"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise UserError(
                f"--index {directory}: has the format {content['format']}, but this release reads {_FORMAT}. Build the "
                "index again"
            )
        facts = TypeAdapter(IndexFacts).validate_python(content)
        if missing := set(RECALLS) - set(facts.efforts):
            raise KeyError(f"efforts: {min(missing)}")
        return facts, content["blake2b"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--index {directory}: {_FACTS} is damaged: {error}. Build the index again") from error


def _digest(directory: Path) -> str:
    with (directory / _INDEX).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
