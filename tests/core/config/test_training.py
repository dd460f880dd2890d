"""RuntimeConfig, TrainingConfig, and the identity of a run."""

from pathlib import Path
from typing import Any

import pydantic
import pytest

from common.errors import ConfigError
from core.config import BaseConfig, load_config_from_yaml
from core.config.training import JobConfig, RuntimeConfig, TrainingConfig


class Data(BaseConfig):
    """Data of a test project."""

    inputs: str = pydantic.Field("train.parquet", description="Files to read.")
    sizes: tuple[int, ...] = pydantic.Field((1, 2), description="Sizes.")


class ExampleConfig(JobConfig):
    """Configuration of a test project."""

    train_data: Data = pydantic.Field(Data(), description="Data to train on.")
    validation_data: Data = pydantic.Field(Data(), description="Data to evaluate on.")


def job(tmp_path: Path, *overrides: str) -> ExampleConfig:
    path = tmp_path / "job.yaml"
    path.write_text("training: {num_train_steps: 10}\n")
    return load_config_from_yaml(ExampleConfig, str(path), overrides)


INVALID = [
    ("training.num_train_steps", "0"),
    ("training.num_train_steps", "1.5"),
    ("training.checkpoint_every_n", "0"),
    ("training.checkpoint_max_to_keep", "0"),
    ("training.checkpoint_keep_every_n", "0"),
    ("training.checkpoint_max_to_keep", "-1"),
    ("training.checkpoint_keep_best.mode", "{partition: v, metric: a, mode: best}"),
    ("training.checkpoint_keep_best.top_k", "{partition: v, metric: a, mode: max, top_k: 0}"),
    ("training.checkpoint_keep_best.metric", "{partition: v, mode: max}"),
    ("training.train_log_every_n", "0"),
    ("training.eval_every_n", "-1"),
    ("training.eval_log_every_n", "0"),
    ("training.eval_timeout_in_s", "0"),
    ("training.gradient_accumulation", "0"),
    ("training.num_epochs", "0"),
    ("training.max_grad_norm", "0.0"),
    ("training.max_grad_norm", ".inf"),
    ("training.ema_decay", "0"),
    ("training.ema_decay", "1"),
    ("training.ema_decay", "null_"),
    ("training.save_dir", "''"),
    ("training.save_dir", "null"),
    ("runtime.amp_dtype", "float64"),
    ("runtime.seed", "-1"),
    ("runtime.seed", "4294967296"),
    ("runtime.process_group_timeout_in_s", "0"),
    ("runtime.grace_period_in_s", "0"),
    ("runtime.hang_dump_after_in_s", "0"),
    ("runtime.enable_amp", "1"),
    ("training.num_eval_step", "3"),
]


@pytest.mark.parametrize(("key", "value"), INVALID)
def test_the_error_for_an_invalid_value_names_the_key(tmp_path, key, value):
    with pytest.raises(ConfigError) as caught:
        job(tmp_path, f"{key.partition('_best')[0] + '_best' if '_best' in key else key}={value}")
    assert key in str(caught.value)


VALID: list[tuple[str, str, Any]] = [
    ("checkpoint_max_to_keep", "2", 2),
    ("checkpoint_max_to_keep", "null", None),
    ("num_eval_steps", "-1", -1),
    ("num_eval_steps", "1", 1),
    ("eval_every_n", "0", 0),
    ("num_epochs", "null", None),
    ("max_grad_norm", "1", 1.0),
    ("save_dir", "runs/a:b", "runs/a:b"),
    ("save_dir", "~/runs", "~/runs"),
]


@pytest.mark.parametrize(("key", "value", "expected"), VALID)
def test_a_valid_value_is_accepted(tmp_path, key, value, expected):
    assert getattr(job(tmp_path, f"training.{key}={value}").training, key) == expected


def test_the_error_for_keeping_a_single_checkpoint_says_why(tmp_path):
    with pytest.raises(ConfigError, match=r"training\.checkpoint_max_to_keep.* 1 .*nothing to fall back on"):
        job(tmp_path, "training.checkpoint_max_to_keep=1")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            ["checkpoint_keep_every_n=100", "checkpoint_every_n=50"],
            "keep_every_n has no effect .*max_to_keep",
        ),
        (
            ["checkpoint_keep_best={partition: v, metric: mean/auroc, mode: max}"],
            "keep_best has no effect .*max_to_keep",
        ),
        (
            ["checkpoint_keep_every_n=100", "checkpoint_every_n=60", "checkpoint_max_to_keep=2"],
            r"keep_every_n is 100, but must be a multiple of checkpoint_every_n \(60\)",
        ),
    ],
)
def test_an_exception_from_rotation_without_effect_is_an_error(tmp_path, settings, problem):
    with pytest.raises(ConfigError, match=f"checkpoint_{problem}"):
        job(tmp_path, *(f"training.{setting}" for setting in settings))


EARLY_STOPPING = "early_stopping={partition: v, metric: mean/auroc, mode: max, patience: 3}"


@pytest.mark.parametrize("settings", [[], ["eval_every_n=50"], ["eval_every_n=150"]])
def test_early_stopping_needs_a_checkpoint_of_each_evaluation(tmp_path, settings):
    settings = [*settings, "checkpoint_every_n=50", EARLY_STOPPING]
    found = job(tmp_path, *(f"training.{setting}" for setting in settings)).training.early_stopping
    assert found is not None
    assert (found.patience, found.min_delta) == (3, 0.0)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (["eval_every_n=0"], "eval_every_n is 0"),
        (["eval_every_n=75", "checkpoint_every_n=50"], r"is 75, .* multiple of checkpoint_every_n \(50\)"),
        (["eval_every_n=25", "checkpoint_every_n=50"], r"is 25, .* multiple of checkpoint_every_n \(50\)"),
    ],
)
def test_early_stopping_without_such_checkpoints_is_an_error(tmp_path, settings, problem):
    with pytest.raises(ConfigError, match=f"early_stopping needs .*{problem}"):
        job(tmp_path, *(f"training.{setting}" for setting in [*settings, EARLY_STOPPING]))


@pytest.mark.parametrize(
    ("key", "value"), [("patience", "0"), ("min_delta", "-1"), ("min_delta", ".nan"), ("mode", "up"), ("metric", "")]
)
def test_an_invalid_key_of_early_stopping_is_an_error(tmp_path, key, value):
    with pytest.raises(ConfigError, match=rf"training\.early_stopping\.{key}"):
        job(tmp_path, f"training.{EARLY_STOPPING}", f"training.early_stopping.{key}={value or chr(39) * 2}")


def test_the_error_for_evaluating_no_batches_says_what_to_write_instead(tmp_path):
    with pytest.raises(ConfigError, match=r"training\.num_eval_steps.*negative number.*eval_every_n: 0"):
        job(tmp_path, "training.num_eval_steps=0")


@pytest.mark.parametrize("key", ["save_dir", "initial_checkpoint_dir"])
@pytest.mark.parametrize("url", ["gs://bucket/run", "s3://bucket", "HDFS://host/run", "file:///tmp/run"])
def test_a_remote_directory_is_an_error(tmp_path, key, url):
    with pytest.raises(ConfigError, match=rf"training\.{key}.*local or mounted directory"):
        job(tmp_path, f"training.{key}={url}")


def test_a_step_has_one_micro_batch_unless_gradients_are_accumulated():
    assert TrainingConfig().num_micro_batches == 1
    assert TrainingConfig(gradient_accumulation=1).num_micro_batches == 1
    assert TrainingConfig(gradient_accumulation=4).num_micro_batches == 4


MAY_CHANGE = [
    "training.save_dir=elsewhere",
    "training.num_train_steps=20",
    "training.num_epochs=7",
    "training.checkpoint_every_n=3",
    "training.checkpoint_max_to_keep=5",
    f"training.{EARLY_STOPPING}",
    "training.train_log_every_n=1",
    "training.num_eval_steps=2",
    "training.eval_every_n=0",
    "training.eval_log_every_n=2",
    "training.eval_timeout_in_s=5",
    "training.initial_checkpoint_dir=x/checkpoints/5",
    "training.gradient_accumulation=1",  # the same as null
    "runtime.enable_amp=true",
    "runtime.amp_dtype=float16",
    "runtime.enable_tensorfloat32=true",
    "runtime.deterministic=true",
    "runtime.process_group_timeout_in_s=5",
    "runtime.grace_period_in_s=5",
    "runtime.hang_dump_after_in_s=null",
    "validation_data.inputs=other.parquet",
]


@pytest.mark.parametrize("override", MAY_CHANGE)
def test_a_setting_that_may_change_is_not_part_of_the_identity(tmp_path, override):
    assert job(tmp_path, override).identity() == job(tmp_path).identity()


MUST_NOT_CHANGE = [
    "runtime.seed=1",
    "training.gradient_accumulation=2",
    "training.max_grad_norm=1.0",
    "training.ema_decay=0.99",
    "train_data.inputs=other.parquet",
    "train_data.sizes=[1]",
]


@pytest.mark.parametrize("override", MUST_NOT_CHANGE)
def test_a_setting_that_must_not_change_is_part_of_the_identity(tmp_path, override):
    assert job(tmp_path, override).identity() != job(tmp_path).identity()


def test_the_identity_consists_of_json_values_by_configuration_key():
    assert ExampleConfig().identity() == {
        "train_data": {"inputs": "train.parquet", "sizes": [1, 2]},
        "runtime": {"seed": 0},
        "training": {"gradient_accumulation": 1, "max_grad_norm": None, "ema_decay": None},
    }


@pytest.mark.parametrize("config", [RuntimeConfig, TrainingConfig, JobConfig])
def test_every_field_has_a_description(config):
    assert all(field.description for field in config.model_fields.values())
