"""Finds the user's files and their format. csv_file.py and parquet_files.py read them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from common.reader.files import (
    DataError,
    files_below,
    paths_matching,
    split_pattern,
    unique_files,
    visible_files,
    warn_about_hidden,
)

Format = Literal["csv", "parquet"]

SUFFIXES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz", ".parquet", ".pq")
"""Names of the files that are read from a directory."""

NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""Value that Hive and Spark write into the name of a folder for null."""

_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip archive, or a workbook of Excel. Unpack it, or export it as CSV",
    b"ORC": "an ORC file. Convert it to Parquet",
    b"Obj\x01": "an Avro file. Convert it to Parquet",
    b"\x28\xb5\x2f\xfd": "compressed by zstd. Decompress it",
    b"BZh": "compressed by bzip2. Decompress it",
    b"\xfd7zXZ": "compressed by xz. Decompress it",
    b"ARROW1": "an Arrow file. Convert it to Parquet",
}


@dataclass(frozen=True)
class InputFile:
    """A file, and the columns that the names of its folders state, such as day=2026-01-31.

    Attributes:
      path: path of the file.
      partition: values of these columns as text, or None for null.
    """

    path: Path
    partition: dict[str, str | None]


@dataclass(frozen=True)
class InputFiles:
    """The user's files, in the order of their rows, and their format."""

    files: tuple[InputFile, ...]
    format: Format

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(file.path.stat().st_size for file in self.files)


def find_files(inputs: Sequence[Path]) -> InputFiles:
    """Find the files of --input: in the given order, and those of a directory or a glob pattern sorted by path.

    Raises:
      DataError: no file matches, a path cannot be read, the files have several formats, or another than CSV and
        Parquet.
    """
    found: dict[Path, InputFile] = {}
    for path in inputs:
        try:
            for file in _expand(path):
                found.setdefault(file.path, file)
        except OSError as error:
            raise DataError(f"--input {path}: cannot read {error.filename}: {error.strerror}") from error
    paths = unique_files(found, "--input")
    formats = {path: _format_of(path) for path in paths}
    first = paths[0]
    for path, other in formats.items():
        if other != formats[first]:
            raise DataError(f"{first} is {formats[first]}, but {path} is {other}. Give files of one format")
    files = tuple(found[path] for path in paths)
    for file in files:
        if file.partition.keys() != files[0].partition.keys():
            raise DataError(
                f"the folders of {first} state the columns {_listed(files[0])}, but those of {file.path} state "
                f"{_listed(file)}. Give files of one table"
            )
    return InputFiles(files, formats[first])


def _expand(path: Path) -> list[InputFile]:
    """Return the files that one path of --input stands for."""
    if path.is_dir():
        return _in_directory(path)
    if path.is_file():
        return [InputFile(path, {})]
    base, pattern = split_pattern(path)
    if not pattern:
        raise DataError(f"--input {path}: there is no such file or directory (current directory: {Path.cwd()})")
    matches = paths_matching(base, pattern)
    visible, hidden = visible_files(matches, base, pattern)
    warn_about_hidden(hidden, str(path))
    files = [InputFile(file, _partition(file, base)) for file in visible]
    for folder in sorted(match for match in matches if match.is_dir()):
        files += [InputFile(file.path, _partition(file.path, base)) for file in _in_directory(folder)]
    if not files:
        raise DataError(f"--input {path}: no file matches (current directory: {Path.cwd()})")
    return files


def _in_directory(folder: Path) -> list[InputFile]:
    files, _ = files_below(folder)
    chosen = [file for file in files if file.name.lower().endswith(SUFFIXES)]
    if not chosen:
        named = ", ".join(f"*{suffix}" for suffix in SUFFIXES)
        raise DataError(f"--input {folder}: this directory has no visible file named {named}")
    return [InputFile(file, _partition(file, folder)) for file in chosen]


def _partition(file: Path, base: Path) -> dict[str, str | None]:
    partition: dict[str, str | None] = {}
    for part in file.relative_to(base).parts[:-1]:
        name, equals, value = part.partition("=")
        if equals and name:
            partition[unquote(name)] = None if value == NO_PARTITION else unquote(value)
    return partition


def _format_of(path: Path) -> Format:
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise DataError(f"{path}: cannot read this file: {error.strerror}") from error
    for magic, problem in _OTHER_FORMATS.items():
        if start.startswith(magic):
            raise DataError(f"{path} is {problem}")
    return "parquet" if start.startswith(b"PAR1") or path.suffix.lower() in (".parquet", ".pq") else "csv"


def _listed(file: InputFile) -> str:
    return ", ".join(file.partition) or "none"
