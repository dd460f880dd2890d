"""One file of records becomes one Parquet file, stamped with what it was made from, so that it is not made twice."""

import glob
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import UserError
from common.files.table_writer import TableWriter
from common.process.paths import user_path
from common.reader.files import files_below, is_file_or_broken_link, unique_files
from common.reader.vectors import Storage
from projects.home.recap.tools.conversion.examples import Absences, ExampleFeature, read_blocks
from projects.home.recap.tools.conversion.tfrecords import RecordError, read_records

OTHER_LAYOUT = "another schema, tasks, features, truncation, masks, --lists or --float16"

_STAMP = "recap.converted_from"
_SUFFIXES = (".gz", ".tfrecord", ".tfrecords")
_READ_AHEAD = 2**18


class Job(NamedTuple):
    """A file to convert."""

    source: Path
    output: Path
    size: int
    """Of the source, in bytes."""


class Layout(NamedTuple):
    """What the outputs hold, and how."""

    features: Sequence[ExampleFeature]
    vectors: Storage = "binary"

    @property
    def digest(self) -> str:
        """Another one for another layout."""
        return hashlib.blake2b(repr(self).encode(), digest_size=16).hexdigest()


class Plan(NamedTuple):
    """What is to be done, and what is done already."""

    jobs: list[Job]
    finished: list[Path]
    others: list[Path]
    """Made before, from files that are not among the inputs."""


def plan_jobs(inputs: str, out: Path, layout: Layout) -> Plan:
    """Finds the files of records and what each becomes: the same path below `out`, `.parquet`.

    Args:
      inputs: a glob pattern, a file, or a directory, of which all files are meant, at any depth. Names that begin with
        a dot or an underscore are left out where they are not given, and so is what lies in `out`.
      out: the directory of the outputs.
      layout: of the outputs.

    Raises:
      UserError: nothing matches, two files would become one, one has become another before, or where one would be
        written there is something that was not made from it, or in another layout.
    """
    if not inputs:
        raise UserError("--inputs: nothing given; give a glob pattern, a file, or a directory")
    try:
        base, sources = _find(inputs, out)
    except OSError as error:
        raise UserError(f"--inputs {inputs}: can't be read: {error.strerror}: {error.filename}") from error
    if not sources:
        raise UserError(
            f"--inputs {inputs}: no file matches (looked from {Path.cwd()}); give a glob pattern, a file, or a "
            "directory outside of --out"
        )
    outputs: dict[Path, Path] = {}
    plan = Plan([], [], [])
    for source in sources:
        output = out / _output_name(source.relative_to(base))
        if output in outputs:
            raise UserError(f"{outputs[output]} and {source} would both become {output}; convert them apart")
        outputs[output] = source
        if output.exists() and _is_finished(source, output, layout):
            plan.finished.append(output)
        else:
            plan.jobs.append(Job(source, output, _size(source)))
    plan.others.extend(_others(out, outputs))
    return plan


def _others(out: Path, outputs: Mapping[Path, Path]) -> list[Path]:
    """What was made before below `out` from files that are not those of `outputs`, source by output."""
    planned = {str(source.resolve()): output for output, source in outputs.items()}
    others = []
    for path in sorted(out.rglob("*.parquet")):
        if path in outputs or path.name.startswith(".") or (stamp := _read_stamp(path)) is None:
            continue
        if (source := stamp["source"]) in planned:
            raise UserError(
                f"{path}: was made from {source}, which would now become {planned[source]} too, as --inputs begins "
                "elsewhere; give --inputs as before, or another --out"
            )
        others.append(path)
    return others


def convert_file(source: Path, output: Path, layout: Layout, progress: Callable[[int, int], None]) -> Absences:
    """Makes `output`, which appears, or replaces the one there, when it is complete. Memory: one row group.

    Args:
      source: gzip'd or uncompressed TFRecords of tf.Examples.
      output: a Parquet file.
      layout: of `output`.
      progress: called after each block of rows with the bytes of `source` read and the rows written since the last
        call; what it raises ends the conversion.

    Returns:
      what records were without.

    Raises:
      RecordError: `source` is truncated or corrupt, or its records are not as `layout` says.
      UserError: `output` can't be written.
    """
    columns = [feature.column for feature in layout.features]
    absences = Absences()
    stamp = json.dumps(_stamp(source, layout))
    with _opened(source) as file:
        read = 0
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            with TableWriter(output, columns, vectors=layout.vectors, metadata={_STAMP: stamp}) as writer:
                for block in read_blocks(read_records(file), layout.features, absences):
                    writer.write(block)
                    rows = len(next(iter(block.values())))
                    progress(file.tell() - read, rows)
                    read = file.tell()
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{output}: can't be written: {error}") from error
    return absences


def _find(inputs: str, out: Path) -> tuple[Path, list[Path]]:
    """The directory below which paths are kept, and the files, sorted."""
    path = user_path(inputs)
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        base, matches = path, files_below(path)
    else:
        fixed = []
        for part in path.parts:
            if glob.has_magic(part):
                break
            fixed.append(part)
        base = Path(*fixed)
        matches = unique_files(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207 - Path.glob takes no absolute pattern
    inside = out.resolve()

    def is_source(file: Path) -> bool:
        hidden = any(part.startswith((".", "_")) for part in file.relative_to(base).parts)
        # Of a directory with more than records; a pattern says what it means.
        hidden |= path.is_dir() and file.suffix in (".parquet", ".json", ".yaml")
        return not hidden and is_file_or_broken_link(file) and not file.resolve().is_relative_to(inside)

    return base, sorted(filter(is_source, matches))


def _output_name(path: Path) -> Path:
    name = path.name
    while name.endswith(_SUFFIXES) and name not in _SUFFIXES:
        name = name[: name.rindex(".")]
    return path.with_name(f"{name}.parquet")


def _size(source: Path) -> int:
    try:
        return source.stat().st_size
    except OSError:  # told when it is its turn
        return 0


def _opened(source: Path) -> IO[bytes]:
    try:
        return source.open("rb", buffering=_READ_AHEAD)
    except OSError as error:
        raise RecordError(f"can't be read: {error.strerror}") from error


def _stamp(source: Path, layout: Layout) -> dict[str, str | int]:
    """What an output is made from, and how. The last bytes of a gzip file are a checksum of what is before."""
    try:
        with _opened(source) as file:
            changed = os.fstat(file.fileno()).st_mtime_ns
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 16))
            tail = file.read().hex()
        path = str(source.resolve())
        return {"source": path, "size": size, "changed_ns": changed, "tail": tail, "layout": layout.digest}
    except OSError as error:
        raise RecordError(f"can't be read: {error.strerror}") from error


def _read_stamp(output: Path) -> dict[str, Any] | None:
    """Of a Parquet file that was made here; None of any other file."""
    try:
        stamp: dict[str, Any] = json.loads((pq.read_metadata(output).metadata or {})[_STAMP.encode()])
    except (OSError, pa.ArrowException, KeyError):
        return None
    return stamp


def _is_finished(source: Path, output: Path, layout: Layout) -> bool:
    """Whether `output` was made from `source` as it is now.

    Raises:
      UserError: it was made from another file, in another way, or by something else.
    """
    advice = "give another --out, or remove it"
    if (found := _read_stamp(output)) is None:
        raise UserError(f"{output}: is there, but was not made by this command; {advice}")
    if found["source"] != str(source.resolve()):
        raise UserError(f"{output}: was made from {found['source']}, not from {source}; {advice}")
    if found["layout"] != layout.digest:
        raise UserError(f"{output}: was made with {OTHER_LAYOUT}; {advice}")
    try:
        return bool(found == _stamp(source, layout))
    except RecordError:  # told when it is its turn
        return False
