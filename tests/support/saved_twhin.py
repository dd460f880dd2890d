"""Writes a small TwHIN run with a checkpoint, without training it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from common.checkpointing.writer import write_checkpoint
from projects.twhin.config import TwhinConfig
from projects.twhin.data.config import TwhinDataConfig
from projects.twhin.model.config import TwhinModelConfig
from tests.support.toy_twhin import scorer_of, table_rows


def with_vocabulary(config: TwhinModelConfig, path: Path) -> TwhinModelConfig:
    """Return the configuration with a vocabulary of the table user."""
    tables = [
        table.model_copy(update={"vocab": str(path) if table.name == "user" else None})
        for table in config.embeddings.tables
    ]
    return config.model_copy(update={"embeddings": config.embeddings.model_copy(update={"tables": tables})})


def write_run(
    save_dir: Path,
    config: TwhinModelConfig,
    step: int = 5,
    tables: Mapping[str, torch.Tensor] | None = None,
    data_root: str = "edges",
    **fields: Any,
) -> Path:
    """Write a run, and return its checkpoint.

    Args:
      save_dir: directory of the run.
      config: its model.
      step: step of the checkpoint.
      tables: rows of the tables; None for table_rows(). The operators are those of scorer_of(), in float32.
      data_root: edges of the training data.
      fields: other parts of the configuration.
    """
    data = TwhinDataConfig(data_root=data_root, global_batch_size=4, global_negatives=1)
    save_dir.mkdir(exist_ok=True)
    (save_dir / "config.yaml").write_text(TwhinConfig(model=config, train_data=data, **fields).pretty_print())
    rows_by_table = table_rows(config) if tables is None else tables
    tensors = {f"model.tables.embeddings.{name}.weight": rows.float() for name, rows in rows_by_table.items()}
    operators = scorer_of(config).float().state_dict()
    tensors |= {f"model.scorer.{name}": value for name, value in operators.items()}
    return write_checkpoint(save_dir / "checkpoints", step, tensors, {})
