"""The code and the configuration in docs/features.md work as printed."""

import re
from pathlib import Path

import pytest

from common.features.config import MAX_VALUES, default_embedding_dim
from common.tracking.metrics_file import read_metrics
from tests.docs.test_own_project import run
from tests.support.root import ROOT

pytestmark = pytest.mark.faults

PAGE = (ROOT / "docs/features.md").read_text()


def test_the_table_of_the_page_is_written_and_learned(tmp_path: Path) -> None:
    code, config = re.findall(r"```(?:python|yaml)\n(.*?)```", PAGE, flags=re.DOTALL)
    (tmp_path / "make_shop.py").write_text(code)
    (tmp_path / "shop.yaml").write_text(config)
    run(tmp_path, "make_shop.py")
    run(tmp_path, "-m", "projects.home.recap.main", "--config", "shop.yaml")
    last = read_metrics(tmp_path / "runs/shop/metrics.jsonl")[-1]
    assert last.step == 3 * (20_000 // 256)
    auroc = last.metrics["clicked/auroc"]
    assert auroc is not None
    assert auroc > 0.7


def test_the_page_states_the_limits_of_the_code() -> None:
    assert f"at most {MAX_VALUES:,} values" in PAGE
    assert [default_embedding_dim(2 + values) for values in (100, 10_000)] == [16, 44]
    assert f"{default_embedding_dim(102)} for 100 values, {default_embedding_dim(10_002)} for 10,000" in PAGE
