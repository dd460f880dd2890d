"""Measures the speed and the memory of predictions side by side with an evaluation of the same rows.

    python benchmarks/predict.py --rows 400_000 --rounds 3

Trains the small default ranker for a few steps on generated data. Then, in each round, evaluates its checkpoint
(`main --mode evaluate`) and predicts the same files (`predict`), with labels and without, in processes that take turns.
A speed is that of the pass over the rows as each program reports it, without starting and loading. Prints the median
speeds, the median of the ratios within rounds, and the highest resident memory of each program.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "projects/home/recap/configs/local.yaml"


def run(module: str, *words: object, directory: Path, ranks: int = 1) -> tuple[str, int]:
    """Run a program. Return its log, and the highest resident memory of its processes together, in bytes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    process = subprocess.Popen(
        [sys.executable, *launcher, "-m", module, *map(str, words)],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, resident_bytes(process.pid))
            time.sleep(0.1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, log = process.communicate()
    watcher.join()
    if process.returncode != 0:
        raise SystemExit(f"{module} ended with status {process.returncode}:\n{log}")
    return log, peak


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process and of those that it started, without memory that maps files."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError:  # the process has ended
        return 0
    own = re.search(r"RssAnon:\s+(\d+)", status)
    return (1024 * int(own.group(1)) if own else 0) + sum(map(resident_bytes, children))


def evaluate(directory: Path, ranks: int) -> tuple[float, int]:
    """Return the seconds of an evaluation of the whole partition, and the memory of its program."""
    metrics = directory / "run/metrics-evaluator.jsonl"
    for path in (directory / "run").glob("metrics-evaluator.jsonl*"):
        path.unlink()
    config = ["--config", directory / "config.yaml"]
    _, memory = run("projects.home.recap.main", "--mode", "evaluate", *config, directory=directory, ranks=ranks)
    (line,) = metrics.read_text().splitlines()
    timing = json.loads(line)["timing"]
    assert not timing["timed_out"]
    return timing["seconds"], memory


def predict(directory: Path, ranks: int, *options: str) -> tuple[float, int]:
    """Return the seconds of rank 0 in which its share of the rows is predicted, and the memory of the program."""
    out = directory / "out"
    shutil.rmtree(out, ignore_errors=True)
    words = ["--checkpoint", "run", "--inputs", "data/recap/validation", "--out", out, "--columns", "meta__user_id"]
    log, memory = run("projects.home.recap.predict", *words, *options, directory=directory, ranks=ranks)
    found = re.search(r"predicted [\d,]+ rows.* in ([\d.]+) s", log)
    assert found is not None, log
    return float(found.group(1)), memory


def prepare(directory: Path, rows: int) -> None:
    """Generate data, and train a ranker for a few steps."""
    sizes = ["--num_train_examples", 20_000, "--num_validation_examples", rows]
    run("projects.home.recap.data.generate", "--out", "data/recap", *sizes, directory=directory)
    config = CONFIG.read_text().replace("save_dir: runs/recap-local", "save_dir: run")
    config = config.replace("num_train_steps: 10000", "num_train_steps: 20").replace("_every_n: 390", "_every_n: 20")
    config = config.replace("eval_timeout_in_s: 60", "eval_timeout_in_s: 36000")
    (directory / "config.yaml").write_text(config)
    run("projects.home.recap.main", "--config", "config.yaml", "--set", "validation_data={}", directory=directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400_000, help="rows to predict (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: %(default)s)")
    parser.add_argument("--ranks", type=int, default=1, help="processes of each program (default: %(default)s)")
    args = parser.parse_args()
    programs: dict[str, Callable[[Path], tuple[float, int]]] = {
        "evaluate": lambda directory: evaluate(directory, args.ranks),
        "predict, with metrics": lambda directory: predict(directory, args.ranks),
        "predict, without metrics": lambda directory: predict(directory, args.ranks, "--no_metrics"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    memory = dict.fromkeys(programs, 0)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), args.rows)
        for _ in range(args.rounds):
            for name, measure in programs.items():
                took, peak = measure(Path(folder))
                seconds[name].append(took)
                memory[name] = max(memory[name], peak)
                sys.stderr.write(f"{name}: {took:.1f} s\n")
    table = []
    for name, values in seconds.items():
        ratios = [evaluated / own for evaluated, own in zip(seconds["evaluate"], values, strict=True)]
        ratio = f"{statistics.median(ratios):.2f} [{min(ratios):.2f} to {max(ratios):.2f}]"
        table.append([name, f"{args.rows / statistics.median(values):,.0f}", ratio, f"{memory[name] / 2**20:,.0f}"])
    headers = ["program", "rows/s", "times evaluate", "peak MiB"]
    sys.stdout.write(tabulate(table, headers, disable_numparse=True, colalign=("left", "right", "right", "right")))
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
