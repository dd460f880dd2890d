"""Writes config.yaml: a small configuration, with comments, that trains the Heavy Ranker on the prepared table."""

import glob
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.config.yaml_writer import to_yaml
from projects.home.recap.tools.prepare import defaults
from projects.home.recap.tools.prepare.defaults import LANES, TableSize
from projects.home.recap.tools.prepare.split_files import SPLITS, Split

_WIDTH = 110
"""A mapping that fits into this number of characters is on one line."""

_HEAD = """\
# Trains the Heavy Ranker on this table. Written by prepare (docs/prepare.md) to fit the number of rows: change what you
# like. docs/configuration.md explains how files are read; the config classes describe every key.
"""

_COMMENTS = {
    "training.num_train_steps": "num_epochs times the steps of an epoch; change final_num_steps, too",
    "training.checkpoint_every_n": "one epoch",
    "training.early_stopping": "patience: evaluations without an improvement after which the run ends",
    "training.num_eval_steps": "the whole partition",
    "features": "docs/features.md; values that training data does not have are unknown to the model",
    "train_data.lanes": "works with 1, 2, 3, 4, 6 and 12 processes, which see the same batches",
    "metrics": "within groups, such as the rows of a user (docs/metrics.md)",
    "model.tasks": "affine_map.bias is the log-odds of the base rate",
}
"""Comments by key path."""


def config_text(
    out: Path, train: Split, features: Mapping[str, Mapping[str, Any]], group: str | None, weight: str | None
) -> str:
    """Return the text of config.yaml.

    Args:
      out: directory of the table, as the user wrote it.
      train: the training data.
      features: settings of the features, by name.
      group: column within whose values metrics are computed; None if there is none.
      weight: column with the weights of the rows; None if there is none.
    """
    size = _table_size(train, len(features))
    batch = defaults.batch_size(size)
    steps_per_epoch = train.num_rows // LANES // (batch // LANES)
    num_steps = steps_per_epoch * defaults.num_epochs(size)
    sections: dict[str, Any] = {"training": _training(out, size, steps_per_epoch), "features": features}
    sections |= _data(out, list(train.positives), batch, weight)
    if group is not None:
        sections["metrics"] = {"group_by": group}
    sections |= {"model": _model(train, size), "optimizer": _optimizer(size, num_steps)}
    text = [_HEAD]
    for key, section in sections.items():
        text += [f"{line}\n" for line in _lines({key: section})]
        text.append("\n")
    return "".join(text[:-1])


def _lines(data: Mapping[str, Any], parent: str = "", indent: str = "") -> list[str]:
    """Return the lines of a mapping: one for a section that is short, or that is a feature."""
    lines = []
    for key, value in data.items():
        path = f"{parent}.{key}" if parent else key
        comment = f"  # {_COMMENTS[path]}" if path in _COMMENTS else ""
        flow = to_yaml({key: value}, flow=True).strip()[1:-1]
        is_long = parent == "" or len(indent) + len(flow) > _WIDTH
        if parent == "features" or not (isinstance(value, Mapping | list) and is_long):
            lines.append(f"{indent}{flow}{comment}")
            continue
        name = to_yaml({key: None}, flow=True).strip().removeprefix("{").removesuffix(" null}")
        lines.append(f"{indent}{name}{comment}")
        if isinstance(value, Mapping):
            lines += _lines(value, path, f"{indent}  ")
        else:
            lines += [f"{indent}  - {to_yaml(item, flow=True).strip()}" for item in value]
    return lines


def _table_size(train: Split, num_features: int) -> TableSize:
    rarer = [min(count, train.num_rows - count) for count in train.positives.values()]
    return TableSize(train.num_rows, num_features, len(train.positives), min(rarer))


def _training(out: Path, size: TableSize, steps_per_epoch: int) -> dict[str, Any]:
    epochs = defaults.num_epochs(size)
    return {
        "save_dir": f"runs/{out.resolve().name}",
        "num_train_steps": steps_per_epoch * epochs,
        "num_epochs": epochs,
        "checkpoint_every_n": steps_per_epoch,
        "checkpoint_max_to_keep": 2,
        "early_stopping": {
            "partition": "validation",
            "metric": "mean/auroc",
            "mode": "max",
            "patience": defaults.patience(size),
        },
        "train_log_every_n": max(1, steps_per_epoch // 5),
        "num_eval_steps": -1,
    }


def _data(out: Path, labels: Sequence[str], batch: int, weight: str | None) -> dict[str, Any]:
    def data(split: str, rows: int) -> dict[str, Any]:
        return {
            "inputs": f"{glob.escape(str(out))}/{split}",
            "global_batch_size": rows,
            "lanes": LANES,
            "tasks": {label: {} for label in labels},
            **({} if weight is None else {"weight_column": weight}),
        }

    return {
        "train_data": data(SPLITS[0], batch),
        "validation_data": {split: data(split, 2 * batch) for split in SPLITS[1:]},
    }


def _model(train: Split, size: TableSize) -> dict[str, Any]:
    width = defaults.block_size(size)
    block = {"aggregation_size": width, "output_size": width, "input_layer_norm": False}
    mlp = {
        "layer_sizes": [defaults.hidden_size(size)],
        "final_layer_activation": True,
        "dropout": {"rate": defaults.dropout(size)},
    }
    towers = {
        label: {
            "mlp_config": {"layer_sizes": [1]},
            "affine_map": {"bias": _log_odds(count, train.num_rows)},
        }
        for label, count in train.positives.items()
    }
    return {
        "multi_task_type": "share_all",
        "featurization_config": {
            "double_norm_log_config": {
                "batch_norm_config": {"affine": True, "momentum": 0.1},
                "clip_magnitude": 5.0,
                "layer_norm_config": None,
            }
        },
        "backbone": {
            "mask_net_config": {
                "use_parallel": True,
                "mask_blocks": [dict(block) for _ in range(defaults.num_blocks(size))],
                "mlp": mlp,
            }
        },
        "tasks": towers,
    }


def _optimizer(size: TableSize, num_steps: int) -> dict[str, Any]:
    num_ramp_steps = max(1, min(num_steps // 10, 500))
    cosine = {
        "learning_rate": defaults.learning_rate(size),
        "final_learning_rate": defaults.final_learning_rate(size),
        "num_ramp_steps": num_ramp_steps,
        "final_num_steps": max(num_steps, num_ramp_steps + 1),
    }
    return {
        "adamw": {"weight_decay": defaults.weight_decay(size)},
        "single_task_learning_rate": {"linear_ramp_to_cosine": cosine},
    }


def _log_odds(positives: int, rows: int) -> float:
    """Return the log-odds of a base rate, as if half a row more were positive and half a row more negative."""
    return round(math.log((positives + 0.5) / (rows - positives + 0.5)), 2)
