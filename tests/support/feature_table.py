"""A table with features of all kinds, and a configuration that trains on it."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from core.config.yaml_writer import to_yaml

COUNTRIES = ["de", "fr", "us"]
ITEMS = 12
VOCABULARY = "countries.parquet"

FEATURES: dict[str, dict[str, Any]] = {
    "age": {"kind": "number", "buckets": 4, "indicator": True},
    "income.gross": {"kind": "number"},
    "history": {"kind": "numbers", "buckets": 3, "indicator": True},
    "vip": {"kind": "boolean", "indicator": True},
    "country": {"kind": "category", "vocabulary": VOCABULARY},
    "items": {"kind": "category", "num_values": ITEMS, "table": "item"},
    "last items": {"kind": "categories", "num_values": ITEMS, "table": "item", "max_length": 3},
    "device": {"kind": "category", "hash_buckets": 20, "num_hashes": 2, "embedding_dim": 3},
    "tags": {"kind": "categories", "hash_buckets": 20, "pooling": "sum", "max_length": 2},
    "seen_at": {"kind": "timestamp", "time_zone": "Europe/Berlin", "age": {"before": "served_at", "unit": "days"}},
    "text": {"kind": "embedding"},
}
"""Features of all kinds. Their values for missing numbers, edges and lengths come from the data."""

LABEL = "clicked"


def write_vocabulary(path: Path, values: list[str]) -> None:
    """Write a vocabulary whose values are numbered in the given order, and occurred ten times each."""
    columns = {"value": values, "index": range(len(values)), "count": [10] * len(values)}
    pq.write_table(pa.table({name: list(column) for name, column in columns.items()}), path)


def table(rows: int, seed: int = 0) -> pa.Table:
    """Return rows with missing values in every feature, and unknown ones in every category."""
    rng = np.random.default_rng(seed)

    def some(values: list[Any]) -> list[Any]:
        return [None if rng.random() < 0.15 else value for value in values]

    def pick(values: list[Any], size: int) -> list[Any]:
        return [values[index] for index in rng.integers(len(values), size=size)]

    ages = rng.normal(40, 12, rows)
    countries = some(pick([*COUNTRIES, "??"], rows))
    score = (ages - 40) / 12 + np.array([country == "us" for country in countries])
    served = np.datetime64("2024-06-01T00:00:00", "ms") + rng.integers(0, 10**9, rows)
    items = list(range(ITEMS + 2))
    return pa.table(
        {
            "age": some(ages.tolist()),
            "income.gross": some((rng.exponential(1000, rows) * (rng.random(rows) < 0.3)).tolist()),
            "history": pa.array(
                some([some(row) for row in rng.normal(size=(rows, 2)).tolist()]), pa.list_(pa.float64(), 2)
            ),
            "vip": some(pick([True, False], rows)),
            "country": countries,
            "items": some(pick(items, rows)),
            "last items": some([some(pick(items, int(rng.integers(5)))) for _ in range(rows)]),
            "device": some(pick([f"device {number}" for number in range(50)], rows)),
            "tags": some([some(pick(["a", "b", "c"], int(rng.integers(4)))) for _ in range(rows)]),
            "seen_at": pa.array(some((served - rng.integers(0, 10**10, rows)).tolist()), pa.timestamp("ms")),
            "served_at": pa.array(some(served.tolist()), pa.timestamp("ms")),
            "text": pa.array(some(rng.normal(size=(rows, 4)).tolist()), pa.list_(pa.float32(), 4)),
            LABEL: (score + rng.logistic(size=rows) > 0.5).astype(float),
        }
    )


def write_data(directory: Path, train_rows: int = 400, validation_rows: int = 100) -> Path:
    """Write train.parquet, validation.parquet and the vocabulary, and return the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for seed, (name, rows) in enumerate((("train", train_rows), ("validation", validation_rows))):
        pq.write_table(table(rows, seed), directory / f"{name}.parquet", row_group_size=60)
    write_vocabulary(directory / VOCABULARY, COUNTRIES)
    return directory


def config(data: Path, save_dir: Path, features: dict[str, dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return a configuration of a small model: 12 steps of 48 rows, logged each, saved and evaluated every 4."""

    def data_set(name: str) -> dict[str, Any]:
        return {"inputs": f"{data}/{name}.parquet", "global_batch_size": 48, "lanes": 6, "tasks": {LABEL: {}}}

    layer_norm: dict[str, Any] = {}
    return {
        "training": {
            "num_train_steps": 12,
            "num_epochs": 3,
            "train_log_every_n": 1,
            "checkpoint_every_n": 4,
            "save_dir": str(save_dir),
        },
        "features": {
            name: feature | ({"vocabulary": f"{data}/{VOCABULARY}"} if feature.get("vocabulary") == VOCABULARY else {})
            for name, feature in (FEATURES if features is None else features).items()
        },
        "train_data": data_set("train"),
        "validation_data": {"validation": data_set("validation")},
        "model": {
            "tasks": {LABEL: {"mlp_config": {"layer_sizes": [8, 1]}}},
            "featurization_config": {"double_norm_log_config": {"layer_norm_config": layer_norm}},
        },
        "optimizer": {"single_task_learning_rate": {"constant": 0.01}, "adam": {}},
    }


def write_config(path: Path, values: dict[str, Any]) -> Path:
    """Write a configuration, and return its path."""
    path.write_text(to_yaml(values))
    return path
