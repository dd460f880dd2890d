"""Configures what all training programs share: RuntimeConfig (how to compute) and TrainingConfig (the schedule).

Each project configures its own model, data and optimizer.
"""

import re
from typing import Any, ClassVar, Literal, Self

import pydantic

from common.wandb import WandbConfig
from core.config.base_config import BaseConfig
from core.config.numbers import PositiveFloat32
from core.config.yaml_document import KeyPath


class RuntimeConfig(BaseConfig):
    """Configures how the program computes. All keys except the seed may change between a run and its resume."""

    wandb: WandbConfig | None = pydantic.Field(
        None, description="Log to Weights & Biases; null writes metrics to metrics.jsonl only."
    )
    enable_tensorfloat32: bool = pydantic.Field(
        False,
        description="Allow TF32 for float32 matrix multiplications and convolutions on CUDA: faster, less precise.",
    )
    enable_amp: bool = pydantic.Field(False, description="Run forward passes under autocast to amp_dtype.")
    amp_dtype: Literal["bfloat16", "float16"] = pydantic.Field(
        "bfloat16", description="Autocast type. float16 uses a GradScaler; bfloat16 needs none."
    )
    seed: int = pydantic.Field(
        0, ge=0, lt=2**32, description="Seed for the initial weights, dropout and the order of the examples."
    )
    deterministic: bool = pydantic.Field(
        False,
        description="Make runs bit-reproducible on CUDA and on three or more ranks. Training is slower, DDP keeps its "
        "gradient buckets fixed, and an operation without a deterministic implementation raises an error.",
    )
    process_group_timeout_in_s: float = pydantic.Field(
        600.0,
        ge=1,
        le=7 * 24 * 3600,
        description="Timeout for collectives, in seconds: how long a rank waits for the other ranks.",
    )
    grace_period_in_s: float = pydantic.Field(
        25.0,
        gt=0,
        le=24 * 3600,
        description="Time limit for a shutdown after SIGTERM or another stop signal (docs/stopping.md), in seconds. A "
        "process that has not saved and exited by then logs what it is waiting for and exits with status 1. Set it "
        "below torchrun's --shutdown-timeout (30).",
    )
    hang_dump_after_in_s: float | None = pydantic.Field(
        300.0,
        ge=0.1,
        le=7 * 24 * 3600,
        description="Write the stack traces of all threads to standard error, on every rank, if a training step, an "
        "evaluation batch or any work between them takes longer than this, in seconds; null disables it.",
    )


class MetricChoice(BaseConfig):
    """Selects a metric by which the steps of a run are compared."""

    partition: str = pydantic.Field(
        min_length=1, description="Partition whose metrics are compared, such as validation."
    )
    metric: str = pydantic.Field(min_length=1, description="Metric to compare, such as mean/auroc.")
    mode: Literal["max", "min"] = pydantic.Field(
        description="max if higher values of the metric are better, min if lower values are."
    )


class CheckpointKeepBestConfig(MetricChoice):
    """Selects the best checkpoints, which rotation keeps."""

    top_k: pydantic.PositiveInt = pydantic.Field(1, description="Number of best checkpoints to keep.")


class EarlyStoppingConfig(MetricChoice):
    """Ends a run whose evaluations no longer improve."""

    patience: pydantic.PositiveInt = pydantic.Field(
        description="Number of consecutive evaluations without an improvement after which the run ends."
    )
    min_delta: pydantic.NonNegativeFloat = pydantic.Field(
        0.0, description="An improvement is better than the best value so far by more than this."
    )


class TrainingConfig(BaseConfig):
    """Configures how long to train and how often to log, save and evaluate. A step is one optimizer update."""

    save_dir: str = pydantic.Field(
        "/tmp/model",
        min_length=1,
        description="Directory of the run, for checkpoints, metrics.jsonl and config.yaml. Starting again with the "
        "same directory resumes the run.",
    )
    num_train_steps: pydantic.PositiveInt = pydantic.Field(
        10000, description="Total number of training steps, including the steps before a resume."
    )
    initial_checkpoint_dir: str | None = pydantic.Field(
        None,
        json_schema_extra={"at_most_one_of": "initialization"},
        description="Warm start: take the initial weights from this checkpoint (.../checkpoints/<step>), or from the "
        "newest complete checkpoint of the run with this save_dir. The new run starts at step 0 with a fresh "
        "optimizer. A resume ignores this key; null starts from random weights.",
    )
    checkpoint_every_n: pydantic.PositiveInt = pydantic.Field(
        1000, description="Save a checkpoint every n steps, and after the last step."
    )
    checkpoint_max_to_keep: pydantic.PositiveInt | None = pydantic.Field(
        None, description="Number of newest checkpoints to keep (at least 2). Older ones are deleted; null keeps all."
    )
    checkpoint_keep_every_n: pydantic.PositiveInt | None = pydantic.Field(
        None,
        description="Keep the checkpoint of every n-th step permanently. Must be a multiple of checkpoint_every_n, and "
        "needs checkpoint_max_to_keep; null keeps none permanently.",
    )
    checkpoint_keep_best: CheckpointKeepBestConfig | None = pydantic.Field(
        None,
        description="Keep the best checkpoints by a metric, among those that were evaluated. Needs "
        "checkpoint_max_to_keep; null keeps only the newest.",
    )
    train_log_every_n: pydantic.PositiveInt = pydantic.Field(
        1000, description="Log the train metrics every n steps, each as a mean since the last log."
    )
    num_eval_steps: int = pydantic.Field(
        16384,
        description="Number of batches to evaluate per partition; a negative number evaluates the whole partition.",
    )
    eval_every_n: pydantic.NonNegativeInt | None = pydantic.Field(
        None,
        description="Evaluate every n steps and at the end; null evaluates at each checkpoint and at the end. 0 never "
        "evaluates; use it with a second process (--mode evaluate) that evaluates the checkpoints.",
    )
    eval_log_every_n: pydantic.PositiveInt = pydantic.Field(
        5000, description="Log the progress of an evaluation every n batches."
    )
    eval_timeout_in_s: pydantic.PositiveFloat = pydantic.Field(
        60.0 * 60.0,
        description="Time limit for one evaluation of all partitions, in seconds. At the limit, the metrics cover the "
        "batches evaluated so far, and training continues. It also limits how long --mode evaluate waits for the next "
        "checkpoint.",
    )
    early_stopping: EarlyStoppingConfig | None = pydantic.Field(
        None,
        description="End the run when a metric stops improving. Evaluations must fall on checkpoints. Rotation keeps "
        "the best checkpoint; null disables it.",
    )
    gradient_accumulation: pydantic.PositiveInt | None = pydantic.Field(
        None,
        description="Number of micro-batches per step; null means 1. A step trains on global_batch_size x "
        "gradient_accumulation examples.",
    )
    num_epochs: pydantic.PositiveInt | None = pydantic.Field(
        1,
        description="Maximum number of passes over the training data; null sets no limit. The run ends when it reaches "
        "num_epochs or num_train_steps, whichever comes first.",
    )
    max_grad_norm: PositiveFloat32 | None = pydantic.Field(
        None, description="Maximum global L2 norm of the gradients, enforced by clipping; null disables clipping."
    )
    ema_decay: float | None = pydantic.Field(
        None,
        gt=0,
        lt=1,
        description="Decay of an exponential moving average of the weights, such as 0.999. The average is what is "
        "evaluated; null disables it.",
    )
    max_nonfinite_steps: pydantic.NonNegativeInt = pydantic.Field(
        100,
        description="Maximum number of consecutive updates that are skipped because losses or gradients are not "
        "finite. One more ends the run. float16 skips up to about 16 updates while its loss scale adapts.",
    )

    @pydantic.field_validator("save_dir", "initial_checkpoint_dir")
    @classmethod
    def _is_local(cls, directory: str | None) -> str | None:
        if directory is not None and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", directory):
            raise ValueError(
                "remote URLs are not supported. Specify the path of a local or mounted directory, and copy finished "
                "checkpoints to or from the remote location"
            )
        return directory

    @pydantic.field_validator("checkpoint_max_to_keep")
    @classmethod
    def _keeps_two(cls, max_to_keep: int | None) -> int | None:
        if max_to_keep == 1:
            raise ValueError(
                "with a single checkpoint there is nothing to fall back on if it is damaged. Keep at least 2, or set "
                "null to keep all"
            )
        return max_to_keep

    @pydantic.model_validator(mode="after")
    def _exceptions_apply(self) -> "TrainingConfig":
        keep, every_n = self.checkpoint_keep_every_n, self.checkpoint_every_n
        for name in ("checkpoint_keep_every_n", "checkpoint_keep_best"):
            if getattr(self, name) is not None and self.checkpoint_max_to_keep is None:
                raise ValueError(
                    f"{name} has no effect because all checkpoints are kept. Set checkpoint_max_to_keep or remove "
                    "this key"
                )
        if keep is not None and keep % every_n != 0:
            raise ValueError(
                f"checkpoint_keep_every_n is {keep}, but must be a multiple of checkpoint_every_n ({every_n}), or many "
                "of its steps have no checkpoint to keep"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _can_stop_early(self) -> "TrainingConfig":
        if self.early_stopping is None:
            return self
        eval_every_n, every_n = self.eval_every_n, self.checkpoint_every_n
        if eval_every_n == 0:
            raise ValueError(
                "early_stopping needs evaluations in the training process, but eval_every_n is 0. Set eval_every_n to "
                "null or remove early_stopping"
            )
        if eval_every_n is not None and eval_every_n % every_n != 0:
            raise ValueError(
                f"early_stopping needs a checkpoint of every step that is evaluated, but eval_every_n is "
                f"{eval_every_n}, which is not a multiple of checkpoint_every_n ({every_n}). Change one of them, or "
                "set eval_every_n to null to evaluate each checkpoint"
            )
        return self

    @pydantic.field_validator("num_eval_steps")
    @classmethod
    def _evaluates_something(cls, num_eval_steps: int) -> int:
        if num_eval_steps == 0:
            raise ValueError(
                "0 batches evaluate nothing. Use a negative number to evaluate the whole partition, or eval_every_n: 0 "
                "to disable evaluation"
            )
        return num_eval_steps

    @property
    def num_micro_batches(self) -> int:
        """Number of micro-batches per step (>= 1)."""
        return self.gradient_accumulation or 1


class JobConfig(BaseConfig):
    """Base of a project's configuration. A project adds its model, data and optimizer."""

    evaluation_only_keys: ClassVar[frozenset[str]] = frozenset({"validation_data"})
    """Top-level keys of the project that may change between a run and its resume."""

    runtime: RuntimeConfig = pydantic.Field(RuntimeConfig(), description="How to compute.")
    training: TrainingConfig = pydantic.Field(
        TrainingConfig(), description="How long to train, and how often to log, save and evaluate."
    )

    def identity(self) -> dict[str, Any]:
        """Return the settings that a resume must find unchanged, as JSON values by configuration key."""
        keys = {"runtime", "training"} | self.evaluation_only_keys
        identity = self.model_dump(mode="json", exclude=keys)
        identity["runtime"] = {"seed": self.runtime.seed}
        identity["training"] = {
            "gradient_accumulation": self.training.num_micro_batches,
            "max_grad_norm": self.training.max_grad_norm,
            "ema_decay": self.training.ema_decay,
        }
        return identity

    @property
    def input_files(self) -> tuple[KeyPath, ...]:
        """The key paths of the small files that the model is built from, such as schemas. A run keeps copies of them.

        A project with such files overrides this. The values are paths, not null.
        """
        return ()

    def as_trained_on(self, _world_size: int, /) -> Self:
        """Return the configuration with sizes per process replaced by those of a run on a number of processes.

        A project with such sizes overrides this, so that a follower may use another number of processes than the run.
        """
        return self

    @property
    def identity_hints(self) -> dict[str, str]:
        """Return hints on how to resolve a difference from the saved identity(), by key path, if it isn't obvious."""
        return {}
