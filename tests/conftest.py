"""Fixtures for all tests: small data sets, and a reset of logging after each test."""

import logging
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from projects.home.recap.tools.generate import PRESETS, generate
from projects.twhin.tools.generate import generate as generate_graph


def pytest_configure() -> None:
    """Do not let tests inherit ignored signals, as under nohup: programs that they start would ignore them too."""
    for number, handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu") is not None:
                item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture(scope="session")
def recap_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generate the default data set with 2,000 rows for training and 500 for validation."""
    directory = tmp_path_factory.mktemp("recap") / "data"
    generate(directory, PRESETS["default"], 0, (2000, 500))
    return directory


@pytest.fixture(scope="session")
def twhin_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generate the default graph with 1,000 users, 600 tweets and 5,000 edges."""
    directory = tmp_path_factory.mktemp("twhin") / "data"
    generate_graph(directory, 0, 1000, 600, 5000)
    return directory


@pytest.fixture(autouse=True)
def reset_logging() -> Iterator[None]:
    """Undo changes to logging and warnings by programs that ran in this process."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with warnings.catch_warnings():
        yield
    logging.captureWarnings(False)
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
    root.setLevel(level)
