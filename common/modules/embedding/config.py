"""Configuration of embedding tables that are sharded over the ranks."""

from typing import Literal

import pydantic

from common.optimizers.config import OptimizerConfig
from core.config.base_config import BaseConfig


class EmbeddingSnapshot(BaseConfig):
    """Rows that a table starts from."""

    emb_name: str = pydantic.Field(min_length=1, description="Name of the table there.")
    embedding_snapshot_uri: str = pydantic.Field(
        min_length=1,
        description="An export (the directory that projects.twhin.export wrote), a checkpoint "
        "(.../checkpoints/<step>), or the save_dir of a run: its newest complete checkpoint.",
    )


class EmbeddingBagConfig(BaseConfig):
    """An embedding table."""

    name: str = pydantic.Field(pattern=r"^[^./]+$", description="Name of the table; without '.' and '/'.")
    num_embeddings: int = pydantic.Field(gt=0, le=10**12, description="Rows.")
    embedding_dim: pydantic.PositiveInt = pydantic.Field(
        description="Numbers a row; a multiple of 4, as the kernels that look rows up need it."
    )
    data_type: Literal["fp32", "fp16"] = pydantic.Field("fp32", description="Type of the numbers in memory.")
    init_scale: pydantic.PositiveFloat = pydantic.Field(
        1e-3, description="Standard deviation of the normal distribution that initial values are drawn from."
    )
    optimizer: OptimizerConfig = pydantic.Field(description="What updates the table, within the backward pass.")
    sharding: Literal["table_wise", "row_wise", "column_wise"] | None = pydantic.Field(
        None, description="How the table is spread over the processes; null: as TorchRec's planner likes best."
    )
    pretrained: EmbeddingSnapshot | None = pydantic.Field(
        None, description="Start from these rows; those that are not there are drawn. A resume ignores it."
    )
    vocab: str | None = pydantic.Field(
        None,
        min_length=1,
        description="Parquet file with the columns entity and index: whose the rows are. An export names them so, and "
        "pretrained rows are found by entity where both have one; null: rows are known by their index.",
    )


class LargeEmbeddingsConfig(BaseConfig):
    """The embedding tables of a model."""

    tables: list[EmbeddingBagConfig] = pydantic.Field(min_length=1, description="The tables.")
    tables_to_log: list[str] | None = pydantic.Field(
        None, description="Tables whose mean norm of a row is logged with the train metrics; null: none."
    )

    @pydantic.model_validator(mode="after")
    def _fit_each_other(self) -> "LargeEmbeddingsConfig":
        names = [table.name for table in self.tables]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"several tables are called {', '.join(twice)}; names must differ")
        if len({table.embedding_dim for table in self.tables}) > 1:
            found = ", ".join(f"{table.name} {table.embedding_dim}" for table in self.tables)
            raise ValueError(f"embedding_dim differs ({found}); tables of one collection have one dimension")
        if unknown := [name for name in self.tables_to_log or () if name not in names]:
            raise ValueError(f"tables_to_log has {', '.join(unknown)}; the tables are {', '.join(names)}")
        return self
