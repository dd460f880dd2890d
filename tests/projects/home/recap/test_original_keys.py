"""Tests that a YAML of the original, with its nulls, anchors, merge keys and data names, loads and trains."""

import json
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from common.checkpointing.directory import complete_steps
from common.errors import ConfigError
from common.reader.vectors import with_lists
from core.config import BaseConfig, load_config_from_yaml
from projects.home.recap import main
from projects.home.recap.config import RecapConfig
from projects.home.recap.data.dataset import RecapDataset
from projects.home.recap.data.parquet import TASKS, Widths
from projects.home.recap.data.schema import FeatureWidths
from projects.home.recap.model.heavy_ranker import HeavyRanker
from projects.home.recap.tools.generate import Preset, generate
from tests.projects.home.recap.test_config import CONFIGS
from tests.support.config_fields import config_classes

LABELS = (
    "is_bookmarked",
    "is_favorited",
    "is_good_clicked_convo_desc_favorited_or_replied",
    "is_good_clicked_convo_desc_v2",
    "is_negative_feedback_v2",
    "is_profile_clicked_and_profile_engaged",
    "is_replied",
    "is_replied_reply_engaged_by_author",
    "is_report_tweet_clicked",
    "is_retweeted",
    "is_shared",
    "is_tweet_detail_dwelled_15_sec",
    "is_video_playback_50",
)
"""Labels in the order of the data."""

TOWERS = {
    "is_favorited": (0.0008, 5000, None, 0.8387, 0.01),
    "is_good_clicked_convo_desc_favorited_or_replied": (0.0001, 2000, None, 0.9164, 0.00195),
    "is_good_clicked_convo_desc_v2": (0.0002, 1000, None, 1.0, 0.00174),
    "is_negative_feedback_v2": (0.0005, 5000, 0.1, 1.0, 0.0028),
    "is_profile_clicked_and_profile_engaged": (0.0003, 1000, None, 1.0, 0.0015),
    "is_replied": (0.001, 1000, None, 1.0, 0.005),
    "is_replied_reply_engaged_by_author": (0.0001, 1000, None, 1.0, 0.001),
    "is_report_tweet_clicked": (0.0001, 3000, 0.2, 1.0, 1.4e-05),
    "is_retweeted": (0.0001, 1000, None, 0.9561, 0.004),
    "is_video_playback_50": (0.003, 1000, None, 1.0, 0.00427),
}
"""Learning rate, ramp steps, dropout, and sampling rates of positives and negatives, by task."""

RENAMED = {
    "continuous": "home_recap_2022_cont__segdense_vals",
    "binary": "home_recap_2022_binary__segdense_vals",
    "discrete": "home_recap_2022_discrete__segdense_vals",
    "author_embedding": "original_author.timelines.twhin_author_follow_embeddings.twhin_author_follow_embeddings",
    "user_embedding": "user.timelines.twhin_user_follow_embeddings.twhin_user_follow_embeddings",
    "user_eng_embedding": "user.timelines.twhin_user_engagement_embeddings.twhin_user_engagement_embeddings",
    "meta__author_id": "meta.author_id",
    "meta__user_id": "meta.user_id",
    "meta__tweet_id": "meta.tweet_id",
}
SEGDENSE = Widths(continuous=6000, binary=512, discrete=320, embedding=200)

WITHOUT_EFFECT = ("repeat_files", "file_batch_size", "interleave_num_parallel_calls")
"""Keys without effect that the YAML sets in train_data and, by a merge key, in all partitions."""


def tower(name: str) -> str:
    dropout = TOWERS[name][2]
    return f"""
    recap.engagement.{name}:
      mlp_config:
        layer_sizes: [256, 128, 1]
        batch_norm: {{affine: false, momentum: 0.1}}
        dropout: {"null" if dropout is None else f"{{rate: {dropout}}}"}
        final_layer_activation: false
      dcn_config: null
      dlrm_config: null
      mask_net_config: null
      affine_map: null
      pos_weight: 1.0"""


def partition(name: str) -> str:
    _, _, _, positive, negative = TOWERS[name]
    return f"""
  {name}:
    <<: *validation
    tasks:
      <<: *tasks
      recap.engagement.{name}:
        pos_downsampling_rate: {positive}
        neg_downsampling_rate: {negative}
    evaluation_tasks: [recap.engagement.{name}]"""


def learning_rate(name: str) -> str:
    rate, steps, *_ = TOWERS[name]
    return f"""
      recap.engagement.{name}:
        constant: null
        linear_ramp_to_constant: {{learning_rate: {rate}, num_ramp_steps: {steps}}}
        linear_ramp_to_cosine: null
        piecewise_constant: null"""


YAML = f"""\
training:
  save_dir: "${{HOME}}/tmp/runs/recap_local_debug"
  num_train_steps: 10
  num_eval_steps: 5
  checkpoint_every_n: 5
  train_log_every_n: 1
  eval_log_every_n: 1
  eval_timeout_in_s: 7200
  initial_checkpoint_dir: null
  checkpoint_max_to_keep: null
  gradient_accumulation: null

model:
  tasks:{"".join(map(tower, TOWERS))}
  large_embeddings: null
  small_embeddings: null
  position_debias_config: null
  stratifiers: null
  featurization_config:
    log1p_abs_config: null
    clip_log1p_abs_config: null
    z_score_log_config: null
    double_norm_log_config:
      batch_norm_config: {{affine: true, momentum: 0.01}}
      clip_magnitude: 5.0
      layer_norm_config: {{axis: -1, center: true, epsilon: 0.0, scale: true}}
    feature_names_to_concat: [binary]
  multi_task_type: share_all
  backbone:
    mlp_config: null
    dcn_config: null
    dlrm_config: null
    affine_map: null
    pos_weight: 1.0
    mask_net_config:
      use_parallel: true
      mask_blocks:
        - &block
          aggregation_size: 1024
          reduction_factor: null
          output_size: 1024
          input_layer_norm: false
        - *block
        - *block
        - *block
      mlp: {{layer_sizes: [2048], batch_norm: null, dropout: null, final_layer_activation: true}}

train_data: &train_data
  inputs: "${{HOME}}/data/train/*.parquet"
  explicit_datetime_inputs: null
  explicit_date_inputs: null
  global_batch_size: 128
  num_files_to_keep: null
  repeat_files: true
  file_batch_size: 16
  cache: false
  data_service_dispatcher: null
  ignore_data_errors: false
  dataset_service_compression: null
  examples_shuffle_buffer_size: null
  map_num_parallel_calls: null
  interleave_num_parallel_calls: 4
  seg_dense_schema:
    schema_path: "${{HOME}}/data/segdense.json"
    features: []
    renamed_features:{"".join(f"{chr(10)}      {ours}: {theirs}" for ours, theirs in RENAMED.items())}
    mask_mantissa_features: {{}}
  tasks: &tasks{"".join(f"{chr(10)}    recap.engagement.{label}: {{}}" for label in LABELS)}
  evaluation_tasks: []
  preprocess:
    truncate_and_slice:
      continuous_feature_truncation: 2117
      binary_feature_truncation: 59
      continuous_feature_mask_path: null
      binary_feature_mask_path: null
    downcast: null
    rectify_labels: null
    extract_features: null
    downsample_negatives: null
  sampler: null

validation_data:
  validation: &validation
    <<: *train_data
    inputs: "${{HOME}}/data/validation/*.parquet"
  train:
    <<: *train_data{"".join(map(partition, TOWERS))}

optimizer:
  adam: {{beta_1: 0.95, beta_2: 0.999, epsilon: 1e-7}}
  single_task_learning_rate: null
  multi_task_learning_rates:
    backbone_learning_rate:
      linear_ramp_to_constant: {{learning_rate: 0.0001, num_ramp_steps: 1000}}
    tower_learning_rates:{"".join(map(learning_rate, TOWERS))}
which_metrics: null
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def load(home: Path, text: str = YAML, overrides: Sequence[str] = ()) -> RecapConfig:
    path = home / "local_prod.yaml"
    path.write_text(text)
    return load_config_from_yaml(RecapConfig, path, overrides)


# --- Meaning of the keys ---


def test_its_keys_keep_their_meaning(home: Path) -> None:
    config = load(home)
    training = config.training
    assert training.save_dir == f"{home}/tmp/runs/recap_local_debug"
    assert (training.num_train_steps, training.num_eval_steps, training.checkpoint_every_n) == (10, 5, 5)
    assert (training.train_log_every_n, training.eval_log_every_n, training.eval_timeout_in_s) == (1, 1, 7200.0)
    assert (training.initial_checkpoint_dir, training.checkpoint_max_to_keep, training.num_micro_batches) == (
        None,
        None,
        1,
    )
    assert list(config.train_data.tasks) == [f"recap.engagement.{label}" for label in LABELS]
    assert list(config.model.tasks) == [f"recap.engagement.{name}" for name in TOWERS]
    adam, rates = config.optimizer.adam, config.optimizer.multi_task_learning_rates
    assert adam is not None
    assert (adam.beta_1, adam.beta_2, adam.epsilon) == (0.95, 0.999, 1e-7)
    assert rates is not None
    for name, (learning_rate, steps, *_) in TOWERS.items():
        ramp = rates.tower_learning_rates[f"recap.engagement.{name}"].linear_ramp_to_constant
        assert ramp is not None
        assert (ramp.learning_rate, ramp.num_ramp_steps) == (learning_rate, steps)


def test_each_partition_has_its_own_files_rates_and_tasks(home: Path) -> None:
    partitions = load(home).validation_data
    assert list(partitions) == ["validation", "train", *TOWERS]
    assert partitions["train"].inputs == load(home).train_data.inputs
    for name, (*_, positive, negative) in TOWERS.items():
        data = partitions[name]
        assert data.inputs == f"{home}/data/validation/*.parquet"
        assert data.evaluation_tasks == [f"recap.engagement.{name}"]
        rates = {name: (task.pos_downsampling_rate, task.neg_downsampling_rate) for name, task in data.tasks.items()}
        assert rates.pop(f"recap.engagement.{name}") == (positive, negative)
        assert set(rates.values()) == {(1.0, 1.0)}
        assert len(rates) == 12


def test_its_model_is_that_of_production_yaml_with_48_million_parameters(home: Path) -> None:
    config, shipped = load(home), load_config_from_yaml(RecapConfig, CONFIGS / "production.yaml")
    assert config.model == shipped.model.model_copy(update={"score_weights": None})
    assert config.optimizer == shipped.optimizer
    widths = FeatureWidths(2117, 59, dict.fromkeys(("user_embedding", "user_eng_embedding", "author_embedding"), 200))
    with torch.device("meta"):
        ranker = HeavyRanker(config.model, widths, dict.fromkeys(config.model.tasks, (1.0, 1.0)))
    assert sum(parameter.numel() for parameter in ranker.parameters()) == 48_115_108


# --- Keys without effect, and keys that are not supported yet ---


def test_one_warning_lists_the_keys_without_effect(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(home)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    lines = {line.split(":")[0].strip(): number for number, line in enumerate(YAML.splitlines(), start=1)}
    keys = ", ".join(f"train_data.{key} (line {lines[key]})" for key in WITHOUT_EFFECT)
    assert re.match(rf"{home}/local_prod.yaml: .*effect: {re.escape(keys)}$", record.getMessage())


def test_it_prints_only_keys_that_have_an_effect(home: Path) -> None:
    config = load(home)
    reloaded = load(home, config.pretty_print())
    assert reloaded.identity() == config.identity()
    assert not [
        line for line in config.pretty_print().splitlines() if "which_metrics" in line or "repeat_files" in line
    ]


UNSUPPORTED = {
    "which_metrics": "all",
    "large_embeddings": "{tables: []}",
    "ignore_data_errors": "true",
    "mask_mantissa_features": "{continuous: 4}",
    "sampler": "{name: s, kwargs: {}}",
}


WITHIN_Z_SCORE = {"schema_path": "a.json", "use_renorm": "true", "use_bq_stats": "true"}
"""Values of the keys of z_score_log_config that are not supported yet. The YAML does not set that configuration."""


def unsupported_fields(kind: type[BaseConfig]) -> list[str]:
    return [name for name, field in kind.model_fields.items() if field.annotation is type(None)]


def test_the_list_of_unsupported_keys_is_complete() -> None:
    classes = config_classes(RecapConfig, set())
    assert {name for kind in classes for name in unsupported_fields(kind)} == {
        *UNSUPPORTED,
        *WITHIN_Z_SCORE,
    }


@pytest.mark.parametrize("key", UNSUPPORTED)
def test_an_unsupported_key_with_a_value_is_an_error_with_its_line(home: Path, key: str) -> None:
    [given] = {line for line in YAML.splitlines() if re.match(rf" *{key}: (null|false|\{{\}})$", line)}
    line = YAML.splitlines().index(given) + 1
    text = YAML.replace(f"\n{given}\n", f"\n{given.split(':')[0]}: {UNSUPPORTED[key]}\n", 1)
    with pytest.raises(ConfigError) as caught:
        load(home, text)
    errors = [error for error in str(caught.value).splitlines() if f"{key} (line {line}): " in error]
    assert errors, caught.value
    assert all(re.search("not supported yet; .* null$", error) for error in errors)


def test_keys_of_the_z_score_that_are_not_supported_may_be_null_or_false(home: Path) -> None:
    norm = "model.featurization_config.double_norm_log_config=null"
    key_path = "model.featurization_config.z_score_log_config"
    given = f"{key_path}={{analysis_path: a.json, schema_path: null, use_renorm: false, use_bq_stats: false}}"
    config = load(home, overrides=[norm, given])
    assert config.model.featurization_config.z_score_log_config is not None
    for key, value in WITHIN_Z_SCORE.items():
        with pytest.raises(ConfigError, match=rf"z_score_log_config\.{key} .*not supported yet"):
            load(home, overrides=[norm, given, f"{key_path}.{key}={value}"])


# --- Training ---


SHRUNK = (
    "model.backbone.mask_net_config.mask_blocks=[{aggregation_size: 8, output_size: 8, input_layer_norm: false}]",
    "model.backbone.mask_net_config.mlp.layer_sizes=[16]",
    *(f"model.tasks[recap.engagement.{name}].mlp_config.layer_sizes=[8, 1]" for name in TOWERS),
)


def write_data(folder: Path) -> None:
    """Write generated rows with the columns and the schema of the original's data."""
    generate(folder / "generated", Preset(SEGDENSE, (256, 128), 128, 256), 0, (256, 128))
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        [path] = (folder / "generated" / split).glob("*.parquet")
        table = with_lists(pq.read_table(path))
        table = table.rename_columns([RENAMED.get(name, name) for name in table.column_names])
        for label in sorted(set(LABELS) - {task.removeprefix("recap.engagement.") for task in TASKS}):
            table = table.append_column(f"recap.engagement.{label}", [rng.integers(0, 2, len(table))])
        (folder / split).mkdir()
        pq.write_table(table, folder / split / "part-0.parquet", row_group_size=64)
    lengths = dict.fromkeys([f"recap.engagement.{label}" for label in LABELS], 1)
    for ours, theirs in RENAMED.items():
        lengths[theirs] = SEGDENSE._asdict().get("embedding" if ours.endswith("_embedding") else ours, 1)
    entries = [{"feature_name": name, "dtype": "float_list", "length": length} for name, length in lengths.items()]
    (folder / "segdense.json").write_text(json.dumps({"schema": entries}))


def test_it_trains_and_evaluates_each_task_on_its_own_partition(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(home / "data")
    config = load(home)
    dataset = RecapDataset.open(config.train_data, list(config.model.tasks), "train_data", evaluation=False)
    assert (dataset.widths.continuous, dataset.widths.binary, dataset.widths.discrete) == (2117, 59, 320)
    settings = [*SHRUNK, "training.num_train_steps=2"]
    arguments = [word for setting in settings for word in ("--set", setting)]
    monkeypatch.setattr(sys, "argv", ["main", "--config", str(home / "local_prod.yaml"), *arguments])
    capsys.readouterr()  # load() may have logged the same warning
    assert main.main() == 0
    assert len(re.findall(r"without effect|no effect", capsys.readouterr().err)) == 1
    save_dir = home / "tmp/runs/recap_local_debug"
    assert complete_steps(save_dir / "checkpoints") == [2]
    lines = [json.loads(line) for line in (save_dir / "metrics.jsonl").read_text().splitlines()]
    evaluated: dict[str, dict[str, Any]] = {
        line["partition"]: line["metrics"] for line in lines if line["mode"] == "evaluate"
    }
    assert list(evaluated) == ["validation", "train", *TOWERS]
    assert evaluated["train"]["examples"] == 256
    table = with_lists(pq.read_table(home / "data/validation/part-0.parquet"))
    for name, (*_, positive, negative) in TOWERS.items():
        task = f"recap.engagement.{name}"
        assert {key.split("/")[0] for key in evaluated[name] if key.startswith("recap.")} == {task}
        labels = np.array(table[task])
        positives, negatives = (labels == 1).sum() / positive, (labels == 0).sum() / negative
        assert evaluated[name][f"{task}/ctr"] == pytest.approx(positives / (positives + negatives)), "before sampling"
        assert evaluated["validation"][f"{task}/ctr"] == pytest.approx(labels.mean())
