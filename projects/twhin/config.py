"""Configuration of projects.twhin.main."""

from typing import Annotated, Any, ClassVar, Self

import pydantic

from common.process.environment import world_size_from_env
from core.config.names import PartitionName
from core.config.training import JobConfig
from projects.twhin.data.config import TwhinDataConfig
from projects.twhin.model.config import RankingConfig, TwhinModelConfig


def _form_of(validation_data: Any) -> str:
    """Return "single" for one evaluation set, or "named" for several sets keyed by name.

    The fields of a single set are not mappings, but the values of the named form are.
    """
    if not isinstance(validation_data, dict):
        return "single" if isinstance(validation_data, TwhinDataConfig) else "named"
    values = (validation_data[key] for key in TwhinDataConfig.model_fields if key in validation_data)
    return "single" if any(not isinstance(value, dict | TwhinDataConfig) for value in values) else "named"


_ValidationData = Annotated[
    Annotated[TwhinDataConfig, pydantic.Tag("single")]
    | Annotated[dict[PartitionName, TwhinDataConfig], pydantic.Tag("named")],
    pydantic.Discriminator(_form_of),
]


class TwhinConfig(JobConfig):
    """The whole configuration of a run of projects.twhin.main."""

    evaluation_only_keys: ClassVar[frozenset[str]] = frozenset({"validation_data", "metrics"})

    model: TwhinModelConfig = pydantic.Field(description="The model.")
    train_data: TwhinDataConfig = pydantic.Field(description="Edges to train on.")
    validation_data: _ValidationData = pydantic.Field(
        {},
        description="Edges to evaluate on: several partitions keyed by name, or a single one, named validation.",
    )
    metrics: RankingConfig = pydantic.Field(RankingConfig(), description="Metrics to compute on every partition.")

    @pydantic.model_validator(mode="after")
    def _tables_can_be_trained(self) -> "TwhinConfig":
        """Reject options that do not work with tables that have optimizers of their own."""
        problems = []
        if self.train_data.global_negatives + self.train_data.in_batch_negatives == 0:
            problems.append(
                "train_data: global_negatives and in_batch_negatives are both 0, so edges have no negatives to be "
                "compared with. Raise one of them"
            )
        if self.runtime.enable_amp and self.runtime.amp_dtype == "float16":
            problems.append(
                "runtime.amp_dtype: float16 needs a GradScaler, which cannot unscale the gradients of tables because "
                "tables are updated in the backward pass of their lookups. Use bfloat16"
            )
        if self.training.num_micro_batches > 1:
            problems.append(
                f"training.gradient_accumulation is {self.training.num_micro_batches}, but the gradients of "
                "tables cannot be accumulated. Remove this key and raise the batch size instead"
            )
        if self.training.max_grad_norm is not None:
            problems.append(
                "training.max_grad_norm: tables are updated in the backward pass of their lookups, before the norm of "
                "all gradients is known. Remove this key or lower the learning rates"
            )
        if self.training.ema_decay is not None:
            problems.append("training.ema_decay: tables have no moving average. Remove this key")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def data_sets(self) -> dict[str, TwhinDataConfig]:
        """Return the data sets keyed by their key paths in the configuration, training data first."""
        single = isinstance(self.validation_data, TwhinDataConfig)
        return {"train_data": self.train_data} | {
            "validation_data" if single else f"validation_data.{name}": data
            for name, data in self.evaluation_data.items()
        }

    @property
    def evaluation_data(self) -> dict[str, TwhinDataConfig]:
        """Data of each evaluation set, keyed by partition name."""
        data = self.validation_data
        return {"validation": data} if isinstance(data, TwhinDataConfig) else data

    def identity(self) -> dict[str, Any]:
        """Return the settings that a resume must not change.

        Excludes settings that control only how tables are sharded, named, logged or initialized, and how much data is
        prefetched. The batch size is that of all processes together.
        """
        identity = super().identity()
        identity["model"]["relations"] = [relation.model_dump() for relation in self.model.relation_list]
        del identity["model"]["embeddings"]["tables_to_log"]
        for table in identity["model"]["embeddings"]["tables"]:
            for key in ("sharding", "vocab", "pretrained"):
                del table[key]
        data = identity["train_data"]
        for key in ("per_replica_batch_size", "prefetch_batches", "decode_threads"):
            del data[key]
        trained = self.as_trained_on(world_size_from_env()).train_data
        data |= {"global_batch_size": trained.global_batch_size, "lanes": trained.lanes}
        return identity

    def as_trained_on(self, world_size: int, /) -> Self:
        """Return the configuration with the batch and the lanes of a run on `world_size` processes."""
        data = self.train_data
        sizes = {
            "per_replica_batch_size": None,
            "global_batch_size": data.batch_size(world_size),
            "lanes": data.num_lanes(world_size),
        }
        return self.model_copy(update={"train_data": data.model_copy(update=sizes)})

    @property
    def identity_hints(self) -> dict[str, str]:
        """Advice for identity keys that differ from those of the run, by key path."""
        if self.train_data.per_replica_batch_size is None:
            return {}
        advice = (
            "this is the batch size of all processes together. To resume with another number of processes, replace "
            "per_replica_batch_size with the run's global_batch_size"
        )
        return {"train_data.global_batch_size": advice}
