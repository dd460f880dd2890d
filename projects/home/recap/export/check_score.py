"""Checks that score.py encodes columns of the data as the trainer's reader does."""

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from common.errors import UserError
from common.reader.files import DataError, Files
from common.reader.parquet_file import open_parquet
from common.reader.vectors import with_lists
from projects.home.recap.data.inputs import find_files
from projects.home.recap.export.encoding import ignored_features
from projects.home.recap.export.flat_ranker import flatten, ranker_inputs
from projects.home.recap.export.score import Ranker
from projects.home.recap.saved import SavedRanker

logger = logging.getLogger(__name__)

_NUM_ROWS = 200


def check_score(saved: SavedRanker, out: Path) -> None:
    """Compare the inputs that score.py and the reader make from rows of the validation or the training data.

    Logs that nothing is compared if neither can be read.

    Args:
      saved: the ranker.
      out: its export.

    Raises:
      UserError: an input differs, or score.py refuses a row.
    """
    partitions = [f"validation_data.{name}" for name in saved.config.validation_data][:1]
    for key_path in [*partitions, "train_data"]:
        try:
            files = find_files(saved.config.data_sets()[key_path], key_path)
            expected, columns = _read(saved, files)
        except DataError as error:
            logger.info("%s cannot be read to check score.py: %s", key_path, error)
            continue
        _compare(Ranker(out), columns, expected, key_path)
        logger.info("score.py encodes rows of %s as the trainer does", key_path)
        return


def _read(saved: SavedRanker, files: Files) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """Return the inputs of the ranker for the first rows, and the columns of these rows."""
    table = saved.open_table(files)
    group = next(group for group, rows in enumerate(table.rows_per_group) if rows)
    num_rows = min(int(table.rows_per_group[group]), _NUM_ROWS)
    arguments = saved.inputs(table.decode(group), 0, num_rows, num_rows)
    features = saved.columns.values()
    names = [column.name for column in features] if saved.encoder is None else saved.encoder.columns
    for path in files.paths:
        with open_parquet(path) as file:
            for own in range(file.metadata.num_row_groups):
                if file.metadata.row_group(own).num_rows:
                    raw = with_lists(file.read_row_group(own, columns=names)).slice(0, num_rows)
                    columns = {name: _values(raw.column(name)) for name in names}
                    return _without_position(saved, flatten(arguments, ranker_inputs(saved))), columns
    raise AssertionError("the table has rows")


def _without_position(saved: SavedRanker, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the inputs with ids of 0 for features that the ranker ignores, which score.py doesn't encode."""
    if saved.encoder is not None:
        for lookup in saved.encoder.layout.lookups:
            if lookup.feature in ignored_features(saved.config.model) and "ids" in inputs:
                inputs["ids"][:, lookup.begin : lookup.end] = 0
    return inputs


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
