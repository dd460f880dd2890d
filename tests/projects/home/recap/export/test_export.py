"""Checks an export of a small run with features of all kinds: each file against the ranker of the checkpoint."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import roc_auc_score

from common.errors import UserError
from common.reader.files import matching_files
from core.checkpoints.chosen import choose_checkpoint
from projects.home.recap.config import RecapConfig
from projects.home.recap.export.compare import ComparedRows
from projects.home.recap.export.export import export, report
from projects.home.recap.export.flat_ranker import flatten, ranker_inputs
from projects.home.recap.export.rows import choose_rows, read_rows
from projects.home.recap.export.score import Ranker
from projects.home.recap.main import main
from projects.home.recap.saved import load_saved_ranker
from tests.support.comparison import logged
from tests.support.export import forget_precision
from tests.support.exported_encoder import as_arrays, as_lists
from tests.support.feature_table import COUNTRIES, LABEL, config, write_config, write_data


class Run:
    """A run and its export, without AOTInductor."""

    def __init__(self, directory: Path) -> None:
        self.data = write_data(directory / "data")
        values = config(self.data, directory / "run")
        values["training"]["ema_decay"] = 0.5
        values["metrics"] = {"exact": True}
        values["model"]["score_weights"] = {LABEL: 3.0}
        arguments = ["main", "--config", str(write_config(directory / "config.yaml", values))]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", arguments)
            assert main() == 0
        forget_precision()
        self.checkpoint = choose_checkpoint(directory / "run", best=False)
        self.save_dir = directory / "run"
        self.exported = export(self.checkpoint, directory / "export", compiles=False)

    @property
    def signature(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.exported.out / "signature.json").read_text())
        return loaded


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("export"))


def test_the_files_score_rows_as_the_ranker_with_averaged_weights_does(run: Run) -> None:
    saved = load_saved_ranker(run.checkpoint)
    table = saved.open_table(matching_files(str(run.data / "validation.parquet")))
    session = onnxruntime.InferenceSession(run.exported.out / "model.onnx")
    program = torch.export.load(run.exported.out / "model.pt2").module()
    for rows in (1, 2, 17):
        arguments = saved.inputs(table.decode(0), 0, rows, rows)
        expected = saved.ranker(**arguments)
        tensors = {
            "continuous": arguments["continuous"],
            "binary": arguments["binary"].float(),
            "embeddings.text": arguments["embeddings"]["text"],
            "ids": arguments["ids"],
        }
        assert [each["name"] for each in run.signature["inputs"]] == list(tensors)
        values = session.run(None, {name: tensor.numpy() for name, tensor in tensors.items()})
        for name, value, shape in zip(expected, values, session.get_outputs(), strict=True):
            assert (shape.name, shape.shape[0]) == (name, "batch")
            np.testing.assert_allclose(value, expected[name].numpy(), rtol=0, atol=1e-6)
        for name, tensor in program(tensors).items():
            torch.testing.assert_close(tensor, expected[name])


def test_signature_describes_inputs_outputs_features_and_source(run: Run) -> None:
    found = run.signature
    assert {(each["name"], each["dtype"], *each["shape"]) for each in found["inputs"]} == {
        ("continuous", "float32", "batch", 5),
        ("binary", "float32", "batch", 5),
        ("embeddings.text", "float32", "batch", 4),
        ("ids", "int32", "batch", 11),
    }
    assert ("score", "float64", ["batch"]) in [tuple(each.values()) for each in found["outputs"]]
    assert (found["tasks"], found["score_weights"], found["aotinductor"]) == ([LABEL], {LABEL: 3.0}, None)
    assert found["checkpoint"]["step"] == 12
    assert found["features"]["age"]["missing"] is not None
    vocabulary = found["features"]["country"]["vocabulary"]
    assert json.loads((run.exported.out / vocabulary).read_text()) == COUNTRIES
    assert found["vocabularies"][vocabulary]["num_values"] == len(COUNTRIES)


def test_the_averages_of_the_weights_are_exported(run: Run) -> None:
    """The evaluation of the run uses the averages."""
    saved = load_saved_ranker(run.checkpoint)
    validation = run.data / "validation.parquet"
    table = saved.open_table(matching_files(str(validation)))
    program = torch.export.load(run.exported.out / "model.pt2").module()
    found = []
    for index, rows in enumerate(table.rows_per_group):
        tensors = flatten(saved.inputs(table.decode(index), 0, rows, rows), ranker_inputs(saved))
        found += program(tensors)["calibrated_probabilities"][:, 0].tolist()
    metrics = logged(run.save_dir)[-1][3]
    expected = metrics[f"{LABEL}/auroc"]
    assert roc_auc_score(pq.read_table(validation)[LABEL], found) == pytest.approx(expected, rel=1e-9)


class _OtherInExports(torch.nn.Module):
    """A tower that computes another logit when it is exported."""

    def __init__(self, tower: torch.nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.tower(inputs)
        return logits + 1e-3 if torch.compiler.is_exporting() else logits


def test_a_model_that_differs_from_the_ranker_is_refused_and_nothing_is_left(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = load_saved_ranker(run.checkpoint)
    saved.ranker.towers[LABEL] = _OtherInExports(saved.ranker.towers[LABEL])
    monkeypatch.setattr("projects.home.recap.export.export.load_saved_ranker", lambda _: saved)
    with pytest.raises(UserError, match=f"^model.pt2: logits of the task {LABEL} is .* the ranker computes"):
        export(run.checkpoint, tmp_path / "new" / "out", compiles=False)
    assert list(tmp_path.iterdir()) == []


def test_without_a_compiler_the_package_is_skipped(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    forget_precision()
    exported = export(run.checkpoint, tmp_path / "out")
    assert (tmp_path / "out" / "model.onnx").exists()
    assert not (tmp_path / "out" / "model-aotinductor.pt2").exists()
    assert "because there is no C++ compiler no-such-compiler (the environment variable CXX" in report(exported)


def test_an_existing_directory_stays_as_it_is(run: Run) -> None:
    with pytest.raises(UserError, match="already exists and is not empty"):
        export(run.checkpoint, run.exported.out, compiles=False)
    assert (run.exported.out / "signature.json").exists()


def test_a_missing_package_is_reported_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(
        UserError, match=r"needs onnxscript, .*pip install -r requirements-serving.txt -c constraints.txt"
    ):
        export(tmp_path / "no checkpoint", tmp_path / "out")


def test_a_model_above_the_limit_of_one_file_has_its_weights_in_a_second_one(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projects.home.recap.export.formats._MAX_BYTES_IN_ONE_FILE", 1000)
    forget_precision()
    exported = export(run.checkpoint, tmp_path / "out", compiles=False)
    assert {"model.onnx", "model.onnx.data"} < exported.files.keys()
    onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    assert exported.files["model.onnx"] < run.exported.files["model.onnx"]


@pytest.mark.parametrize("model", ["model.onnx", "model.pt2"])
def test_score_py_scores_columns_as_the_ranker_scores_what_the_reader_reads(run: Run, model: str) -> None:
    path = run.data / "validation.parquet"
    saved = load_saved_ranker(run.checkpoint)
    table = saved.open_table(matching_files(str(path)))
    raw = pq.read_table(path)
    ranker = Ranker(run.exported.out, model)
    first = 0
    for group, rows in enumerate(table.rows_per_group.tolist()):
        expected = saved.ranker(**saved.inputs(table.decode(group), 0, rows, rows))
        for columns in (as_lists(raw.slice(first, rows)), as_arrays(raw.slice(first, rows))):
            found = ranker(columns)
            assert found.keys() == expected.keys()
            for name, values in found.items():
                np.testing.assert_allclose(values, expected[name].numpy(), rtol=0, atol=1e-5, err_msg=name)
        first += rows
    assert first == raw.num_rows


ALONE = """
import runpy, sys
path, *hidden = sys.argv[1:]
sys.modules.update(dict.fromkeys(hidden))
sys.argv = [path]
runpy.run_path(path, run_name="__main__")
loaded = {name.partition(".")[0] for name, module in sys.modules.items() if module is not None}
assert not loaded & {"common", "core", "projects", "pyarrow", "pandas", "pydantic", "onnx", "xxhash"}, loaded
"""


@pytest.mark.faults
@pytest.mark.parametrize("absent", [["torch", "xxhash"], ["onnxruntime", "xxhash"]])
def test_score_py_runs_where_this_project_and_xxhash_are_not_installed(
    run: Run, tmp_path: Path, absent: list[str]
) -> None:
    raw = pq.read_table(run.data / "validation.parquet").slice(0, 9)
    copy = shutil.copytree(run.exported.out, tmp_path / "copy")
    lines = [json.dumps(row, default=lambda time: time.isoformat()) for row in raw.to_pylist()]
    hidden = [*absent, "common", "core", "projects", "pyarrow", "pandas"]
    command = [sys.executable, "-I", "-c", ALONE, str(copy / "score.py"), *hidden]
    ended = subprocess.run(
        command, input="\n".join(lines), cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    expected = Ranker(run.exported.out)(as_lists(raw))
    outputs = [json.loads(line) for line in ended.stdout.splitlines()]
    assert len(outputs) == 9
    for name, values in expected.items():
        np.testing.assert_allclose([row[name] for row in outputs], values, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "line 2: 'list' object has no attribute 'items'"),
        ("{", "line 2: Expecting property name"),
        ("{}", "line 2: expected columns of one length, but theirs are .*'age': None"),
    ],
)
def test_a_bad_line_ends_score_py_with_its_number(run: Run, line: str, message: str) -> None:
    row = pq.read_table(run.data / "validation.parquet").slice(0, 1).to_pylist()[0]
    ended = subprocess.run(
        [sys.executable, str(run.exported.out / "score.py")],
        input="\n".join([json.dumps(row, default=lambda time: time.isoformat()), line, line]),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode == 1
    assert len(ended.stdout.splitlines()) == 1
    assert re.match(message, ended.stderr)
    assert "Traceback" not in ended.stderr


def test_score_py_has_no_options(run: Run) -> None:
    command = [sys.executable, str(run.exported.out / "score.py"), "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 1
    assert "python score.py < rows.jsonl" in ended.stderr


def test_rows_are_those_of_the_validation_data_else_of_the_training_data_else_random(run: Run) -> None:
    saved = load_saved_ranker(run.checkpoint)
    inputs = ranker_inputs(saved)

    def choose(config: RecapConfig) -> tuple[ComparedRows, str]:
        changed = dataclasses.replace(saved, config=config)
        return choose_rows(changed, inputs, read_rows(changed, inputs))

    found = [choose(saved.config)]
    config = saved.config.model_copy(update={"validation_data": {}})
    found.append(choose(config))
    missing = config.train_data.model_copy(update={"inputs": str(run.data / "nothing.parquet")})
    config = config.model_copy(update={"train_data": missing})
    found.append(choose(config))
    assert [source.split()[0] for _, source in found] == ["validation_data.validation", "train_data", "generated"]
    validation, training, _ = (rows.inputs["continuous"][-1].tolist() for rows, _ in found)
    assert validation != training
    assert len({len(rows.names) for rows, _ in found}) == 2  # 60 rows of the first row group, or 1,000 random ones
