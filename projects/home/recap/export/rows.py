"""Chooses the rows on which an export is compared with the trainer: rows of data, and edge cases."""

import logging
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from common.features.config import MISSING_ROW, UNKNOWN_ROW
from common.features.layout import NO_ROW, FeatureLayout, Lookup
from common.reader.files import DataError, Files
from projects.home.recap.data.inputs import find_files
from projects.home.recap.export.compare import ComparedRows
from projects.home.recap.export.flat_ranker import RankerInput, flatten
from projects.home.recap.model.small_embeddings import smallest_table_sizes
from projects.home.recap.saved import SavedRanker

logger = logging.getLogger(__name__)

_NUM_ROWS = 1000
_MAX_GENERATED_ID = 2

_HUGE = 1e30

_MISSING = {
    "every number is NaN": math.nan,
    "every number is infinite": math.inf,
    "every number is minus infinity": -math.inf,
}
_EXTREME = {
    "every number is 1e30": _HUGE,
    "every number is -1e30": -_HUGE,
    "every number is the largest one of float32": torch.finfo(torch.float32).max,
    "every number is 1e-40": 1e-40,
}


class DataRows(NamedTuple):
    """The first rows of a data set.

    Attributes:
      key_path: path of the data set in the configuration.
      files: its files.
      inputs: inputs of the ranker by name, [rows, width].
    """

    key_path: str
    files: Files
    inputs: dict[str, torch.Tensor]


def read_rows(saved: SavedRanker, inputs: Sequence[RankerInput]) -> DataRows | None:
    """Return the first rows of the first row group that has any, at most 1,000.

    They are from the first partition of the validation data, else from the training data; None if neither can be read.
    """
    config = saved.config
    partitions = [f"validation_data.{name}" for name in config.validation_data][:1]
    for key_path in [*partitions, "train_data"]:
        try:
            files = find_files(config.data_sets()[key_path], key_path)
            table = saved.open_table(files)
            group = next(group for group, rows in enumerate(table.rows_per_group) if rows)
            num_rows = min(int(table.rows_per_group[group]), _NUM_ROWS)
            arguments = saved.inputs(table.decode(group), 0, num_rows, num_rows)
        except DataError as error:
            logger.info("%s cannot be read for the comparison: %s", key_path, error)
        else:
            return DataRows(key_path, files, flatten(arguments, inputs))
    return None


def choose_rows(saved: SavedRanker, inputs: Sequence[RankerInput], data: DataRows | None) -> tuple[ComparedRows, str]:
    """Return edge cases and rows of data, which are generated if `data` is None, and where the data is from."""
    if data is None:
        source, values_of = "generated data", {each.name: _generated(each) for each in inputs}
    else:
        source, values_of = f"{data.key_path} ({data.files.description})", data.inputs
    base = {name: values[:1] for name, values in values_of.items()}
    edges = dict(_edge_rows(saved, base))
    num_rows = len(next(iter(values_of.values())))
    rows = {name: torch.cat([*(edge[name] for edge in edges.values()), values]) for name, values in values_of.items()}
    names = [*edges, *(f"row {row} of {source}" for row in range(num_rows))]
    return ComparedRows(rows, names, num_alone=len(edges) + 1), source


def _generated(each: RankerInput) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if each.dtype != torch.float32:
        return torch.randint(_MAX_GENERATED_ID, (_NUM_ROWS, each.width), generator=generator).to(each.dtype)
    numbers = torch.randn(_NUM_ROWS, each.width, generator=generator)
    return (numbers > 0).float() if each.name == "binary" else numbers


def _edge_rows(saved: SavedRanker, base: dict[str, torch.Tensor]) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Yield the name and the inputs of each edge case, [1, width]. They differ from `base` as their names say."""
    yield "zeros", {name: torch.zeros_like(values) for name, values in base.items()}
    numbers = {name: values for name, values in base.items() if values.dtype == torch.float32}
    for what, number in _MISSING.items():
        yield what, base | {name: torch.full_like(values, number) for name, values in numbers.items()}
    numbers.pop("binary", None)  # 0 or 1, or missing
    for what, number in _EXTREME.items():
        yield what, base | {name: torch.full_like(values, number) for name, values in numbers.items()}
    signs = {name: 1 - 2 * (torch.arange(values.shape[1]) % 2.0)[None] for name, values in numbers.items()}
    yield "numbers alternate between 1e30 and -1e30", base | {name: _HUGE * each for name, each in signs.items()}
    for name, values in numbers.items():
        one = torch.cat([torch.full_like(values[:, :1], _HUGE), values[:, 1:]], dim=1)
        yield f"the first number of {name} is 1e30", base | {name: one}
    if "ids" in base and saved.encoder is not None:
        for what, ids in _edge_ids(saved.encoder.layout, base["ids"]):
            yield what, base | {"ids": ids}
    if "discrete" in base and saved.config.model.small_embeddings is not None:
        discrete = base["discrete"].clone()
        for column, size in smallest_table_sizes(saved.config.model.small_embeddings).items():
            discrete[:, column] = size - 1
        yield "the last id of every table", base | {"discrete": discrete}


def _edge_ids(layout: FeatureLayout, base: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    num_rows = {table.name: table.num_rows for table in layout.tables}

    def fill(lookup: Lookup, ids: torch.Tensor, first: int, others: int, length: int) -> None:
        """Write the first `length` values: `first` for their first hash, `others` for the second one; then NO_ROW."""
        own = ids[:, lookup.begin : lookup.end].view(lookup.length, lookup.num_hashes)
        own[:] = NO_ROW
        own[:length] = others
        own[:length, 0] = first

    missing, unknown, last, empty = (base.clone() for _ in range(4))
    for lookup in layout.lookups:
        fill(lookup, missing, MISSING_ROW, NO_ROW, 1)
        fill(lookup, unknown, UNKNOWN_ROW, NO_ROW, lookup.length)
        end = num_rows[lookup.table] - 1
        fill(lookup, last, end, end, lookup.length)
        if lookup.pooling is not None:
            fill(lookup, empty, NO_ROW, NO_ROW, 0)
    yield "every category is missing", missing
    yield "every category is unknown", unknown
    yield "the last row of every table", last
    yield "every list is empty", empty
