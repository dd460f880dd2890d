"""Plans which files are converted, and converts one file of records to one Parquet file.

Every output carries a stamp that names its source and its format, so that a finished file is not converted twice.
examples.py decodes the records, and columns.py chooses the columns.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import UserError
from common.files.atomic_directory import target_of
from common.files.table_writer import TableWriter
from common.process.paths import user_path
from common.reader.files import (
    files_below,
    is_file_or_broken_link,
    paths_matching,
    split_pattern,
    unique_files,
    visible_files,
    warn_about_hidden,
)
from common.reader.vectors import Storage
from projects.home.recap.tools.conversion.examples import Absences, ExampleFeature, read_blocks
from projects.home.recap.tools.conversion.tfrecords import RecordError, read_records

DIFFERENT_FORMAT = "a different schema, tasks, features, truncation, masks, --lists or --float16"
"""Everything that changes OutputFormat.digest, for error messages."""

_STAMP = "recap.converted_from"
_SUFFIXES = (".gz", ".tfrecord", ".tfrecords")
_READ_AHEAD = 2**18
# File systems allow 255 bytes, of which TableWriter uses some for an unfinished file.
_MAX_NAME_IN_BYTES = 240


class FileConversion(NamedTuple):
    """A file to convert."""

    source: Path
    output: Path
    size: int
    """Size of the source in bytes."""


class OutputFormat(NamedTuple):
    """The columns of the output files, and how vectors are stored."""

    features: Sequence[ExampleFeature]
    vectors: Storage = "binary"

    @property
    def digest(self) -> str:
        """Digest that differs between formats."""
        # Existing outputs carry this digest, so the text must not change, even if the classes are renamed.
        features = ", ".join(_feature_text(feature) for feature in self.features)
        text = f"Layout(features=[{features}], vectors={self.vectors!r})"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _feature_text(feature: ExampleFeature) -> str:
    name, dtype, width = feature.column
    column = f"Column(name={name!r}, dtype={dtype!r}, width={width!r})"
    return (
        f"ExampleFeature(name={feature.name!r}, kind={feature.kind!r}, length={feature.length!r}, column={column}, "
        f"positions={feature.positions!r}, largest={feature.largest!r})"
    )


class ConversionPlan(NamedTuple):
    """The files to convert and the outputs that already exist."""

    conversions: list[FileConversion]
    finished: list[Path]
    """Outputs that are up to date."""
    unrelated: list[Path]
    """Outputs of earlier conversions whose sources are not among the inputs."""


def plan_conversion(inputs: str, out: Path, output_format: OutputFormat) -> ConversionPlan:
    """Find the files of records and choose an output for each: the same path below `out`, with the suffix `.parquet`.

    Args:
      inputs: a glob pattern, a file, or a directory, which stands for all files in it at any depth. Names that begin
        with a dot or an underscore are skipped unless `inputs` spells them out. Files in `out` are skipped.
      out: directory of the outputs.
      output_format: format of the outputs.

    Raises:
      UserError: no file matches, two files map to the same output, a file already has an output at another path, or
        an existing output comes from another source, has another format, or was not written by this command.
    """
    if not inputs:
        raise UserError("--inputs is empty. Give a glob pattern, a file, or a directory")
    try:
        base, sources = _find(inputs, out)
    except OSError as error:
        raise UserError(f"--inputs {inputs}: cannot read {error.filename}: {error.strerror}") from error
    if not sources:
        raise UserError(
            f"--inputs {inputs}: no file matches (current directory: {Path.cwd()}). Give a glob pattern, a file, or a "
            "directory outside --out"
        )
    source_of: dict[Path, Path] = {}
    plan = ConversionPlan([], [], [])
    for source in sources:
        output = out / _output_name(source.relative_to(base))
        if output in source_of:
            raise UserError(
                f"{source_of[output]} and {source} would both be converted to {output}. Convert them separately"
            )
        if len(os.fsencode(output.name)) > _MAX_NAME_IN_BYTES:
            raise UserError(f"{source}: the name is too long for an output. Use at most {_MAX_NAME_IN_BYTES} bytes")
        source_of[output] = source
        try:
            is_finished = output.exists() and _is_finished(source, output, output_format)
        except OSError as error:
            raise UserError(f"--out {out}: cannot read {output}: {error.strerror}") from error
        if is_finished:
            plan.finished.append(output)
        else:
            plan.conversions.append(FileConversion(source, output, _size(source)))
    folders = {folder for output in source_of for folder in output.parents}
    if both := sorted(folders & source_of.keys()):
        raise UserError(
            f"{source_of[both[0]]} would be converted to {both[0]}, which is also a folder of other outputs. Convert "
            "them separately"
        )
    plan.unrelated.extend(_unrelated_outputs(out, source_of))
    return plan


def _unrelated_outputs(out: Path, source_of: Mapping[Path, Path]) -> list[Path]:
    """Find earlier outputs below `out` whose sources are not planned.

    Args:
      out: directory of the outputs.
      source_of: planned source of each output.

    Raises:
      UserError: a planned source already has an output at another path.
    """
    planned = {str(source.resolve()): output for output, source in source_of.items()}
    unrelated = []
    for path in sorted(out.rglob("*.parquet")):
        if path in source_of or path.name.startswith(".") or (stamp := _read_stamp(path)) is None:
            continue
        if (source := stamp["source"]) in planned:
            raise UserError(
                f"{path} was converted from {source}, which would now also be converted to {planned[source]} because "
                "--inputs starts at another directory. Give the earlier --inputs, or another --out"
            )
        unrelated.append(path)
    return unrelated


def convert_file(
    source: Path, output: Path, output_format: OutputFormat, progress: Callable[[int, int], None]
) -> Absences:
    """Convert `source` to `output`, which appears or replaces an existing file when it is complete.

    Holds one row group in memory.

    Args:
      source: gzip'd or uncompressed TFRecord file of tf.Examples.
      output: Parquet file to write.
      output_format: format of `output`.
      progress: called after each block of rows with the bytes of `source` read and the rows written since the last
        call. An exception that it raises ends the conversion.

    Returns:
      The features that records lack.

    Raises:
      RecordError: `source` is truncated or corrupt, or a record does not match `output_format`.
      UserError: `output` cannot be written.
    """
    columns = [feature.column for feature in output_format.features]
    absences = Absences()
    stamp = json.dumps(_stamp(source, output_format))
    with _open(source) as file:
        read = 0
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            with TableWriter(output, columns, vectors=output_format.vectors, metadata={_STAMP: stamp}) as writer:
                for block in read_blocks(read_records(file), output_format.features, absences):
                    writer.write(block)
                    rows = len(next(iter(block.values())))
                    progress(file.tell() - read, rows)
                    read = file.tell()
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{output}: cannot write this file: {error}") from error
    return absences


def _find(inputs: str, out: Path) -> tuple[Path, list[Path]]:
    """Return the base directory of output paths, and the sorted files."""
    path = user_path(inputs)
    if path.is_file():
        return path.parent, [path]
    base, pattern = split_pattern(path)
    if path.is_dir():
        matches, hidden = files_below(path)
        # A directory may hold more than records. A pattern is explicit.
        matches = [file for file in matches if file.suffix not in (".parquet", ".json", ".yaml")]
        matches = [file for file in matches if is_file_or_broken_link(file)]
    else:
        matches, hidden = visible_files(paths_matching(base, pattern), base, pattern)
    inside = target_of(out)
    warn_about_hidden([file for file in hidden if not file.resolve().is_relative_to(inside)], inputs)
    return base, unique_files((file for file in matches if not file.resolve().is_relative_to(inside)), inputs)


def _output_name(path: Path) -> Path:
    name = path.name
    while name.endswith(_SUFFIXES) and name not in _SUFFIXES:
        name = name[: name.rindex(".")]
    return path.with_name(f"{name}.parquet")


def _size(source: Path) -> int:
    try:
        return source.stat().st_size
    except OSError:  # reported when the file is converted
        return 0


def _open(source: Path) -> IO[bytes]:
    try:
        return source.open("rb", buffering=_READ_AHEAD)
    except OSError as error:
        raise RecordError(f"cannot read this file: {error.strerror}") from error


def _stamp(source: Path, output_format: OutputFormat) -> dict[str, str | int]:
    """Return the stamp of an output: its source, as it is now, and its format."""
    try:
        with _open(source) as file:
            changed = os.fstat(file.fileno()).st_mtime_ns
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 16))
            tail = file.read().hex()  # in a gzip file, this includes a checksum of the contents
        path = str(source.resolve())
        return {"source": path, "size": size, "changed_ns": changed, "tail": tail, "layout": output_format.digest}
    except OSError as error:
        raise RecordError(f"cannot read this file: {error.strerror}") from error


def _read_stamp(output: Path) -> dict[str, Any] | None:
    """Read the stamp of a Parquet file; None if this command did not write the file."""
    if not output.is_file():  # opening a pipe would wait forever
        return None
    try:
        stamp: dict[str, Any] = json.loads((pq.read_metadata(output).metadata or {})[_STAMP.encode()])
    except (OSError, pa.ArrowException, KeyError):
        return None
    return stamp


def _is_finished(source: Path, output: Path, output_format: OutputFormat) -> bool:
    """Return True if `output` was converted from the current state of `source`.

    Raises:
      UserError: `output` comes from another source, has another format, or was not written by this command.
    """
    advice = "Give another --out, or remove the file"
    if (stamp := _read_stamp(output)) is None:
        raise UserError(f"{output} exists but was not written by this command. {advice}")
    if stamp["source"] != str(source.resolve()):
        raise UserError(f"{output} was converted from {stamp['source']}, not from {source}. {advice}")
    if stamp["layout"] != output_format.digest:
        raise UserError(f"{output} was converted with {DIFFERENT_FORMAT}. {advice}")
    try:
        return bool(stamp == _stamp(source, output_format))
    except RecordError:  # reported when the file is converted
        return False
