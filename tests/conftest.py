"""What several tests share: a tiny data set and the shipped configuration made small."""

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from projects.home.recap.data.generate import PRESETS, generate
from projects.twhin.data.generate import generate as generate_graph

ROOT = Path(__file__).resolve().parent.parent
LOCAL_YAML = ROOT / "projects/home/recap/configs/local.yaml"
TWHIN_LOCAL_YAML = ROOT / "projects/twhin/configs/local.yaml"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu") is not None:
                item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture(scope="session")
def recap_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default data set with 2,000 rows to train on and 500 to validate."""
    directory = tmp_path_factory.mktemp("recap") / "data"
    generate(directory, PRESETS["default"], 0, (2000, 500))
    return directory


def small_run(data: Path, save_dir: Path, *overrides: str) -> list[str]:
    """Arguments of projects.home.recap.main: local.yaml on `data`, 12 steps of 96 rows, log every 3, save every 4."""
    settings = [
        f"training.save_dir={save_dir}",
        "training.num_train_steps=12",
        "training.checkpoint_every_n=4",
        "training.train_log_every_n=3",
        f"train_data.inputs={data}/train",
        f"train_data.seg_dense_schema.schema_path={data}/schema.json",
        "train_data.global_batch_size=96",
        f"validation_data.validation.inputs={data}/validation",
        f"validation_data.validation.seg_dense_schema.schema_path={data}/schema.json",
        "validation_data.validation.global_batch_size=96",
        *overrides,
    ]
    return ["--config", str(LOCAL_YAML), *(word for setting in settings for word in ("--set", setting))]


@pytest.fixture(scope="session")
def twhin_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default graph with 1,000 users, 600 tweets and 5,000 edges."""
    directory = tmp_path_factory.mktemp("twhin") / "data"
    generate_graph(directory, 0, 1000, 600, 5000)
    return directory


def small_twhin_run(data: Path, save_dir: Path, *overrides: str) -> list[str]:
    """Arguments of projects.twhin.main: local.yaml on `data`, 12 steps of 600 edges, log every 3, save every 4."""
    settings = [
        f"training.save_dir={save_dir}",
        "training.num_train_steps=12",
        "training.checkpoint_every_n=4",
        "training.train_log_every_n=3",
        "model.embeddings.tables[0].num_embeddings=1000",
        "model.embeddings.tables[1].num_embeddings=600",
        *(
            f"model.embeddings.tables[{index}].vocab={data}/vocabulary/{table}.parquet"
            for index, table in enumerate(("user", "tweet"))
        ),
        f"train_data.data_root={data}/train",
        "train_data.global_batch_size=600",
        "train_data.global_negatives=40",
        "train_data.in_batch_negatives=20",
        f"validation_data.validation.data_root={data}/validation",
        "validation_data.validation.global_batch_size=60",
        *overrides,
    ]
    return ["--config", str(TWHIN_LOCAL_YAML), *(word for setting in settings for word in ("--set", setting))]


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Takes back what a program that runs in this process does to logging and warnings."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with warnings.catch_warnings():
        yield
    logging.captureWarnings(False)
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
    root.setLevel(level)
