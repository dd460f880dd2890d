import math
import re
from pathlib import Path
from typing import Any

import pytest

from core.config import load_config_from_yaml
from projects.home.recap.config import RecapConfig
from projects.home.recap.data.dataset import check_batching
from projects.home.recap.tools.prepare.configuration import config_text
from projects.home.recap.tools.prepare.split_files import Split

FEATURES: dict[str, dict[str, Any]] = {
    "lanes": {"kind": "number", "missing": 1.5, "buckets": 4, "edges": [0.0, 1e-30, 1.0]},
    "a: #b": {"kind": "category", "vocabulary": "$dir/it's.parquet"},
    "color": {"kind": "category", "hash_buckets": 100, "num_hashes": 2},
}


def config_of(
    folder: Path, rows: int, positives: dict[str, int], out: str = "data/clicks", group: str | None = None
) -> tuple[str, RecapConfig]:
    text = config_text(Path(out), Split("train", Path("unused"), rows, positives, {}), FEATURES, group, None)
    path = folder / "config.yaml"
    path.write_text(text)
    return text, load_config_from_yaml(RecapConfig, path)


@pytest.mark.parametrize("rows", [24, 100, 479, 480, 5_000, 40_000, 800_000, 10**7, 10**9])
def test_any_number_of_rows_trains_on_any_small_number_of_processes(tmp_path: Path, rows: int) -> None:
    _, config = config_of(tmp_path, rows, {"clicked": 3})
    for processes in (1, 2, 3, 4):
        for key_path, data in config.data_sets().items():
            check_batching(data, key_path, processes)
    batch, lanes = config.train_data.global_batch_size, config.train_data.lanes
    steps_per_epoch = (rows // lanes) // (batch // lanes)
    assert steps_per_epoch >= 1
    assert config.training.num_train_steps == steps_per_epoch * (config.training.num_epochs or 0)
    assert config.training.checkpoint_every_n == steps_per_epoch


def test_names_and_values_are_read_as_they_were_written(tmp_path: Path) -> None:
    _, config = config_of(tmp_path, 5000, {"clicked": 100, "bought": 0}, "data/[1] $x/it's")
    assert config.features is not None
    assert list(config.features) == list(FEATURES)
    found = {name: feature.model_dump(mode="json", exclude_defaults=True) for name, feature in config.features.items()}
    assert found == FEATURES
    assert config.train_data.inputs == "data/[[]1] $x/it's/train"
    assert config.validation_data["test"].inputs == "data/[[]1] $x/it's/test"
    assert config.training.save_dir == "runs/it's"


def test_the_bias_of_a_tower_is_the_log_odds_of_its_base_rate(tmp_path: Path) -> None:
    _, config = config_of(tmp_path, 5000, {"clicked": 1000, "never": 0})
    biases = {name: task.affine_map.bias for name, task in config.model.tasks.items() if task.affine_map is not None}
    assert biases["clicked"] == pytest.approx(math.log(0.25), abs=0.01)
    assert biases["never"] == pytest.approx(math.log(0.5 / 5000), abs=0.01)
    assert set(config.train_data.tasks) == {"clicked", "never"}


def test_comments_explain_keys_and_never_a_feature(tmp_path: Path) -> None:
    text, _ = config_of(tmp_path, 5000, {"clicked": 1000}, group="user_id")
    commented = re.findall(r"^ *([^#\n:]+):.*  # ", text, re.MULTILINE)
    assert commented == [
        "num_train_steps",
        "checkpoint_every_n",
        "early_stopping",
        "num_eval_steps",
        "features",
        "lanes",
        "metrics",
        "tasks",
    ]
    assert max(map(len, text.splitlines())) <= 180
