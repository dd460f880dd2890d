"""What every training program can be told: RuntimeConfig (how it computes) and TrainingConfig (how long, how often).

What is trained (model, data, optimizer) is configured by each project.
"""

import re
from typing import Any, ClassVar, Literal

import pydantic

from common.wandb import WandbConfig
from core.config.base_config import BaseConfig


class RuntimeConfig(BaseConfig):
    """How the program computes. May change between a run and its resume."""

    wandb: WandbConfig | None = pydantic.Field(
        None, description="Weights & Biases; null: measurements go to metrics.jsonl alone."
    )
    enable_tensorfloat32: bool = pydantic.Field(
        False, description="Let CUDA round the inputs of float32 matrix products and convolutions to TF32."
    )
    enable_amp: bool = pydantic.Field(False, description="Run forward passes under autocast to amp_dtype.")
    amp_dtype: Literal["bfloat16", "float16"] = pydantic.Field(
        "bfloat16", description="Type of autocast. float16 is trained with a GradScaler, bfloat16 needs none."
    )
    seed: int = pydantic.Field(
        0, ge=0, lt=2**32, description="Seed of initial weights, dropout and the order of examples."
    )
    deterministic: bool = pydantic.Field(
        False,
        description="Refuse operations without a deterministic implementation, and keep DDP's buckets fixed: "
        "bit-equal repeats on CUDA and on three or more ranks, somewhat slower.",
    )
    process_group_timeout_in_s: float = pydantic.Field(
        600.0,
        ge=1,
        le=7 * 24 * 3600,
        description="Longest time that a collective may wait for the other ranks, in seconds.",
    )
    grace_period_in_s: float = pydantic.Field(
        25.0,
        gt=0,
        le=24 * 3600,
        description="Longest time from SIGTERM or SIGINT to the end, in seconds: a process that has not saved and "
        "ended by then tells what it waits for and ends with status 1. Less than torchrun's --shutdown-timeout (30).",
    )
    hang_dump_after_in_s: float | None = pydantic.Field(
        300.0,
        gt=0,
        le=7 * 24 * 3600,
        description="When a step, a batch of an evaluation or what else happens beside them takes longer than so many "
        "seconds, every rank writes the stacks of its threads to standard error; null: never.",
    )


class CheckpointKeepBestConfig(BaseConfig):
    """Which checkpoints are the best."""

    partition: str = pydantic.Field(min_length=1, description="Name of the evaluated data, such as validation.")
    metric: str = pydantic.Field(min_length=1, description="Name of the metric in its evaluations, such as mean/auroc.")
    mode: Literal["max", "min"] = pydantic.Field(description="Whether large values are good, or small ones.")
    top_k: pydantic.PositiveInt = pydantic.Field(1, description="Number of checkpoints to keep.")


class TrainingConfig(BaseConfig):
    """How long to train, and how often to log, save and evaluate. Steps are optimizer updates."""

    save_dir: str = pydantic.Field(
        "/tmp/model",
        min_length=1,
        description="Directory of the run: checkpoints, metrics.jsonl, config.yaml. The same directory again "
        "continues the run.",
    )
    num_train_steps: pydantic.PositiveInt = pydantic.Field(
        10000, description="Steps to make in all, those before a resume counted in."
    )
    initial_checkpoint_dir: str | None = pydantic.Field(
        None,
        json_schema_extra={"at_most_one_of": "initialization"},
        description="Warm start: a checkpoint directory (.../checkpoints/<step>), or a run's save_dir for its newest "
        "complete one, whose weights a new run starts from, at step 0 with a fresh optimizer. A resume ignores it.",
    )
    checkpoint_every_n: pydantic.PositiveInt = pydantic.Field(
        1000, description="Save after every n-th step; the last step is saved always."
    )
    checkpoint_max_to_keep: pydantic.PositiveInt | None = pydantic.Field(
        None, description="Delete older checkpoints beyond this number (at least 2); null keeps all."
    )
    checkpoint_keep_every_n: pydantic.PositiveInt | None = pydantic.Field(
        None,
        description="Checkpoints after every n-th step are never deleted (a multiple of checkpoint_every_n); null: "
        "checkpoint_max_to_keep makes no exception.",
    )
    checkpoint_keep_best: CheckpointKeepBestConfig | None = pydantic.Field(
        None,
        description="The best checkpoints by a metric, as far as they were evaluated, are not deleted; null: "
        "checkpoint_max_to_keep makes no exception.",
    )
    train_log_every_n: pydantic.PositiveInt = pydantic.Field(
        1000, description="Log train metrics every n steps, each a mean since the last log."
    )
    num_eval_steps: int = pydantic.Field(
        16384,
        description="Batches of each partition that an evaluation reads; negative: the whole partition.",
    )
    eval_every_n: pydantic.NonNegativeInt | None = pydantic.Field(
        None,
        description="Evaluate after every n-th step and at the end; null: at each checkpoint and at the end; "
        "0: never (a second job, --mode evaluate, evaluates the checkpoints).",
    )
    eval_log_every_n: pydantic.PositiveInt = pydantic.Field(
        5000, description="Log an evaluation's progress every n batches."
    )
    eval_timeout_in_s: pydantic.PositiveFloat = pydantic.Field(
        60.0 * 60.0,
        description="Longest duration of one evaluation, all partitions together, in seconds: what was evaluated until "
        "then is the result, and training goes on. Also how long --mode evaluate waits for the next checkpoint.",
    )
    gradient_accumulation: pydantic.PositiveInt | None = pydantic.Field(
        None,
        description="Micro-batches per step: a step trains on global_batch_size x gradient_accumulation examples. "
        "null: 1.",
    )
    num_epochs: pydantic.PositiveInt | None = pydantic.Field(
        1,
        description="Passes over the training data; null: no limit. The run ends at this or num_train_steps.",
    )
    max_grad_norm: pydantic.PositiveFloat | None = pydantic.Field(
        None, description="Clip the global L2 norm of the gradients to this; null: no clipping."
    )
    max_nonfinite_steps: pydantic.NonNegativeInt = pydantic.Field(
        100,
        description="End the run after more than so many steps in a row whose update was left out because gradients "
        "or losses were not finite. float16 leaves up to about 16 out while its loss scale adapts.",
    )

    @pydantic.field_validator("save_dir", "initial_checkpoint_dir")
    @classmethod
    def _is_local(cls, directory: str | None) -> str | None:
        if directory is not None and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", directory):
            raise ValueError(
                "a remote URL; checkpoints are written to and read from a local or mounted directory: "
                "give its path, and copy finished checkpoints to or from there"
            )
        return directory

    @pydantic.field_validator("checkpoint_max_to_keep")
    @classmethod
    def _keeps_two(cls, max_to_keep: int | None) -> int | None:
        if max_to_keep == 1:
            raise ValueError(
                "1 would leave nothing to fall back on if the only checkpoint is damaged: "
                "keep at least 2, or null for all"
            )
        return max_to_keep

    @pydantic.model_validator(mode="after")
    def _keeps_what_is_made(self) -> "TrainingConfig":
        keep, every_n = self.checkpoint_keep_every_n, self.checkpoint_every_n
        for name in ("checkpoint_keep_every_n", "checkpoint_keep_best"):
            if getattr(self, name) is not None and self.checkpoint_max_to_keep is None:
                raise ValueError(
                    f"{name} is without effect, as all checkpoints are kept: give checkpoint_max_to_keep, or "
                    "leave it out"
                )
        if keep is not None and keep % every_n != 0:
            raise ValueError(
                f"checkpoint_keep_every_n: {keep} is no multiple of checkpoint_every_n ({every_n}), so that after many "
                "of these steps there is no checkpoint to keep"
            )
        return self

    @pydantic.field_validator("num_eval_steps")
    @classmethod
    def _evaluates_something(cls, num_eval_steps: int) -> int:
        if num_eval_steps == 0:
            raise ValueError(
                "0 batches evaluate nothing: a negative number evaluates the whole set, "
                "eval_every_n: 0 switches evaluation off"
            )
        return num_eval_steps

    @property
    def micro_batches(self) -> int:
        """Micro-batches per step (>= 1)."""
        return self.gradient_accumulation or 1


class JobConfig(BaseConfig):
    """Base of a project's configuration: how to compute, how long to train; a project adds what is trained."""

    evaluation_only_keys: ClassVar[frozenset[str]] = frozenset({"validation_data"})
    """Keys of the project that may change between a run and its resume."""

    runtime: RuntimeConfig = pydantic.Field(RuntimeConfig(), description="How the program computes.")
    training: TrainingConfig = pydantic.Field(
        TrainingConfig(), description="How long to train, and how often to log, save and evaluate."
    )

    def identity(self) -> dict[str, Any]:
        """What makes a run this run, as JSON values by configuration key: a resume must find it unchanged."""
        keys = {"runtime", "training"} | self.evaluation_only_keys
        identity = self.model_dump(mode="json", exclude=keys)
        identity["runtime"] = {"seed": self.runtime.seed}
        identity["training"] = {
            "gradient_accumulation": self.training.micro_batches,
            "max_grad_norm": self.training.max_grad_norm,
        }
        return identity

    @property
    def identity_hints(self) -> dict[str, str]:
        """What to do about a difference to the saved identity(), by path of the key, where that isn't plain."""
        return {}
