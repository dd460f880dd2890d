"""Checks that score.py encodes columns of the data as the trainer's reader does."""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from common.errors import UserError
from common.reader.files import Files
from common.reader.parquet_file import open_parquet
from common.reader.vectors import with_lists
from projects.home.recap.export.encoding import ignored_features
from projects.home.recap.export.rows import DataRows
from projects.home.recap.export.score import Ranker
from projects.home.recap.saved import SavedRanker

logger = logging.getLogger(__name__)


def check_score(saved: SavedRanker, data: DataRows, out: Path) -> None:
    """Compare the inputs that score.py makes from columns with those that the reader has made from the same rows.

    Args:
      saved: the ranker.
      data: rows of a data set, as the reader has encoded them.
      out: the export of the ranker.

    Raises:
      UserError: an input differs, or score.py refuses a row.
    """
    columns = _columns(saved, data.files, len(next(iter(data.inputs.values()))))
    _compare(Ranker(out), columns, _without_position(saved, data.inputs), data.key_path)
    logger.info("score.py encodes rows of %s as the trainer does", data.key_path)


def _columns(saved: SavedRanker, files: Files, num_rows: int) -> dict[str, object]:
    """Return the columns of the first rows of files, which are in one row group."""
    names = [column.name for column in saved.columns.values()] if saved.encoder is None else saved.encoder.columns
    for path in files.paths:
        with open_parquet(path) as file:
            for group in range(file.metadata.num_row_groups):
                if file.metadata.row_group(group).num_rows:
                    rows = with_lists(file.read_row_group(group, columns=names)).slice(0, num_rows)
                    return {name: _values(rows.column(name)) for name in names}
    raise AssertionError("the files have rows")


def _without_position(saved: SavedRanker, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return inputs with ids of 0 for features that the ranker ignores, which score.py doesn't encode."""
    ignored = ignored_features(saved.config.model)
    if saved.encoder is None or "ids" not in inputs:
        return dict(inputs)
    ids = inputs["ids"].clone()
    for lookup in saved.encoder.layout.lookups:
        if lookup.feature in ignored:
            ids[:, lookup.begin : lookup.end] = 0
    return {**inputs, "ids": ids}


def _values(column: pa.ChunkedArray) -> object:
    """Return a column as score.py takes it. Python has no type for nanoseconds."""
    return column.to_numpy() if column.type == pa.timestamp("ns") else column.to_pylist()


def _compare(ranker: Ranker, columns: dict[str, object], expected: dict[str, torch.Tensor], source: str) -> None:
    try:
        found = ranker.encode(columns)
    except ValueError as error:
        raise UserError(f"score.py refuses rows of {source} that the trainer accepts: {error}") from error
    for name, values in expected.items():
        numbers = torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0) if values.is_floating_point() else values
        if (wrong := found[name] != numbers.numpy()).any():
            row, place = np.argwhere(wrong)[0]
            raise UserError(
                f"score.py encodes row {row} of {source} differently from the trainer: position {place} of the input "
                f"{name} is {found[name][row, place]}, but the trainer reads {numbers[row, place].item()}. Nothing was "
                "published"
            )
