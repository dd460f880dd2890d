"""TwHIN's configuration."""

from typing import Annotated, Any, ClassVar

import pydantic

from common.process.environment import world_size_from_env
from core.config.training import JobConfig
from projects.twhin.data.config import TwhinDataConfig
from projects.twhin.model.config import RankingConfig, TwhinModelConfig


def _kind(validation_data: Any) -> str:
    """A partition's own fields are no mappings, partitions by name are."""
    if not isinstance(validation_data, dict):
        return "single" if isinstance(validation_data, TwhinDataConfig) else "named"
    own = (validation_data[key] for key in TwhinDataConfig.model_fields if key in validation_data)
    return "single" if any(not isinstance(value, dict | TwhinDataConfig) for value in own) else "named"


_Partitions = Annotated[
    Annotated[TwhinDataConfig, pydantic.Tag("single")] | Annotated[dict[str, TwhinDataConfig], pydantic.Tag("named")],
    pydantic.Discriminator(_kind),
]


class TwhinConfig(JobConfig):
    """What a run of projects.twhin.main reads."""

    evaluation_only_keys: ClassVar[frozenset[str]] = frozenset({"validation_data", "metrics"})

    model: TwhinModelConfig = pydantic.Field(description="The model.")
    train_data: TwhinDataConfig = pydantic.Field(description="Edges to train on.")
    validation_data: _Partitions = pydantic.Field(
        {}, description="Edges to evaluate on: partitions by name, or a single one, called validation."
    )
    metrics: RankingConfig = pydantic.Field(RankingConfig(), description="What to measure on every partition.")

    @pydantic.model_validator(mode="after")
    def _tables_can_be_trained(self) -> "TwhinConfig":
        """What can't be done to tables that are updated within the backward pass."""
        problems = []
        if self.train_data.global_negatives + self.train_data.in_batch_negatives == 0:
            problems.append(
                "train_data: global_negatives and in_batch_negatives are both 0: there is nothing to tell edges from; "
                "raise one of them"
            )
        if self.runtime.enable_amp and self.runtime.amp_dtype == "float16":
            problems.append(
                "runtime.amp_dtype: float16 needs a GradScaler, which would see the gradients of tables too late: they "
                "are updated within the backward pass; use bfloat16"
            )
        if self.training.micro_batches > 1:
            problems.append(
                f"training.gradient_accumulation: {self.training.micro_batches} given, but tables are updated within "
                "each backward pass; leave it out, and raise the batch size instead"
            )
        if self.training.max_grad_norm is not None:
            problems.append(
                "training.max_grad_norm: tables are updated within the backward pass, before the norm of all gradients "
                "is known; leave it out, or lower the learning rates"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def data_sets(self) -> dict[str, TwhinDataConfig]:
        """By their paths in the configuration, the training data first."""
        single = isinstance(self.validation_data, TwhinDataConfig)
        return {"train_data": self.train_data} | {
            "validation_data" if single else f"validation_data.{name}": partition
            for name, partition in self.partitions.items()
        }

    @property
    def partitions(self) -> dict[str, TwhinDataConfig]:
        """What to evaluate on, by name."""
        data = self.validation_data
        return {"validation": data} if isinstance(data, TwhinDataConfig) else data

    def identity(self) -> dict[str, Any]:
        """As the base's, less what training doesn't depend on: how tables are spread, named and logged, where they
        started, and how much data is held ready. The batch is that of all processes together."""
        identity = super().identity()
        identity["model"]["relations"] = [relation.model_dump() for relation in self.model.relation_list]
        del identity["model"]["embeddings"]["tables_to_log"]
        for table in identity["model"]["embeddings"]["tables"]:
            for key in ("sharding", "vocab", "pretrained"):
                del table[key]
        data = identity["train_data"]
        for key in ("per_replica_batch_size", "prefetch_batches", "decode_threads"):
            del data[key]
        data["global_batch_size"] = self.train_data.batch_size(world_size_from_env())
        data["lanes"] = self.train_data.num_lanes(world_size_from_env())
        return identity

    @property
    def identity_hints(self) -> dict[str, str]:
        """As the base's."""
        if self.train_data.per_replica_batch_size is None:
            return {}
        of_all = (
            "that of all processes together: with another number of them, give global_batch_size, as it is in the run, "
            "instead of per_replica_batch_size"
        )
        return {"train_data.global_batch_size": of_all}
