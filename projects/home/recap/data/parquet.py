"""The layout of the Parquet tables that the Heavy Ranker reads.

Owns the names, types and widths of the columns, and schema.json. Other modules produce values (tools/generate.py),
write them (common/files/table_writer.py) and read them (dataset.py). Use this module to write your own tables too:

    columns = recap_columns(Widths(continuous=48, binary=16), tasks=["my_label"])
    with TableWriter(Path("data/train/part-00000.parquet"), columns) as writer:
        writer.write({"continuous": ..., "binary": ..., ...})   # any number of times
    write_schema_json(Path("data/schema.json"), columns)
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.files.table_writer import TableColumn

TASKS = tuple(
    f"recap.engagement.{label}"
    for label in (
        "is_favorited",
        "is_good_clicked_convo_desc_favorited_or_replied",
        "is_good_clicked_convo_desc_v2",
        "is_negative_feedback_v2",
        "is_profile_clicked_and_profile_engaged",
        "is_replied",
        "is_replied_reply_engaged_by_author",
        "is_report_tweet_clicked",
        "is_retweeted",
        "is_video_playback_50",
    )
)
"""The labels of the Heavy Ranker, in the order of its outputs."""

EMBEDDINGS = ("user_embedding", "user_eng_embedding", "author_embedding")
IDS = ("meta__user_id", "meta__author_id", "meta__tweet_id")
TEACHER_PREFIX = "teacher."
"""Prefix of optional float32 columns: the probability that the label was drawn from. They are never features."""


class Widths(NamedTuple):
    """Values per row of each vector column; 0 omits the column. `embedding` applies to each of EMBEDDINGS."""

    continuous: int
    binary: int
    discrete: int = 0
    embedding: int = 0


def recap_columns(
    widths: Widths, tasks: Iterable[str] = TASKS, *, ids: bool = False, teacher: bool = False
) -> list[TableColumn]:
    """Return the columns of a Heavy Ranker table, in file order.

    The columns are `continuous` (float32), `binary` (uint8, 0 or 1), `discrete` (int64), the EMBEDDINGS (float32), the
    IDS (int64, only with `ids`), a label per task (int8, 0 or 1) and, only with `teacher`, a probability per task
    named `teacher.<task>` (float32).
    """
    tasks = list(tasks)
    columns = [
        TableColumn("continuous", "float32", widths.continuous),
        TableColumn("binary", "uint8", widths.binary),
        *(TableColumn("discrete", "int64", width) for width in (widths.discrete,) if width),
        *(TableColumn(name, "float32", widths.embedding) for name in EMBEDDINGS if widths.embedding),
        *(TableColumn(name, "int64") for name in IDS if ids),
        *(TableColumn(task, "int8") for task in tasks),
    ]
    return columns + [TableColumn(TEACHER_PREFIX + task, "float32") for task in tasks if teacher]


def write_schema_json(path: Path, columns: Iterable[TableColumn]) -> None:
    """Write `columns` as a segdense schema, without the teacher's columns.

    `{"schema": [{"dtype": "float_list" | "int64_list", "feature_name": ..., "length": ...}, ...]}`
    """
    entries = [
        {
            "dtype": "float_list" if np.dtype(column.dtype).kind == "f" else "int64_list",
            "feature_name": column.name,
            "length": column.width or 1,
        }
        for column in columns
        if not column.name.startswith(TEACHER_PREFIX)
    ]
    path.write_text(json.dumps({"schema": entries}, indent=2) + "\n")
