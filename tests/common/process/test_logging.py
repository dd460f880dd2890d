import re
import subprocess
import sys

from tests.support.root import ROOT

PROGRAM = """
import logging, sys, warnings
from common.process.logging import setup_logging
setup_logging(int(sys.argv[1]))
setup_logging(int(sys.argv[1]))  # the second call adds nothing
logger = logging.getLogger("core.anything")
logger.debug("debug output")
logger.info("step %d", 5)
logger.error("an error")
warnings.warn("a warning")
logger.info("wrong %d", "arguments")
raise KeyError("a traceback")
"""


def standard_error(rank: int) -> str:
    """Run PROGRAM on a rank and return what it writes to standard error."""
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(rank)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert process.stdout == ""
    assert process.returncode == 1
    return process.stderr


def test_rank_0_logs_from_level_info():
    stderr = standard_error(0)
    assert re.search(r"^\d\d:\d\d:\d\d INFO step 5$", stderr, re.MULTILINE)
    assert stderr.count("step 5") == 1
    assert "ERROR an error" in stderr
    assert "a warning" in stderr
    assert "debug output" not in stderr
    assert "KeyError: 'a traceback'" in stderr


def test_other_ranks_print_nothing_but_a_traceback():
    stderr = standard_error(1)
    assert stderr.startswith("Traceback")
    assert stderr.endswith("KeyError: 'a traceback'\n")
    assert "an error" not in stderr
