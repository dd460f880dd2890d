"""Tests that training and evaluation read every field of the configuration."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from common.errors import ConfigError
from common.features.config import CategoriesFeature, CategoryFeature, NumberFeature
from common.modules.config import LayerNormConfig
from core import command_line
from core.config import BaseConfig, load_config_from_yaml
from projects.home.recap import main
from projects.home.recap.config import RecapConfig
from projects.home.recap.data.config import RecapDataConfig
from projects.home.recap.tools.movielens import prepare
from tests.projects.home.recap.tools.test_movielens import write_grouplens
from tests.support.config_fields import RATES, Field, Recorder, fields_within, names
from tests.support.root import ROOT

SHIPPED = sorted((Path(main.__file__).parent / "configs").glob("*.yaml"))

# Fields that allow only one value, so that no code needs to read them.
ONE_VALUE: dict[Field, list[str]] = {
    (LayerNormConfig, "axis"): [
        f"model.featurization_config.double_norm_log_config.layer_norm_config.axis={axis}" for axis in (-2, 0, 1)
    ],
}

# Fields that no code needs to read if a configuration has features: pydantic reads the kind, and there is no schema.
WITH_FEATURES: set[Field] = {
    (CategoriesFeature, "kind"),
    (CategoryFeature, "kind"),
    (NumberFeature, "kind"),
    (RecapDataConfig, "seg_dense_schema"),
}

# Options that shipped configurations leave at null or false, or replace by another member of a group.
OPTIONS = [
    "runtime.enable_amp=true",
    "runtime.wandb={key_path: $KEY_PATH, host: 'http://localhost:9', name: n, tags: [t], metadata: {a: 1}}",
    "training.max_grad_norm=1.0",
    "training.ema_decay=0.9",
    "training.gradient_accumulation=2",
    "train_data.inputs=null",
    "train_data.num_files_to_keep=1",
    "validation_data={}",
]
# Options for the configurations of one data set.
MOVIELENS_OPTIONS = [
    "features.user={kind: category, hash_buckets: 100}",
    "model.backbone.mlp_config=null",
    "model.backbone.mask_net_config.mask_blocks=[{reduction_factor: 0.5, output_size: 8, input_layer_norm: true}]",
]
GENERATED_OPTIONS = [
    "train_data.preprocess.truncate_and_slice={continuous_feature_truncation: 40, binary_feature_truncation: 10, "
    "continuous_feature_mask_path: $MASKS/40.npy, binary_feature_mask_path: $MASKS/10.npy}",
    "train_data.preprocess.downcast.features={continuous: bfloat16}",
    "train_data.preprocess.extract_features.extract_feature_table=[{name: seen, source_tensor: discrete, index: 0}]",
    "train_data.preprocess.rectify_labels={label_rectification_window_in_hours: 1.5, served_timestamp_field: seen, "
    "impressed_timestamp_field: seen, label_to_engaged_timestamp_field: {recap.engagement.is_replied: seen}}",
    "train_data.preprocess.downsample_negatives={batch_multiplier: 2, num_engagements: 10, "
    "engagements_list: [recap.engagement.is_favorited]}",
    "model.backbone.mask_net_config.mask_blocks=[{reduction_factor: 0.5, output_size: 8, input_layer_norm: true}]",
    "model.backbone.mask_net_config.mlp.dropout.rate=0.1",
    "train_data.seg_dense_schema.features=[discrete]",
    "model.small_embeddings.tables=[{name: kind, num_embeddings: 40, embedding_dim: 2, index: 1}]",
    "model.multi_task_type=share_partial",
    "model.tasks={recap.engagement.is_replied: {mlp_config: {layer_sizes: [1]}, affine_map: {bias: -4.0}}}",
    "model.score_weights={recap.engagement.is_replied: 13.5}",
    "optimizer.multi_task_learning_rates=null",
]
# Two ways to select the same training files by date.
DATED = [
    "train_data.explicit_date_inputs={data_root: $DATED, end_date: 2023/01/31, days: 2, num_missing_days_tol: 1}",
    "train_data.explicit_datetime_inputs="
    "{data_root: $DATED, end_datetime: 2023-01-31T05, hours: 2, num_missing_hours_tol: 1}",
]

OPTIMIZERS = [
    [],
    ["optimizer.adam=null", "optimizer.adamw.weight_decay=0.1"],
    ["optimizer.adam=null", "optimizer.adagrad={}"],
]

MODELS = [
    [],
    [
        "model.tasks[recap.engagement.is_replied]={dcn_config: {poly_degree: 2, parallel_mlp: {layer_sizes: [4]}, "
        "output_mlp: {layer_sizes: [1]}}}"
    ],
    [
        "model.featurization_config={z_score_log_config: {analysis_path: $STATISTICS, use_batch_norm: true}}",
        "model.position_debias_config={position_feature_index: 0}",
        "model.score_weights=null",
        f"model.score_weights_path={ROOT}/projects/home/recap/score_weights/x-2026.yaml",
        "model.tasks[recap.engagement.is_replied]={dlrm_config: {bottom_mlp: {layer_sizes: [4]}, "
        "top_mlp: {layer_sizes: [1]}}}",
    ],
]
"""Settings of the model in the configurations of generated data."""


def test_the_recorder_records_only_reads_of_attributes():
    class Config(BaseConfig):
        used: int = 1
        copied: int = 2
        unused: int = 3

        def identity(self) -> int:
            return self.copied

    recorder = Recorder()
    config, equal = Config(), Config()
    with pytest.MonkeyPatch.context() as patcher:
        recorder.patch(patcher)
        assert config.used == 1
        assert config.identity() == 2
        assert config == equal
        assert "unused" in config.pretty_print()
    assert recorder.fields == {(Config, "used")}
    assert config.unused == 3
    assert recorder.fields == {(Config, "used")}, "the patch has been undone"


def is_movielens(path: Path) -> bool:
    return path.stem.startswith("movielens")


def on_small_data(path: Path, data: Path, save_dir: Path) -> list[str]:
    """Return overrides that make the configuration train a small model for two small steps on `data`."""
    overrides = [f"training.save_dir={save_dir}", "training.num_train_steps=2", "training.num_eval_steps=1"]
    config = load_config_from_yaml(RecapConfig, path)
    assert config.model.backbone is not None
    mask_net = config.model.backbone.mask_net_config
    if mask_net is not None:
        overrides.append("model.backbone.mask_net_config.mlp.layer_sizes=[8]")
    for index in range(len(mask_net.mask_blocks) if mask_net is not None else 0):
        block = f"model.backbone.mask_net_config.mask_blocks[{index}]"
        overrides += [f"{block}.aggregation_size=8", f"{block}.output_size=8"]
    parts = {"train_data": config.train_data}
    parts |= {f"validation_data[{name}]": part for name, part in config.validation_data.items()}
    for key_path, part in parts.items():
        split = "train" if key_path == "train_data" else "validation"
        overrides.append(f"{key_path}.global_batch_size={2 * part.lanes}")
        if config.features is not None:
            overrides.append(f"{key_path}.inputs={data}/{split}.parquet")
            continue
        overrides.append(f"{key_path}.inputs={data}/{split}")
        overrides.append(f"{key_path}.seg_dense_schema.schema_path={data}/schema.json")
        if part.preprocess is not None:
            slices = "{continuous_feature_truncation: 40, binary_feature_truncation: 10}"
            overrides.append(f"{key_path}.preprocess.truncate_and_slice={slices}")
    return overrides


def evaluation_options(path: Path) -> list[str]:
    """Return the options that affect evaluation."""
    config = load_config_from_yaml(RecapConfig, path)
    partitions = list(config.validation_data)
    key_paths = ["train_data", *(f"validation_data[{name}]" for name in partitions)]
    discrete = [f"{key_path}.seg_dense_schema.features=[discrete]" for key_path in key_paths]
    column = "rating_is_5" if is_movielens(path) else "meta__user_id"  # any column of integers
    grouped = f"metrics={{group_by: {column}, ndcg_at: [1]}}"
    choice = f"partition: {partitions[0]}, metric: mean/loss, mode: min"
    compared = [
        f"training.checkpoint_keep_best={{{choice}}}",
        f"training.early_stopping={{{choice}, patience: 1, min_delta: 0.1}}",
        "training.eval_every_n=null",
        "training.checkpoint_max_to_keep=2",
    ]
    strata = [*discrete, "model.stratifiers=[{name: s, index: 0, value: 1}]"] if config.features is None else []
    return [*strata, grouped, *compared]


@pytest.fixture(scope="module")
def runs(recap_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, tuple[set[Field], set[Field]]]:
    """Train each shipped configuration with and without options; return its fields and the fields that were read."""
    directory = tmp_path_factory.mktemp("runs")
    movielens_data = directory / "movielens"
    prepare(write_grouplens(directory / "ml-100k"), movielens_data)
    key_path = directory / "key"
    key_path.write_text("0" * 40)
    key_path.chmod(0o600)
    statistics = directory / "statistics.json"
    statistics.write_text(json.dumps({"features": ["f"] * 20, "mean": [0.5] * 20, "std": [2.0] * 20}))
    for width in (10, 40):
        np.save(directory / f"{width}.npy", np.arange(width) % 2 == 0)
    found = {}
    with pytest.MonkeyPatch.context() as patcher:
        patcher.setenv("KEY_PATH", str(key_path))
        patcher.setenv("MASKS", str(directory))
        patcher.setenv("STATISTICS", str(statistics))
        patcher.setenv("WANDB_MODE", "disabled")
        patcher.setattr(command_line, "setup_logging", lambda _: None)
        for path in SHIPPED:
            recorder = Recorder()
            has: set[Field] = set()
            data = movielens_data if is_movielens(path) else recap_data
            dated = directory / f"{path.stem}-dated"
            (dated / "2023/01/31").mkdir(parents=True)
            if is_movielens(path):
                (dated / "2023/01/31/05").mkdir()
                (dated / "2023/01/31/05/train.parquet").symlink_to(data / "train.parquet")
            else:
                (dated / "2023/01/31/05").symlink_to(data / "train")
            patcher.setenv("DATED", str(dated))
            alternatives = [*OPTIONS, *(MOVIELENS_OPTIONS if is_movielens(path) else GENERATED_OPTIONS)]
            others = [
                [*alternatives, dated, *optimizer, *model, f"optimizer.single_task_learning_rate={rate}"]
                for rate, dated, optimizer, model in zip(
                    RATES,
                    itertools.cycle(DATED),
                    itertools.cycle(OPTIMIZERS),
                    itertools.cycle([[]] if is_movielens(path) else MODELS),
                    strict=False,
                )
            ]
            for index, options in enumerate([[], evaluation_options(path), *others]):
                overrides = [*on_small_data(path, data, directory / f"{path.stem}-{index}"), *options]
                arguments = [word for override in overrides for word in ("--set", override)]
                patcher.setattr(sys, "argv", ["main", "--config", str(path), *arguments])
                has |= fields_within(load_config_from_yaml(RecapConfig, path, overrides))
                with pytest.MonkeyPatch.context() as recording:
                    recorder.patch(recording)
                    assert main.main() == 0
            found[path] = has, recorder.fields
    return found


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_field_of_a_shipped_configuration_is_read(runs, path):
    has, read = runs[path]
    assert len(read) > 60, "fewer means that the recorder does not work"
    config = load_config_from_yaml(RecapConfig, path)
    assert fields_within(config) <= has
    unread = WITH_FEATURES if config.features is not None else set()
    assert names(has - read - ONE_VALUE.keys() - unread) == []


@pytest.mark.parametrize("override", [override for overrides in ONE_VALUE.values() for override in overrides])
def test_a_field_that_is_not_read_allows_only_one_value(override):
    with pytest.raises(ConfigError):
        load_config_from_yaml(RecapConfig, SHIPPED[0], [override])
