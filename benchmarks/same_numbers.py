"""Compares seeded runs of two versions of the code bit for bit, to show that a refactoring changes no number.

    git worktree add /tmp/before HEAD~1
    python benchmarks/same_numbers.py run --code /tmp/before --out /tmp/runs-before
    python benchmarks/same_numbers.py run --out /tmp/runs-after
    python benchmarks/same_numbers.py compare /tmp/runs-before /tmp/runs-after

`run` trains both projects for 60 steps on one and two processes, with and without bfloat16, and logs every step.
`compare` compares all metrics and all tensors of the last checkpoint. Run both versions on the same machine. The data
is generated once, in data/ of this checkout.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.process.paths import user_path  # noqa: E402
from tests.support.comparison import differences  # noqa: E402

STEPS = 60
DATA = {"projects.home.recap": "data/recap", "projects.twhin": "data/twhin"}


class Case(NamedTuple):
    """One seeded run."""

    project: str
    processes: int
    bfloat16: bool

    @property
    def name(self) -> str:
        """Name of the directory of the run."""
        return f"{self.project.split('.')[-1]}-{self.processes}{'-bfloat16' if self.bfloat16 else ''}"

    def command(self, save_dir: Path) -> list[str]:
        """Return the training command. It must run at the root of a checkout."""
        launcher = [sys.executable]
        if self.processes > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.processes)]
        settings = [
            f"training.save_dir={save_dir}",
            f"training.num_train_steps={STEPS}",
            "training.train_log_every_n=1",
            "training.num_eval_steps=20",
            f"runtime.enable_amp={str(self.bfloat16).lower()}",
        ]
        config = f"{self.project.replace('.', '/')}/configs/local.yaml"
        overrides = [word for setting in settings for word in ("--set", setting)]
        return [*launcher, "-m", f"{self.project}.main", "--config", config, *overrides]


def cases() -> Iterator[Case]:
    """Yield all seeded runs."""
    for project in DATA:
        for processes in (1, 2):
            for bfloat16 in (False, True):
                yield Case(project, processes, bfloat16)


def run(code: Path, out: Path) -> None:
    """Train all cases with the code of a checkout."""
    for project, data in DATA.items():
        if not (ROOT / data).exists():
            subprocess.run([sys.executable, "-m", f"{project}.tools.generate", "--out", data], cwd=ROOT, check=True)
    if not (code / "data").exists():
        (code / "data").symlink_to(ROOT / "data")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for case in cases():
        sys.stdout.write(f"{case.name}\n")
        sys.stdout.flush()
        command = case.command(out / case.name)
        ended = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True)
        if ended.returncode:
            sys.exit(f"{' '.join(command)}\nended with status {ended.returncode}:\n{ended.stderr}")


def compare(one: Path, other: Path) -> int:
    """Print the differences between two directories of runs. Return the number of runs that differ."""
    different = 0
    for case in cases():
        found = differences(one / case.name, other / case.name, STEPS)
        different += bool(found)
        sys.stdout.write(f"{case.name}: {'; '.join(found[:5]) if found else 'equal bit for bit'}\n")
    return different


def main() -> None:
    """Read the command line, and run or compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(required=True, dest="command")
    runner = commands.add_parser("run", help="train all cases")
    runner.add_argument("--code", type=user_path, default=ROOT, help="checkout whose code to run (default: this one)")
    runner.add_argument("--out", type=user_path, required=True, help="directory for the runs")
    comparer = commands.add_parser("compare", help="compare two directories of runs")
    comparer.add_argument("one", type=user_path, help="directory of the first runs")
    comparer.add_argument("other", type=user_path, help="directory of the second runs")
    args = parser.parse_args()
    if args.command == "run":
        run(args.code.resolve(), args.out.resolve())
    else:
        sys.exit(1 if compare(args.one, args.other) else 0)


if __name__ == "__main__":
    main()
