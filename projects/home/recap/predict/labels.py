"""Finds the labels of the input, if it has any, and reads them and their weights as an evaluation does."""

import functools
import logging
from collections.abc import Callable, Collection, Hashable
from typing import Any

import numpy as np
import torch

from common.errors import UserError
from common.features.group_encoder import GROUPS, GroupEncoder
from common.process.memory import memory_shortage
from common.reader.column import Column
from common.reader.encoder import Encoder
from common.reader.parquet import RowGroup
from core.metrics.exact import exact_bytes
from core.metrics.grouped_rows import grouped_bytes
from core.metrics.multi_task import MultiTaskMetrics
from projects.home.recap.config import RecapConfig
from projects.home.recap.data.config import Preprocess, RecapDataConfig
from projects.home.recap.data.dataset import sampling_rates
from projects.home.recap.data.labels import LabelBuilder
from projects.home.recap.data.preparation import LABELS, REFERENCES, WEIGHT, ColumnsByName, Extracted, Preparation
from projects.home.recap.saved import SavedRanker

logger = logging.getLogger(__name__)


class LabeledInput:
    """Labels, weights and groups of the input, and the metrics to compute with them.

    Attributes:
      columns: additional columns to read.
      encoders: encoders of additional columns.
      prepare: prepares decoded row groups (ParquetTable).
      tasks: tasks that have labels.
      make_metrics: creates metrics without examples, on a device.
    """

    def __init__(self, saved: SavedRanker, data: RecapDataConfig, tasks: list[str], names: Collection[str]) -> None:
        """Select the columns.

        Args:
          saved: the ranker.
          data: data set whose weights, sampling rates and tasks apply, without training's own preprocessing.
          tasks: tasks that have labels.
          names: names of the columns that every file has.
        """
        config = saved.config
        by_name = ColumnsByName(data, saved.features, "the data set")
        self.tasks = tasks
        self.prepare = Preparation(data, tasks, by_name, reference=True)
        self.columns: dict[Hashable, Column] = {
            key: column for key, column in self.prepare.columns.items() if not isinstance(key, Extracted)
        }
        group_by = config.metrics.group_by if config.metrics.group_by in names else None
        self.encoders: list[Encoder] = [] if group_by is None else [GroupEncoder(group_by, "metrics.group_by")]
        weight_rates, _ = sampling_rates(data, tasks, evaluation=True)
        self._build = LabelBuilder(weight_rates)
        self._positions = [list(config.model.tasks).index(task) for task in tasks]
        self._strata = [(each.index, each.value) for each in config.model.stratifiers or ()]
        self.make_metrics: Callable[[torch.device], MultiTaskMetrics] = functools.partial(
            MultiTaskMetrics,
            tasks,
            evaluation_tasks=[task for task in data.evaluation_tasks if task in tasks],
            strata=[each.name for each in config.model.stratifiers or ()],
            thresholds=config.metrics.thresholds,
            exact=config.metrics.exact,
            has_reference=data.reference_probability_prefix is not None,
            ndcg_at=None if group_by is None else config.metrics.ndcg_at,
        )

    def read(self, group: RowGroup, begin: int, end: int) -> dict[str, torch.Tensor]:
        """Return what metrics need for rows of a row group, except predictions: see MultiTaskMetrics.update()."""
        columns: dict[Any, torch.Tensor] = {
            key: torch.from_numpy(np.array(group[key][begin:end]))
            for key in (LABELS, WEIGHT, REFERENCES)
            if key in group
        }
        labels = self._build(columns, torch.ones(end - begin))
        outputs = {name: tensor for name, tensor in labels._asdict().items() if tensor is not None}
        if self.encoders:
            outputs[GROUPS] = torch.from_numpy(np.array(group[GROUPS][begin:end]))
        if self._strata:
            discrete = group["discrete"][begin:end]
            strata = np.stack([discrete[:, index] == value for index, value in self._strata], axis=1)
            outputs["strata"] = torch.from_numpy(strata)
        return outputs

    def chosen(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the columns of the tasks that have labels, given those of all tasks: [batch, tasks]."""
        return logits[:, self._positions]


def find_labels(saved: SavedRanker, names: Collection[str], num_rows: int) -> LabeledInput | None:
    """Return the labels of the input, or None if it has none.

    Weights, sampling rates and tasks are those of the first data set of validation_data, or else of train_data.

    Args:
      saved: the ranker.
      names: names of the columns that every file has.
      num_rows: number of rows of the input.

    Raises:
      UserError: there is too little memory for the metrics.
    """
    config = saved.config
    key_path, data = list(config.data_sets().items())[:2][-1]
    extract = data.preprocess.extract_features if data.preprocess is not None else None
    known = {*names, *(row.name for row in (extract.extract_feature_table if extract is not None else ()))}
    tasks = [task for task in config.model.tasks if task in known]
    if not tasks:
        return None
    prefix = data.reference_probability_prefix
    data = data.model_copy(
        update={
            # Sampling and rectified labels are for training.
            "preprocess": Preprocess(extract_features=extract),
            "weight_column": data.weight_column if data.weight_column in known else None,
            "reference_probability_prefix": prefix if all(f"{prefix}{task}" in known for task in tasks) else None,
        }
    )
    weights = f"weighted by {data.weight_column}" if data.weight_column is not None else "without a weight column"
    logger.info(
        "the input has labels of %d of %d tasks, so metrics are computed as for %s, %s (--no_metrics ignores labels)",
        len(tasks),
        len(config.model.tasks),
        key_path,
        weights,
    )
    _check_memory(config, len(tasks), num_rows)
    return LabeledInput(saved, data, tasks, names)


def _check_memory(config: RecapConfig, tasks: int, num_rows: int) -> None:
    """Raise UserError if one process cannot hold what metrics keep of all predictions."""
    needed = 0
    if config.metrics.exact:
        needed += exact_bytes(num_rows, tasks, 1 + len(config.model.stratifiers or ()), world_size=1)
    if config.metrics.group_by is not None:
        needed += grouped_bytes(num_rows, tasks, world_size=1)
    if shortage := memory_shortage(needed, processes=1):
        raise UserError(
            f"metrics.exact or metrics.group_by of the run: keeping the predictions for {num_rows:,} rows {shortage}. "
            "Use --no_metrics, or predict fewer rows at a time"
        )
