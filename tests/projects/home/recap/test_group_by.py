"""metrics.group_by: the column of the files that ends up as groups in the metrics of a run."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.checkpointing.directory import complete_steps
from common.errors import ConfigError
from common.reader.files import DataError
from common.reader.vectors import with_lists
from projects.home.recap.main import main
from tests.support import feature_table
from tests.support.runs import small_run

KINDS = {0: "zero", 1: "eins, eine Zeichenkette von mehr als 32 Bytes"}
EXACT = "metrics={exact: true, group_by: kind, ndcg_at: [50]}"
STRATA = "model.stratifiers=[{name: zero, index: 3, value: 0}, {name: one, index: 3, value: 1}]"


@pytest.fixture(scope="module")
def data(recap_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Add a column of strings to the validation data: the discrete feature that strata select, as words and nulls."""
    directory = tmp_path_factory.mktemp("grouped") / "data"
    shutil.copytree(recap_data, directory)
    for path in (directory / "validation").glob("*.parquet"):
        table = pq.read_table(path)
        kinds = [KINDS.get(values[3]) for values in with_lists(table)["discrete"].to_pylist()]
        pq.write_table(table.append_column("kind", pa.array(kinds, pa.string())), path)
    return directory


def run(data: Path, save_dir: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> list[dict[str, Any]]:
    """Run the program, and return the metrics of its evaluations."""
    monkeypatch.setattr(sys, "argv", ["main", *small_run(data, save_dir, *overrides)])
    assert main() == 0
    return evaluations(save_dir)


def evaluations(save_dir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (save_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["metrics"] for line in lines if line["mode"] == "evaluate"]


def test_each_string_is_a_group(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    best = "training.checkpoint_keep_best={partition: validation, metric: mean/gauc, mode: max}"
    options = (EXACT, STRATA, best, "training.checkpoint_max_to_keep=2")
    measured = run(data, tmp_path / "run", monkeypatch, *options)
    metrics = measured[-1]
    examples = {name: metrics[f"stratum/{name}/examples"] for name in ("zero", "one")}
    assert 0 < sum(examples.values()) < metrics["examples"] == 500
    assert metrics["groups"] == 2
    known = []
    for task in {name.partition("/")[0] for name in metrics} - {"mean", "stratum", "examples", "groups"}:
        aurocs = {name: metrics[f"stratum/{name}/{task}/auroc"] for name in examples}
        covered = {name: examples[name] for name, auroc in aurocs.items() if auroc is not None}
        assert metrics[f"{task}/groups_with_both_classes"] == len(covered)
        assert metrics[f"{task}/gauc_coverage"] == pytest.approx(sum(covered.values()) / 500, rel=1e-6)
        if covered:
            expected = sum(aurocs[name] * weight for name, weight in covered.items()) / sum(covered.values())
            assert metrics[f"{task}/gauc"] == pytest.approx(expected, rel=1e-12)
            known.append(expected)
    assert len(known) > 5
    assert metrics["mean/gauc"] == pytest.approx(sum(known) / len(known), rel=1e-12)
    assert 0 < metrics["mean/ndcg_at_50"] < 1
    assert 0 < metrics["mean/mrr"] <= 1
    printed = capsys.readouterr()
    assert re.search(r"\ntask +loss +RCE +NRCE +AUROC +GAUC ", printed.out)
    assert ", mean/gauc 0." in printed.err
    values = [evaluation["mean/gauc"] for evaluation in measured]
    best_step = 4 * (max(range(3), key=lambda index: (values[index], index)) + 1)
    assert best_step in complete_steps(tmp_path / "run/checkpoints")


def test_groups_change_neither_training_nor_other_metrics(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Integers may be groups too. The column is read only from validation data."""
    plain = run(data, tmp_path / "plain", monkeypatch)
    grouped = run(data, tmp_path / "grouped", monkeypatch, "metrics.group_by=meta__user_id")
    for before, after in zip(plain, grouped, strict=True):
        assert {name: after[name] for name in before} == before
        assert after["groups"] > 100
        assert {name.rpartition("/")[2] for name in after.keys() - before.keys()} == {
            *("groups", "gauc", "gauc_coverage", "groups_with_both_classes"),
            *("ndcg_at_10", "mrr", "groups_with_positives"),
        }
    inputs = f"validation_data.validation.inputs={data}/train"
    with pytest.raises(DataError, match=r"no column 'kind'.*metrics\.group_by names it"):
        run(data, tmp_path / "missing", monkeypatch, "metrics.group_by=kind", inputs)
    assert not (tmp_path / "missing").exists()


def test_a_metric_of_groups_needs_groups(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = "training.checkpoint_keep_best={partition: validation, metric: mean/gauc, mode: max}"
    with pytest.raises(ConfigError, match=r"checkpoint_keep_best\.metric is 'mean/gauc', but the metrics of"):
        run(data, tmp_path / "run", monkeypatch, best, "training.checkpoint_max_to_keep=2")


@pytest.mark.parametrize("column", ["device", "items"])
def test_a_column_may_be_a_feature_and_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str) -> None:
    """`device` has strings that are decoded as a dictionary, and `items` has integers; both have nulls."""
    directory = feature_table.write_data(tmp_path / "data")
    found = {}
    for name in ("plain", "grouped"):
        path = tmp_path / f"{name}.yaml"
        feature_table.write_config(path, feature_table.config(directory, tmp_path / name))
        grouped = ["--set", f"metrics.group_by={column}"] if name == "grouped" else []
        monkeypatch.setattr(sys, "argv", ["main", "--config", str(path), *grouped])
        assert main() == 0
        found[name] = evaluations(tmp_path / name)[-1]
    assert {key: found["grouped"][key] for key in found["plain"]} == found["plain"]
    labels: dict[Any, list[float]] = {}
    for row in pq.read_table(directory / "validation.parquet").to_pylist():
        labels.setdefault(row[column], []).append(row[feature_table.LABEL])
    assert len(labels.pop(None)) > 5
    both = [group for group in labels.values() if 0 < sum(group) < len(group)]
    expected = {
        "groups": len(labels),
        "clicked/groups_with_both_classes": len(both),
        "clicked/gauc_coverage": sum(map(len, both)) / 100,
        "clicked/groups_with_positives": sum(sum(group) > 0 for group in labels.values()),
    }
    assert {key: found["grouped"][key] for key in expected} == pytest.approx(expected, rel=1e-12)
