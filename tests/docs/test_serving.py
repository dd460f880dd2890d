"""The commands and programs in docs/serving.md work as printed, except what needs a C++ compiler or Triton."""

import re
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.docs.test_own_project import run
from tests.support.root import ROOT

pytestmark = pytest.mark.faults

PAGE = (ROOT / "docs/serving.md").read_text()
PROGRAMS = ("request.py", "server.py", "aotinductor.py", "make_triton.py", "check_skew.py")
TYPES = {"TYPE_FP32": "tensor(float)", "TYPE_FP64": "tensor(double)"}


def command(line: str) -> list[str]:
    """Return the arguments of a command of the page that begins with python."""
    found: list[str] = re.findall(rf"^    python (.*{re.escape(line)}.*)$", PAGE, flags=re.MULTILINE)
    assert len(found) == 1, found
    return found[0].split()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the programs, train on few rows, and export."""
    root = tmp_path_factory.mktemp("serving")
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    for name, program in zip(PROGRAMS, blocks, strict=True):
        (root / name).write_text(program)
    run(root, *command("tools.generate"), "--num_train_examples", "3072", "--num_validation_examples", "1100")
    config = str(ROOT / "projects/home/recap/configs/local.yaml")
    steps = ("--set", "training.num_train_steps=4", "--set", "training.eval_every_n=0")
    run(root, "-m", "projects.home.recap.main", "--config", config, *steps)
    run(root, *command("recap.export"), "--skip_aotinductor")
    return root


def test_a_request_is_scored_by_each_program(root: Path) -> None:
    printed = run(root, "request.py").stdout
    score = float(printed.split()[-1])
    assert printed.count("recap.engagement.") == 10
    program = "from server import answer; from request import request; print(answer(request)['score'][0])"
    assert float(run(root, "-c", program).stdout.split()[-1]) == pytest.approx(score, rel=1e-6)
    pipe = re.search(r"^    (python -c 'import json.*?score\.py)$", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert pipe is not None
    done = subprocess.run(
        ["bash", "-c", pipe[1].replace("python ", f"{sys.executable} ")],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert f'"score": {score}'[:18] in done.stdout


def test_the_configuration_of_triton_matches_the_model(root: Path) -> None:
    run(root, *command("runs/export runs/triton ranker 1"))
    session = onnxruntime.InferenceSession(root / "runs/triton/ranker/1/model.onnx")
    config = (root / "runs/triton/ranker/config.pbtxt").read_text()
    entries = re.findall(r'name: "(\w+)" data_type: (\w+) dims: \[ ?(\d+) ?\](.*?) }', config)
    found = [(name, TYPES[dtype], [] if "reshape" in rest else [int(size)]) for name, dtype, size, rest in entries]
    tensors = [*session.get_inputs(), *session.get_outputs()]
    assert found == [(each.name, each.type, each.shape[1:]) for each in tensors]


def test_the_check_for_skew_finds_a_difference(root: Path) -> None:
    run(root, *command("recap.predict"))
    check = command("check_skew.py")
    printed = re.fullmatch(r"1,100 rows: the largest difference of a probability is (\S+)\n", run(root, *check).stdout)
    assert printed is not None
    assert float(printed[1]) < 1e-5
    (path,) = (root / "runs/predicted-float32/predictions").glob("*.parquet")
    table = pq.read_table(path)
    name = "calibrated_probability.recap.engagement.is_replied"
    values = table[name].to_numpy().copy()
    values[1050] += 1e-3
    pq.write_table(table.set_column(table.column_names.index(name), name, pa.array(values)), path)
    done = subprocess.run([sys.executable, *check], cwd=root, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (1, "1,100 rows: the largest difference of a probability is 0.001\n")
