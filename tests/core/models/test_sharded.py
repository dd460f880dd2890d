"""Importing the module. tests/distributed/ranks/test_sharded.py covers tables that are sharded over ranks."""

import subprocess
import sys

from tests.support.root import ROOT

PROGRAM = """
import logging
import sys
import warnings

import torch.distributed._shard.sharded_tensor

loggers = logging.root.manager.loggerDict
def levels():
    named = {name: logger.level for name, logger in loggers.items() if isinstance(logger, logging.Logger)}
    return {"": logging.root.level} | {name: level for name, level in named.items() if level != logging.NOTSET}

filters, before = list(warnings.filters), levels()
import core.models.sharded

assert warnings.filters == filters
assert levels() == before, (before, levels())
assert not [name for name in sys.modules if name.split(".")[0] in ("torchrec", "fbgemm_gpu")]
"""


def test_an_import_changes_no_warning_filter_and_no_logger_level_and_needs_no_torchrec() -> None:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, timeout=120, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
