"""The code and the configuration in docs/data.md work as printed."""

import re
from pathlib import Path

from common.tracking.metrics_file import read_metrics
from tests.docs.test_own_project import run
from tests.support.root import ROOT


def test_the_table_of_the_page_is_written_and_learned(tmp_path: Path) -> None:
    code, config = re.findall(r"```(?:python|yaml)\n(.*?)```", (ROOT / "docs/data.md").read_text(), flags=re.DOTALL)
    (tmp_path / "make_purchases.py").write_text(code)
    (tmp_path / "purchases.yaml").write_text(config)
    run(tmp_path, "make_purchases.py")
    run(tmp_path, "-m", "projects.home.recap.main", "--config", "purchases.yaml")
    last = read_metrics(tmp_path / "runs/purchases/metrics.jsonl")[-1]
    assert last.step == 4 * (20_000 // 256)
    for task in ("clicked", "bought"):
        auroc = last.metrics[f"{task}/auroc"]
        assert auroc is not None
        assert auroc > 0.8
