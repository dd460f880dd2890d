"""One file of records becomes one Parquet file, stamped with what it was made from, so that it is not made twice."""

import glob
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from common.reader.vectors import Storage
from core.config.base_config import UserError
from projects.home.recap.data.examples import ExampleFeature, read_blocks
from projects.home.recap.data.parquet import RecapWriter
from projects.home.recap.data.tfrecords import RecordError, read_records

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


def plan_jobs(inputs: str, out: Path, layout: Layout) -> Plan:
    """Finds the files of records and what each becomes: the same path below `out`, `.parquet`.

    Args:
      inputs: a glob pattern, a file, or a directory, of which all files are meant, at any depth. Names that begin with
        a dot or an underscore are left out where they are not given, and so is what lies in `out`.
      out: the directory of the outputs.
      layout: of the outputs.

    Raises:
      UserError: nothing matches, two files would become one, or where one would be written there is something that was
        not made from it, or in another layout.
    """
    base, sources = _find(inputs, out)
    if not sources:
        raise UserError(
            f"--inputs {inputs}: no file matches (looked from {Path.cwd()}); give a glob pattern, a file, or a "
            "directory outside of --out"
        )
    outputs: dict[Path, Path] = {}
    plan = Plan([], [])
    for source in sources:
        output = out / _output_name(source.relative_to(base))
        if output in outputs:
            raise UserError(f"{outputs[output]} and {source} would both become {output}; convert them apart")
        outputs[output] = source
        if output.exists() and _is_finished(source, output, layout):
            plan.finished.append(output)
        else:
            plan.jobs.append(Job(source, output, _size(source)))
    return plan


def convert_file(source: Path, output: Path, layout: Layout, progress: Callable[[int, int], None]) -> Counter[str]:
    """Makes `output`, which appears, or replaces the one there, when it is complete. Memory: one row group.

    Args:
      source: gzip'd or uncompressed TFRecords of tf.Examples.
      output: a Parquet file.
      layout: of `output`.
      progress: called after each block of rows with the bytes of `source` read and the rows written since the last
        call; what it raises ends the conversion.

    Returns:
      by name of a feature, how many records were without it.

    Raises:
      RecordError: `source` is truncated or corrupt, or its records are not as `layout` says.
      UserError: `output` can't be written.
    """
    columns = [feature.column for feature in layout.features]
    missing: Counter[str] = Counter()
    stamp = json.dumps(_stamp(source, layout))
    with _opened(source) as file:
        read = 0
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            with RecapWriter(output, columns, vectors=layout.vectors, metadata={_STAMP: stamp}) as writer:
                for block in read_blocks(read_records(file), layout.features, missing):
                    writer.write(block)
                    rows = len(next(iter(block.values())))
                    progress(file.tell() - read, rows)
                    read = file.tell()
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{output}: can't be written: {error}") from error
    return missing


def _find(inputs: str, out: Path) -> tuple[Path, list[Path]]:
    """The directory below which paths are kept, and the files, sorted."""
    path = Path(inputs).expanduser()
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        base, pattern = path, f"{glob.escape(str(path))}/**"
    else:
        fixed = []
        for part in path.parts:
            if glob.has_magic(part):
                break
            fixed.append(part)
        base, pattern = Path(*fixed), str(path)
    matches = map(Path, glob.glob(pattern, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
    inside = out.resolve()

    def is_meant(file: Path) -> bool:
        hidden = any(part.startswith((".", "_")) for part in file.relative_to(base).parts)
        return not hidden and file.is_file() and not file.resolve().is_relative_to(inside)

    return base, sorted(filter(is_meant, matches))


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
    """What an output is made from, and how. The last bytes of a file are checksums of what is before."""
    try:
        with _opened(source) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 16))
            return {"source": str(source.resolve()), "size": size, "tail": file.read().hex(), "layout": layout.digest}
    except OSError as error:
        raise RecordError(f"can't be read: {error.strerror}") from error


def _is_finished(source: Path, output: Path, layout: Layout) -> bool:
    """Whether `output` was made from `source` as it is now.

    Raises:
      UserError: it was made from another file, in another way, or by something else.
    """
    advice = "give another --out, or remove it"
    try:
        found = json.loads((pq.read_metadata(output).metadata or {})[_STAMP.encode()])
    except (OSError, pa.ArrowException, KeyError) as error:
        raise UserError(f"{output}: is there, but was not made by this command; {advice}") from error
    if found["source"] != str(source.resolve()):
        raise UserError(f"{output}: was made from {found['source']}, not from {source}; {advice}")
    if found["layout"] != layout.digest:
        raise UserError(f"{output}: was made with {OTHER_LAYOUT}; {advice}")
    try:
        return bool(found == _stamp(source, layout))
    except RecordError:  # told when it is its turn
        return False
