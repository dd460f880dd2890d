"""Opens the ranker that a checkpoint holds, with everything that it needs to score rows of files."""

import dataclasses
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import torch

from common.checkpointing.manifest import CheckpointError
from common.checkpointing.reader import CheckpointReader
from common.distributed.world import World
from common.features.encoder import BINARY, CONTINUOUS, IDS, FeatureEncoder, embedding_key
from common.features.layout import FeatureLayout
from common.reader.column import Column
from common.reader.encoder import CombinedEncoder, Encoder
from common.reader.files import Files
from common.reader.gather import empty_column, gather
from common.reader.parquet import ParquetTable, RowGroup
from common.reader.reader import Columns
from core.config import load_config_from_yaml
from core.models.dense import DenseModel
from core.run.inputs import find_inputs, replace_values
from core.run.state import TrainingState
from core.run.tensors import load_averaged_model
from projects.home.recap.config import RecapConfig
from projects.home.recap.data.dataset import feature_columns, feature_tensors, layout_widths, sampling_rates
from projects.home.recap.data.schema import Feature, feature_widths, read_features
from projects.home.recap.model.heavy_ranker import HeavyRanker
from projects.home.recap.model.model_and_loss import ModelAndLoss
from projects.home.recap.model.small_embeddings import smallest_table_sizes

_CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class SavedRanker:
    """A trained ranker, and the features that it was trained on.

    Attributes:
      checkpoint: the checkpoint.
      step: number of steps that the ranker was trained for.
      digest: digest of the checkpoint.
      config: configuration of the run. Its paths of schemas, vocabularies and the like are those of the run's copies.
      ranker: the ranker in evaluation mode, with the moving averages of its weights if the run has them.
      features: features of the schema by name that predictions or metrics use; empty with configured features.
      encoder: encodes the configured features; None without.
    """

    checkpoint: Path
    step: int
    digest: str
    config: RecapConfig
    ranker: HeavyRanker
    features: Mapping[str, Feature]
    encoder: FeatureEncoder | None

    @property
    def columns(self) -> dict[Hashable, Column]:
        """The columns to read the features of the schema from; empty with configured features."""
        small_embeddings = self.config.model.small_embeddings
        num_ids = None if small_embeddings is None else smallest_table_sizes(small_embeddings)
        return feature_columns(self.features, num_ids)

    def open_table(
        self,
        files: Files,
        columns: Mapping[Hashable, Column] | None = None,
        encoders: Sequence[Encoder] = (),
        prepare: Callable[[RowGroup], RowGroup] | None = None,
    ) -> ParquetTable:
        """Open files with the features, and with additional columns and encoders.

        `prepare` is that of ParquetTable, and must keep the features.

        Raises:
          DataError: a file cannot be read, or lacks a column.
        """
        own = [] if self.encoder is None else [self.encoder]
        return ParquetTable(
            files,
            self.columns | dict(columns or {}),
            prepare=prepare,
            encoder=CombinedEncoder([*own, *encoders]) if own or encoders else None,
        )

    def inputs(self, group: RowGroup, begin: int, end: int, batch_size: int) -> dict[str, Any]:
        """Return the arguments of the ranker for rows of a decoded row group, on the CPU.

        Args:
          group: decoded row group of a table of open_table().
          begin: first row.
          end: the row after the last one, at most begin + batch_size.
          batch_size: size of the batch. Rows of zeros pad it.
        """
        rows, columns = np.arange(begin, end), self.columns
        tensors: Columns = {}
        for key in [*columns, *self._encoded_keys]:
            column = columns.get(key)
            out = empty_column(batch_size, group[key], column, pin_memory=False)
            gather(group[key], rows, column, out.numpy()[: end - begin])
            out[end - begin :] = 0
            tensors[key] = out if column is None else out.to(column.batch_dtype)
        return feature_tensors(tensors, self._embeddings)

    @property
    def _embeddings(self) -> dict[str, str]:
        names = () if self.encoder is None else self.encoder.layout.embeddings
        return {name: embedding_key(name) for name in names}

    @property
    def _encoded_keys(self) -> list[str]:
        return [] if self.encoder is None else [CONTINUOUS, BINARY, IDS, *self._embeddings.values()]


def load_saved_ranker(checkpoint: Path, device: torch.device = _CPU) -> SavedRanker:
    """Load the ranker of a checkpoint.

    Args:
      checkpoint: directory of the checkpoint.
      device: device of the ranker.

    Raises:
      UserError: the checkpoint is damaged, is not of a Heavy Ranker, or a file that the model needs is missing.
    """
    with CheckpointReader(checkpoint) as reader:
        state = TrainingState.from_checkpoint(reader)
        config = _saved_config(checkpoint, state)
        tasks = list(config.model.tasks)
        encoder = None if config.features is None else FeatureEncoder.open(config.features)
        layout: FeatureLayout | None = None if encoder is None else encoder.layout
        features = read_features(config.train_data, "train_data") if layout is None else {}
        widths = feature_widths(features) if layout is None else layout_widths(layout)
        _, calibration_rates = sampling_rates(config.train_data, tasks, evaluation=False)
        ranker = HeavyRanker(config.model, widths, calibration_rates, layout)
        model = ModelAndLoss(ranker, list(config.model.tasks.values())).to(device)
        load_averaged_model(DenseModel(model, World(0, 0, 1, device)), reader)
        model.eval().requires_grad_(False)
        if not _uses_discrete(config):
            features.pop("discrete", None)
        return SavedRanker(checkpoint, state.step, reader.digest, config, ranker, features, encoder)


def _uses_discrete(config: RecapConfig) -> bool:
    """Return whether predictions or metrics depend on the discrete features. A position is used only in training."""
    model, preprocess = config.model, [data.preprocess for data in config.data_sets().values()]
    return (
        model.small_embeddings is not None
        or bool(model.stratifiers)
        or any(each is not None and each.extract_features is not None for each in preprocess)
    )


def _saved_config(checkpoint: Path, state: TrainingState) -> RecapConfig:
    """Return the configuration of a checkpoint, with the paths of the run's copies of files."""
    if not state.config:  # an earlier version saved it
        config_file = checkpoint.absolute().parents[1] / "config.yaml"
        if not config_file.is_file():
            raise CheckpointError(
                f"{checkpoint}: an earlier version saved this checkpoint without its configuration, and {config_file} "
                "does not exist. Give the checkpoint in the save_dir of its run"
            )
        return load_config_from_yaml(RecapConfig, config_file)
    if "tasks" not in state.config.get("model", {}):
        raise CheckpointError(f"{checkpoint}: not a checkpoint of the Heavy Ranker, because its model has no tasks")
    try:
        # Strict validation accepts lists for tuples only from JSON text.
        config = RecapConfig.model_validate_json(json.dumps(state.config))
        paths = find_inputs(checkpoint, state.inputs)
        found = replace_values(state.config, config.input_files, paths)
        return RecapConfig.model_validate_json(json.dumps(found))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(
            f"{checkpoint}: its configuration is not one of this version of the Heavy Ranker: "
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from error
