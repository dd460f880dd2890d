"""Exports as a user does, loads each file in a process that cannot import this project, and compares the outputs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from common.reader.files import matching_files
from core.checkpoints.chosen import choose_checkpoint
from projects.home.recap.export.formats import compiler_name, find_compiler
from projects.home.recap.saved import load_saved_ranker
from tests.support.feature_table import LABEL, config, write_config, write_data
from tests.support.programs import finish

pytestmark = pytest.mark.faults  # compiling takes up to a minute

MODELS = ("model.pt2", "model.onnx", "model-aotinductor.pt2")
ROWS = (1, 2, 60)

# Scores inputs-*.npz in the current directory with the file that is named, and writes outputs-*.npz.
ISOLATED = """
import importlib.util, json, pathlib, sys
import numpy as np

path = pathlib.Path(sys.argv[1])
assert all(importlib.util.find_spec(name) is None for name in ("projects", "core", "common"))
names = [each["name"] for each in json.loads((path.parent / "signature.json").read_text())["outputs"]]
if path.suffix == ".onnx":
    sys.modules["torch"] = None  # an import of torch raises ImportError
    import onnxruntime
    session = onnxruntime.InferenceSession(path)
    model = lambda arrays: dict(zip(names, session.run(names, arrays), strict=True))
else:
    import torch
    if "aotinductor" in path.name:
        loaded = torch._inductor.aoti_load_package(str(path))
    else:
        loaded = torch.export.load(path).module()
    def model(arrays):
        outputs = loaded({name: torch.from_numpy(values) for name, values in arrays.items()})
        return {name: values.numpy() for name, values in outputs.items()}
for inputs in pathlib.Path().glob("inputs-*.npz"):
    np.savez(inputs.name.replace("inputs", "outputs"), **model(dict(np.load(inputs))))
"""


def run_isolated(program: str, *arguments: Path, directory: Path) -> None:
    """Run Python code in a directory, with the installed packages and without this project."""
    command = [sys.executable, "-I", "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


class Proof(NamedTuple):
    """A directory with data, a run and its export, and the ended process of the export."""

    root: Path
    ended: "subprocess.CompletedProcess[str]"


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Proof:
    """Train on features of all kinds, with TF32 and autocast, and export the ranker in all formats."""
    root = tmp_path_factory.mktemp("proof")
    values = config(write_data(root / "data"), root / "run")
    values["model"]["score_weights"] = {LABEL: 3.0}
    values["runtime"] = {"enable_tensorfloat32": True, "enable_amp": True}
    done = finish(["--config", str(write_config(root / "config.yaml", values))])
    assert done.returncode == 0, done.stderr
    arguments = ["--checkpoint", str(root / "run"), "--out", str(root / "export")]
    done = finish(arguments, module="projects.home.recap.export")
    assert done.returncode == 0, done.stderr
    return Proof(root, done)


def cases(root: Path) -> dict[int, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Return inputs of an export, and the outputs of the ranker for them, by number of rows."""
    saved = load_saved_ranker(choose_checkpoint(root / "run", best=False))
    group = saved.open_table(matching_files(str(root / "data/validation.parquet"))).decode(0)
    signature = json.loads((root / "export/signature.json").read_text())
    found = {}
    for rows in ROWS:
        arguments: dict[str, Any] = saved.inputs(group, 0, rows, rows)
        named = arguments | {f"embeddings.{name}": values for name, values in arguments["embeddings"].items()}
        inputs = {each["name"]: named[each["name"]].numpy().astype(each["dtype"]) for each in signature["inputs"]}
        with torch.no_grad():
            outputs = {name: values.numpy() for name, values in saved.ranker(**arguments).items()}
        found[rows] = inputs, outputs
    return found


def skip_without_compiler() -> None:
    if find_compiler() is None:
        pytest.skip(f"there is no C++ compiler {compiler_name()}")


def test_the_command_reports_all_files(proof: Proof) -> None:
    skip_without_compiler()
    assert "which takes about a minute" in proof.ended.stderr
    files = {*MODELS, "signature.json"}
    assert files < {path.name for path in (proof.root / "export").iterdir()}
    assert all(name in proof.ended.stdout for name in files)
    signature = json.loads((proof.root / "export/signature.json").read_text())
    assert signature["aotinductor"]["vector"]
    assert signature["trained_with_autocast"] is True


@pytest.mark.parametrize("file", MODELS)
def test_a_file_scores_like_the_ranker_where_the_project_cannot_be_imported(
    proof: Proof, tmp_path: Path, file: str
) -> None:
    if "aotinductor" in file:
        skip_without_compiler()
    expected = cases(proof.root)
    for rows, (inputs, _) in expected.items():
        np.savez(tmp_path / f"inputs-{rows}.npz", **inputs)  # type: ignore[arg-type]
    run_isolated(ISOLATED, proof.root / "export" / file, directory=tmp_path)
    for rows, (_, outputs) in expected.items():
        found = dict(np.load(tmp_path / f"outputs-{rows}.npz"))
        assert found.keys() == outputs.keys()
        for name, values in outputs.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5, err_msg=f"{name}, {rows} rows")
