"""The code and the commands in docs/prepare.md work as printed."""

import re
import shlex
from pathlib import Path

import pytest

from common.tracking.metrics_file import read_metrics
from tests.docs.test_own_project import run
from tests.support.root import ROOT

pytestmark = pytest.mark.faults

PAGE = (ROOT / "docs/prepare.md").read_text()


def test_the_table_of_the_page_is_prepared_and_learned(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    (command,) = re.findall(r"^    python (-m projects.home.recap.data.prepare .*)$", PAGE, flags=re.MULTILINE)
    (config,) = set(re.findall(r"-m projects.home.recap.main --config (\S+)", PAGE))
    (tmp_path / "make_shop.py").write_text(code)
    run(tmp_path, "make_shop.py")
    run(tmp_path, *shlex.split(command))
    run(tmp_path, "-m", "projects.home.recap.main", "--config", config)
    aurocs = [
        measurement.metrics["clicked/auroc"]
        for measurement in read_metrics(tmp_path / "runs/shop/metrics.jsonl")
        if measurement.partition == "test"
    ]
    assert max(auroc for auroc in aurocs if auroc is not None) > 0.8
