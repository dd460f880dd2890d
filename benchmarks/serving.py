"""Times a ranker in each form in which it can be served: latency and throughput on one core.

    python benchmarks/serving.py [--only small,production] [--rounds 5] [--seconds 1] [--export DIR]

The rankers are the small default model (configs/local.yaml) and the published shape (configs/production.yaml). Each is
trained for a few steps and exported with projects.home.recap.export. --export measures an existing export instead; its
checkpoint must still be there. The forms take turns in one process bound to one core, with one thread. Each turn calls
one form for --seconds. Inputs are random, and integer inputs are 0. Torch's forms take and return tensors, ONNX Runtime
arrays.

p50 and p99 are over the calls of all turns. The speed is the p50 of eager, divided by that of the form, in one round:
the median over the rounds, with the smallest and the largest.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from tabulate import tabulate  # noqa: E402

from benchmarks.tables import spread  # noqa: E402

BATCHES = (1, 64, 1024)
FORMS = {"pt2": "model.pt2", "AOTInductor": "model-aotinductor.pt2", "ONNX Runtime": "model.onnx"}
SHAPES = {"small": ("default", "local.yaml"), "production": ("production", "production.yaml")}
"""The generator's preset and the configuration of each shape."""
STEPS = 4
TOLERANCE = 1e-5

Arrays = dict[str, Any]
Form = Callable[[Arrays], Any]


# --- An export ---


def run(*words: str) -> None:
    """Run a command of the project in one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, text=True, capture_output=True)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{process.stderr}")


def make_export(shape: str, folder: Path) -> Path:
    """Train a ranker for a few steps, export it, and return the directory of the export."""
    preset, configuration = SHAPES[shape]
    data, runs, out = folder / "data", folder / "run", folder / "export"
    rows = ["--num_train_examples", "3072", "--num_validation_examples", "1536"]
    run("-m", "projects.home.recap.tools.generate", "--preset", preset, "--out", str(data), *rows)
    schema = f"seg_dense_schema.schema_path={data}/schema.json"
    settings = [
        f"training.save_dir={runs}",
        f"training.num_train_steps={STEPS}",
        "training.num_eval_steps=1",
        f"train_data.inputs={data}/train",
        f"train_data.{schema}",
        f"validation_data.validation.inputs={data}/validation",
        f"validation_data.validation.{schema}",
    ]
    program = ["-m", "projects.home.recap.main", "--config", f"projects/home/recap/configs/{configuration}"]
    run(*program, *(word for setting in settings for word in ("--set", setting)))
    run("-m", "projects.home.recap.export", "--checkpoint", str(runs), "--out", str(out))
    return out


# --- The forms ---


def read_signature(export: Path) -> dict[str, Any]:
    """Return the description of an export."""
    signature: dict[str, Any] = json.loads((export / "signature.json").read_text())
    return signature


def eager(export: Path) -> Form:
    """Return the trainer's own ranker."""
    from projects.home.recap.export.flat_ranker import FlatRanker
    from projects.home.recap.saved import load_saved_ranker

    checkpoint = read_signature(export)["checkpoint"]["path"]
    return FlatRanker(load_saved_ranker(Path(checkpoint)).ranker)


def load(path: Path) -> Form:
    """Return a form of an export as a function of the inputs by name. Its outputs have the order of the signature."""
    if path.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda inputs: session.run(None, inputs)
    if path.name == FORMS["AOTInductor"]:
        package: Form = torch._inductor.aoti_load_package(str(path))
        return package
    program: Form = torch.export.load(path).module()
    return program


def make_inputs(export: Path, batch: int) -> Arrays:
    """Return random inputs."""
    generator = np.random.default_rng(0)
    arrays = {}
    for each in read_signature(export)["inputs"]:
        shape, dtype = (batch, each["shape"][1]), np.dtype(each["dtype"])
        if each["name"] == "binary":
            arrays[each["name"]] = (generator.random(shape) < 0.1).astype(dtype)
        else:
            arrays[each["name"]] = (
                generator.normal(size=shape).astype(dtype) if dtype.kind == "f" else np.zeros(shape, dtype)
            )
    return arrays


def probabilities(outputs: Any, position: int) -> np.ndarray[Any, Any]:
    """Return the probabilities among the outputs of a form."""
    if isinstance(outputs, list):
        return np.asarray(outputs[position])
    values: np.ndarray[Any, Any] = outputs["probabilities"].numpy()
    return values


# --- Timing ---


def calls(form: Form, inputs: Arrays, seconds: float) -> list[float]:
    """Call a form for some seconds, at least three times, and return the seconds of each call."""
    form(inputs)
    durations: list[float] = []
    end = time.perf_counter() + seconds
    while len(durations) < 3 or time.perf_counter() < end:
        started = time.perf_counter()
        form(inputs)
        durations.append(time.perf_counter() - started)
    return durations


def worker(export: Path, rounds: int, seconds: float) -> None:
    """Time all forms in turns, and print a table per batch size."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    forms = {"eager": eager(export)}
    forms |= {name: load(export / file) for name, file in FORMS.items() if (export / file).exists()}
    outputs = [each["name"] for each in read_signature(export)["outputs"]]
    position = outputs.index("probabilities")
    with torch.inference_mode():
        for batch in BATCHES:
            arrays = make_inputs(export, batch)
            tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
            inputs = {name: arrays if name == "ONNX Runtime" else tensors for name in forms}
            expected = probabilities(forms["eager"](tensors), position)
            for name, form in forms.items():
                difference = np.abs(probabilities(form(inputs[name]), position) - expected).max()
                assert difference <= TOLERANCE, f"{name}: a probability differs by {difference} from eager"
            turns: dict[str, list[list[float]]] = {name: [] for name in forms}
            for _ in range(rounds):
                for name, form in forms.items():
                    turns[name].append(calls(form, inputs[name], seconds))
            show(batch, turns)


def show(batch: int, turns: dict[str, list[list[float]]]) -> None:
    """Print the figures of a batch size."""
    rows = []
    for name, own in turns.items():
        durations = np.concatenate(own)
        p50, p99 = np.percentile(durations, [50, 99])
        ratios = [np.median(theirs) / np.median(each) for each, theirs in zip(own, turns["eager"], strict=True)]
        digits = 0 if p50 > 1e-3 else 1
        figures = (f"{value * 1e6:,.{digits}f}" for value in (p50, p99))
        rows.append([name, *figures, f"{batch * len(durations) / durations.sum():,.0f}", spread(ratios, 2)])
    headers = [f"batch {batch}", "p50, µs", "p99, µs", "rows/s", "speed, eager = 1"]
    aligned = ("left", *("right" for _ in headers[1:]))
    sys.stdout.write(f"\n{tabulate(rows, headers, disable_numparse=True, colalign=aligned)}\n")
    sys.stdout.flush()


def measure(title: str, export: Path, arguments: Sequence[str]) -> None:
    """Time the forms of an export in a process of their own."""
    sys.stdout.write(f"\n{title}\n")
    sys.stdout.flush()
    command = [sys.executable, __file__, "--worker", "--export", str(export), *arguments]
    if subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode:
        raise SystemExit(f"{title}: the benchmark failed")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a ranker in each form in which it can be served.")
    parser.add_argument("--only", default="small,production", help="shapes to measure, separated by commas")
    parser.add_argument("--rounds", type=int, default=5, help="number of turns of each form")
    parser.add_argument("--seconds", type=float, default=1.0, help="duration of a turn")
    parser.add_argument("--export", type=Path, help="directory of an export to measure instead")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.export, args.rounds, args.seconds)
        return
    arguments = ["--rounds", str(args.rounds), "--seconds", str(args.seconds)]
    if args.export is not None:
        measure(str(args.export), args.export.absolute(), arguments)
        return
    for shape in args.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            measure(shape, make_export(shape, Path(folder)), arguments)


if __name__ == "__main__":
    main()
