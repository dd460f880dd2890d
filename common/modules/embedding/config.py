"""Configures embedding tables that are sharded over the ranks."""

import re
from typing import Annotated, Literal

import pydantic

from common.optimizers.config import OptimizerConfig
from core.config.base_config import BaseConfig
from core.config.numbers import NumRows, PositiveFloat32, Size

# File systems allow 255 bytes, of which an export uses some for its suffix.
_MAX_NAME_IN_BYTES = 200


class EmbeddingSnapshot(BaseConfig):
    """Source of pretrained rows for a table."""

    emb_name: str = pydantic.Field(min_length=1, description="Name of the table in the source.")
    embedding_snapshot_uri: str = pydantic.Field(
        min_length=1,
        description="Source of the rows: an export (the output directory of projects.twhin.export), a checkpoint "
        "(.../checkpoints/<step>), or the save_dir of a run, which means its newest complete checkpoint.",
    )


def _check_table_name(name: str) -> str:
    if not name or re.search(r"[./\x00-\x1f\x7f]", name):
        raise ValueError(
            "the name of a table must not be empty or contain '.', '/' or control characters, because it becomes part "
            "of the names of parameters and files"
        )
    if len(name.encode()) > _MAX_NAME_IN_BYTES:
        raise ValueError(f"the name of a table must not be longer than {_MAX_NAME_IN_BYTES} bytes in UTF-8")
    return name


TableName = Annotated[str, pydantic.AfterValidator(_check_table_name)]


class EmbeddingBagConfig(BaseConfig):
    """An embedding table."""

    name: TableName = pydantic.Field(
        description="Name of the table, and of its file in an export. It must not contain '.', '/' or control "
        "characters."
    )
    num_embeddings: NumRows = pydantic.Field(description="Number of rows.")
    embedding_dim: Size = pydantic.Field(
        description="Number of values in a row. The lookup kernels need a multiple of 4."
    )
    data_type: Literal["fp32", "fp16"] = pydantic.Field("fp32", description="Type of the values in memory.")
    init_scale: PositiveFloat32 = pydantic.Field(
        1e-3,
        le=10_000,
        description="Standard deviation of the normal distribution from which initial values are drawn.",
    )
    optimizer: OptimizerConfig = pydantic.Field(description="Optimizer of the table. It runs inside the backward pass.")
    sharding: Literal["table_wise", "row_wise", "column_wise"] | None = pydantic.Field(
        None, description="How to shard the table over the ranks; null lets TorchRec's planner decide."
    )
    pretrained: EmbeddingSnapshot | None = pydantic.Field(
        None,
        description="Pretrained rows. Rows that the source lacks are initialized randomly. A resume ignores this key.",
    )
    vocab: str | None = pydantic.Field(
        None,
        min_length=1,
        description="Parquet file with the columns entity and index that maps entities to rows. An export names rows "
        "by entity, and pretrained rows are matched by entity if both tables have a vocabulary; null identifies rows "
        "by index.",
    )


class LargeEmbeddingsConfig(BaseConfig):
    """The embedding tables of a model."""

    tables: list[EmbeddingBagConfig] = pydantic.Field(min_length=1, description="Tables of the model.")
    tables_to_log: list[str] | None = pydantic.Field(
        None, description="Tables whose mean row norm is logged with the train metrics; null for none."
    )

    @pydantic.model_validator(mode="after")
    def _fit_each_other(self) -> "LargeEmbeddingsConfig":
        names = [table.name for table in self.tables]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"several tables are named {', '.join(twice)}; names must differ")
        if len({table.embedding_dim for table in self.tables}) > 1:
            found = ", ".join(f"{table.name} {table.embedding_dim}" for table in self.tables)
            raise ValueError(f"embedding_dim differs ({found}), but all tables must have the same dimension")
        if unknown := [name for name in self.tables_to_log or () if name not in names]:
            raise ValueError(f"tables_to_log contains {', '.join(unknown)}, but the tables are {', '.join(names)}")
        return self
