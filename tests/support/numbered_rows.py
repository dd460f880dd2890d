"""Writes small files of numbered rows, and opens data sets that preprocess them."""

from pathlib import Path
from typing import Any

import numpy as np

from common.files.table_writer import TableColumn, TableWriter
from projects.home.recap.data.batch import RecapBatch
from projects.home.recap.data.config import RecapDataConfig
from projects.home.recap.data.dataset import RecapDataset
from projects.home.recap.data.parquet import write_schema_json

HOUR = 3_600_000
SERVED = 1_700_000_000_000
TASKS = ("like", "reply")
COLUMNS = [
    TableColumn("continuous", "float32", 5),
    TableColumn("binary", "uint8", 3),
    TableColumn("discrete", "int64", 4),
    TableColumn("user_embedding", "float32", 2),
    *(TableColumn(name, "int8") for name in (*TASKS, "share")),
    *(TableColumn(f"{event}_ms", "int64") for event in ("served", "impressed", "liked", "replied")),
]

RECTIFY = {
    "served_timestamp_field": "served_ms",
    "impressed_timestamp_field": "impressed_ms",
    "label_to_engaged_timestamp_field": {"like": "liked_ms"},
}

Rows = dict[str, np.ndarray[Any, Any]]


def numbered_rows(num_rows: int) -> Rows:
    """Return rows whose number is stored in continuous[0]."""
    number = np.arange(num_rows)
    times = {f"{event}_ms": np.full(num_rows, SERVED) for event in ("served", "impressed", "liked", "replied")}
    return {
        "continuous": (number[:, None] + np.array([0.0, 0.25, 0.5, 0.75, 100.0])).astype(np.float32),
        "binary": np.stack([number % 2, number % 3 == 0, number < 0], axis=1).astype(np.uint8),
        "discrete": np.stack([number % 7, number * 1000, np.full(num_rows, SERVED), -number], axis=1),
        "user_embedding": np.stack([number / 4, -number / 4], axis=1).astype(np.float32),
        "like": (number % 3 == 0).astype(np.int8),
        "reply": (number % 4 == 1).astype(np.int8),
        "share": (number % 5 == 2).astype(np.int8),
        **times,
    }


def write(folder: Path, rows: Rows, row_group_size: int = 7) -> None:
    write_schema_json(folder / "schema.json", COLUMNS[:4])
    with TableWriter(folder / "part-0.parquet", COLUMNS, row_group_size) as writer:
        writer.write(rows)


def config(folder: Path, preprocess: dict[str, Any], **changes: Any) -> RecapDataConfig:
    given = {
        "inputs": str(folder),
        "global_batch_size": 32,
        "lanes": 1,
        "seg_dense_schema": {"schema_path": str(folder / "schema.json")},
        "tasks": {task: {} for task in (*TASKS, "share")},
        "preprocess": preprocess,
    }
    return RecapDataConfig.model_validate(given | changes)


def opened(data: RecapDataConfig, *, evaluation: bool = True) -> RecapDataset:
    return RecapDataset.open(data, TASKS, "train_data", evaluation=evaluation)


def in_stored_order(data: RecapDataConfig, num_rows: int) -> RecapBatch:
    """Return the rows as one batch in stored order, without padding rows."""
    [item] = opened(data).reader(0, 1).evaluate()
    return item.batch._map(lambda tensor: tensor[:num_rows])


def extract(*rows: tuple[str, str, int]) -> dict[str, Any]:
    """Return a `preprocess` section that extracts values; each row is (name, source_tensor, index)."""
    table = [{"name": name, "source_tensor": source, "index": index} for name, source, index in rows]
    return {"extract_features": {"extract_feature_table": table}}


def with_times(impressed: list[float], engaged: list[float]) -> Rows:
    """Rows with all labels 1; in hours after serving."""
    rows = numbered_rows(len(impressed)) | {task: np.ones(len(impressed), np.int8) for task in TASKS}
    rows["impressed_ms"] = SERVED + (np.array(impressed) * HOUR).astype(np.int64)
    rows["liked_ms"] = SERVED + (np.array(engaged) * HOUR).astype(np.int64)
    rows["replied_ms"] = rows["liked_ms"][::-1].copy()
    return rows
