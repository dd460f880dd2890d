"""What several tests share: a tiny data set and the shipped configuration made small."""

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from projects.home.recap.tools.generate import PRESETS, generate
from projects.twhin.tools.generate import generate as generate_graph


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


@pytest.fixture(scope="session")
def twhin_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default graph with 1,000 users, 600 tweets and 5,000 edges."""
    directory = tmp_path_factory.mktemp("twhin") / "data"
    generate_graph(directory, 0, 1000, 600, 5000)
    return directory


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
