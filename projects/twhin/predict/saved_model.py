"""Opens the model of a checkpoint: first its configuration and names, then its tables and operators."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from common.checkpointing.reader import CheckpointReader
from projects.twhin.config import TwhinConfig
from projects.twhin.data.relations import Relations
from projects.twhin.model.relations import build_relations
from projects.twhin.model.saved import check_table_sizes, read_scorer, read_table
from projects.twhin.model.scorer import EdgeScorer
from projects.twhin.predict.names import EntityNames
from projects.twhin.saved_config import read_run_config


@dataclass(frozen=True)
class SavedRun:
    """Describes a model whose tables have not been read.

    Attributes:
      config: configuration of the run.
      relations: relations of the model.
      names: names of the entities.
    """

    config: TwhinConfig
    relations: Relations
    names: EntityNames

    @classmethod
    def open(cls, checkpoint: Path) -> "SavedRun":
        """Read the configuration of the run that wrote a checkpoint, and the vocabularies.

        Raises:
          ConfigError: the configuration or a file that it names cannot be read.
        """
        config = read_run_config(checkpoint)
        relations = build_relations(config.model)
        return cls(config, relations, EntityNames(config.model, relations))


@dataclass(frozen=True)
class SavedModel:
    """The tensors of a model in host memory.

    Attributes:
      scorer: scorer with the operators of the relations.
      tables: tables by name, [rows, dim], float32.
    """

    scorer: EdgeScorer
    tables: Mapping[str, torch.Tensor]

    @classmethod
    def read(cls, checkpoint: CheckpointReader, run: SavedRun) -> "SavedModel":
        """Read the tensors of a checkpoint.

        Raises:
          UserError: the checkpoint is damaged or of another run, or there is too little memory for its tables.
        """
        sizes = check_table_sizes(checkpoint, run.config.model)
        scorer = read_scorer(checkpoint, run.config.model, run.relations)
        tables = {name: torch.from_numpy(read_table(checkpoint, name, sizes[name])) for name in run.config.model.tables}
        return cls(scorer, tables)

    def look_up(self, ids: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return rows by table, [n, dim], float32, for ids by table, [n], int64."""
        return {table: self.tables[table].index_select(0, rows) for table, rows in ids.items()}
