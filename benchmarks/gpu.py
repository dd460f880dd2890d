"""Times the production-shaped Heavy Ranker on a GPU, in bfloat16, as a share of what the device can compute.

    python benchmarks/gpu.py [--batches 1024,4096,16384] [--data data/recap-gpu]

All figures come from one run. The step is the project's own (core/loop/step.py), with its checks. A batch that is
already on the device shows what the step alone takes: as it is, with torch.compile, and with torch.compile and CUDA
graphs. A run of the program itself shows what reading adds: its log has the examples per second and the share of time
spent waiting for data. A second table has the forward pass of evaluation and prediction.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from tabulate import tabulate  # noqa: E402

from benchmarks.step_overhead import PRODUCTION_YAML, make_batches, make_model  # noqa: E402
from common.distributed.world import World  # noqa: E402
from common.optimizers.config import LearningRate  # noqa: E402
from common.optimizers.learning_rate import ParameterGroupScheduler  # noqa: E402
from core.autocast import Autocast  # noqa: E402
from core.loop.step import TrainStep  # noqa: E402
from core.models.dense import DenseModel  # noqa: E402

CUDA = torch.device("cuda", 0)
WARM_UP, STEPS = 10, 30
SIZE = 8192
# Modes of torch.compile, by what they are called in the table; None does not compile.
MODES = {"": None, ", torch.compile": "default", ", CUDA graphs": "reduce-overhead"}
FORWARD_BATCHES = (1, 64, 1024, 16384)


def seconds_per_call(call: Callable[[], object], warm_up: int, calls: int) -> float:
    """Return the mean time of a call among calls that do not wait for the device, until it has done them all."""
    for _ in range(warm_up):
        call()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(calls):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / calls


def product_flops() -> float:
    """Return the floating-point operations per second of a large bfloat16 matrix product."""
    a, b = (torch.randn(SIZE, SIZE, device=CUDA, dtype=torch.bfloat16) for _ in range(2))
    return 2 * SIZE**3 / seconds_per_call(lambda: a @ b, WARM_UP, STEPS)


def flops_per_example() -> int:
    """Return the floating-point operations of the matrix products of one example, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    model, batch = make_model("production"), make_batches("production", 8, 0)[0]
    with FlopCounterMode(display=False) as counter:
        model(batch)[0].backward()
    return int(counter.get_total_flops() / 8)


def production_model(mode: str | None) -> torch.nn.Module:
    """Return the model on the device, compiled in a mode of torch.compile unless it is None."""
    torch._dynamo.reset()  # forget the models before, which count against the limit of compilations
    model = make_model("production").to(CUDA)
    if mode is not None:
        model.compile(dynamic=False, mode=mode)
    return model


def forward_seconds(rows: int, dtype: torch.dtype, mode: str | None) -> float:
    """Return the seconds per forward pass in evaluation mode; bfloat16 uses autocast."""
    model = production_model(mode).eval()
    batch = make_batches("production", rows, 0)[0].to(CUDA)

    def one() -> None:
        with torch.inference_mode(), torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            model(batch)

    return seconds_per_call(one, WARM_UP, STEPS)


def step_seconds(rows: int, mode: str | None) -> float:
    """Return the seconds per step with batches that are already on the device."""
    model = production_model(mode)
    groups = [{"params": list(model.parameters()), "name": "all"}]
    optimizer = torch.optim.Adam(groups, lr=1e-3, fused=True)
    step = TrainStep(
        DenseModel(model, World(0, 0, 1, CUDA)),
        optimizer,
        ParameterGroupScheduler(optimizer, [LearningRate(constant=1e-3)]),
        world=World(0, 0, 1, CUDA),
        autocast=Autocast(CUDA, torch.bfloat16),
    )
    batches = [batch.to(CUDA) for batch in make_batches("production", rows, 0)[:2]]
    count = 0

    def one() -> None:
        nonlocal count
        count += 1
        step([batches[count % 2]], count)

    return seconds_per_call(one, WARM_UP, STEPS)


def program_timing(rows: int, data: Path) -> tuple[float, float]:
    """Run the program on data in memory. Return its examples per second and its share of time spent waiting."""
    with tempfile.TemporaryDirectory() as save_dir:
        settings = {
            "training.save_dir": save_dir,
            "training.num_train_steps": 60,
            "training.num_epochs": "null",
            "training.eval_every_n": 0,
            "training.train_log_every_n": 20,
            "runtime.enable_amp": "true",
            "train_data.inputs": data / "train",
            "train_data.global_batch_size": rows,
            "train_data.cache": "true",
            "train_data.seg_dense_schema.schema_path": data / "schema.json",
            "validation_data": "{}",
        }
        command = [sys.executable, "-m", "projects.home.recap.main", "--config", str(PRODUCTION_YAML)]
        command += [f"--set={key}={value}" for key, value in settings.items()]
        subprocess.run(command, cwd=ROOT, check=True, timeout=300)
        last = json.loads((Path(save_dir) / "metrics.jsonl").read_text().splitlines()[-1])
        return last["timing"]["examples_per_second"], last["timing"]["data_wait_share"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Times the production-shaped Heavy Ranker on a GPU.")
    parser.add_argument("--batches", default="1024,4096,16384", help="batch sizes, separated by commas")
    parser.add_argument("--data", type=Path, help="data of tools.generate --preset production; times the program too")
    args = parser.parse_args()
    started = time.monotonic()
    peak, per_example = product_flops(), flops_per_example()
    sys.stdout.write(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}: a bfloat16 product of {SIZE} x {SIZE} matrices "
        f"reaches {peak / 1e12:.0f} TFLOP/s. An example takes {per_example / 1e6:.0f} MFLOP.\n"
    )
    rows = []
    for batch in map(int, args.batches.split(",")):
        for what, mode in MODES.items():
            seconds = step_seconds(batch, mode)
            share = batch * per_example / seconds / peak
            rows.append([batch, f"step{what}", f"{1000 * seconds:.2f}", f"{batch / seconds:,.0f}", f"{share:.1%}", "-"])
            sys.stdout.write(f"{rows[-1]} after {time.monotonic() - started:.0f} s\n")
        if args.data is not None:
            rate, waiting = program_timing(batch, args.data)
            share = rate * per_example / peak
            rows.append(
                [batch, "program", f"{1000 * batch / rate:.2f}", f"{rate:,.0f}", f"{share:.1%}", f"{waiting:.0%}"]
            )
        sys.stdout.flush()
    headers = ["batch", "measured", "ms per step", "examples/s", "share of the product", "waiting for data"]
    sys.stdout.write(tabulate(rows, headers, disable_numparse=True, stralign="right") + "\n\n")
    choices = list(itertools.product((torch.float32, torch.bfloat16), (None, "reduce-overhead")))
    forward = [
        [batch, *(f"{1000 * forward_seconds(batch, dtype, mode):.2f}" for dtype, mode in choices)]
        for batch in FORWARD_BATCHES
    ]
    names = [f"{str(dtype).removeprefix('torch.')}{', CUDA graphs' if mode else ''}" for dtype, mode in choices]
    sys.stdout.write(tabulate(forward, ["batch", *(f"ms, {name}" for name in names)], disable_numparse=True) + "\n")


if __name__ == "__main__":
    main()
