"""Kills the trainer at random moments, starts it again as often as it takes, and compares with a run left in peace.

    python benchmarks/chaos.py --kills 100 [--projects recap,twhin] [--processes 1,2] [--seed 0] [--keep DIR]

For each project the kills are shared among the numbers of processes. A run of 30 steps on a little generated data saves
every 3 steps, keeps two checkpoints, logs every 2 and evaluates every 4. It is killed by SIGKILL: a process, or with
several also torchrun and all its processes at once; at a moment after its start, a step, the beginning of a save or a
batch of an evaluation was seen, or, exactly, before a file operation of a save or a rotation
(tests/support/trap.py). Now and then it gets a SIGTERM instead, which is no kill. With several processes half of
the starts have --max-restarts 3. A run that has come to its end is compared: parameters, optimizer states, state.json,
and metrics of every line of metrics.jsonl. Then the next one is begun, until there were enough kills.

Status 1: a run differs, hangs, or ends with an error; its directory is kept, and named.
"""

import argparse
import contextlib
import dataclasses
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tabulate import tabulate  # noqa: E402

from common.checkpointing.directory import complete_steps  # noqa: E402
from projects.home.recap.tools.generate import PRESETS  # noqa: E402
from projects.home.recap.tools.generate import generate as generate_impressions  # noqa: E402
from projects.twhin.tools.generate import generate as generate_graph  # noqa: E402
from tests.support.comparison import differences  # noqa: E402
from tests.support.programs import RECAP, TWHIN, command, marked_pids  # noqa: E402
from tests.support.runs import small_run, small_twhin_run  # noqa: E402
from tests.support.trap import TRAP, Trap, trapped  # noqa: E402

STEPS = 30
OPTIONS = (
    f"training.num_train_steps={STEPS}",
    "training.num_epochs=10",
    "training.checkpoint_every_n=3",
    "training.checkpoint_max_to_keep=2",
    "training.train_log_every_n=2",
    "training.eval_every_n=4",
    "training.eval_log_every_n=1",
    "runtime.process_group_timeout_in_s=60",
)
# What has a past besides weights: dropout, momenta, clipping, and tables of both kinds of sharding.
RECAP_OPTIONS = (
    "training.max_grad_norm=1.0",
    "model.tasks[recap.engagement.is_replied].mlp_config="
    "{layer_sizes: [8, 1], dropout: {rate: 0.3}, batch_norm: {affine: true}}",
    "model.small_embeddings.tables=[{name: topic, num_embeddings: 40, embedding_dim: 2, index: 0}]",
)
TWHIN_OPTIONS = (
    "model.embeddings.tables[0].sharding=table_wise",
    "validation_data.validation.global_batch_size=12",
)
PHASES = ("start", "step", "save", "rotation", "evaluation", "end")
MAX_RESTARTS = 3
# Longest time without what must come, on a machine that others use, in seconds.
PATIENCE_IN_S = 240.0
POLL_IN_S = 0.02
# A save takes a few milliseconds.
SAVE_POLL_IN_S = 0.001
FILES = r"^(open|os\.\w+|shutil\.\w+) .*/checkpoints/"


class FoundError(Exception):
    """What must not be."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What is trained, and on how many processes."""

    project: str
    processes: int
    data: Path

    @property
    def module(self) -> str:
        return RECAP if self.project == "recap" else TWHIN

    def arguments(self, save_dir: Path) -> list[str]:
        if self.project == "recap":
            return small_run(self.data, save_dir, *OPTIONS, *RECAP_OPTIONS)
        return small_twhin_run(self.data, save_dir, *OPTIONS, *TWHIN_OPTIONS)


@dataclasses.dataclass
class Tally:
    """What was done to the runs of a case."""

    kills: Counter[str] = dataclasses.field(default_factory=Counter)
    """By the phase that they fell into."""
    stops: int = 0
    starts: int = 0
    runs: int = 0
    lost: list[int] = dataclasses.field(default_factory=list)
    """Steps made again after each kill, as far as they were logged."""
    noticed: list[float] = dataclasses.field(default_factory=list)
    """Seconds from a kill, or a SIGTERM, of one process of several to the end of the others."""


# --- The program, from outside. ---


class Start:
    """The program, started as a user does; ended with all its processes when the context is left."""

    def __init__(self, case: Case, save_dir: Path, log: Path, max_restarts: int, traps: Sequence[Trap]) -> None:
        module, arguments = case.module, case.arguments(save_dir)
        if traps:
            module, arguments = TRAP, trapped(traps, module, arguments)
        options = ["--max-restarts", str(max_restarts), "--monitor-interval", "0.1"] if case.processes > 1 else []
        self._case, self._log, self._marker = case, log, secrets.token_hex(8)
        self.checkpoints = save_dir / "checkpoints"
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command(arguments, case.processes, *options, module=module),
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "CHAOS": self._marker},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.next_attempt()

    def __enter__(self) -> "Start":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_all()

    def next_attempt(self) -> None:
        """What is seen from now on is of workers that were started now."""
        self._seen = self._log.stat().st_size
        self.began = time.monotonic()
        self.base = self.newest()

    @property
    def status(self) -> int | None:
        """Of the program, or of torchrun; None: it runs."""
        return self._process.poll()

    def text(self) -> str:
        """What this attempt has said."""
        with self._log.open("rb") as file:
            file.seek(self._seen)
            return file.read().decode(errors="replace")

    def newest(self) -> int:
        """The newest complete checkpoint's step, or 0."""
        return (complete_steps(self.checkpoints) or [0])[-1]

    def aside(self) -> list[str]:
        """What saves and rotations have under way, or have left."""
        with contextlib.suppress(FileNotFoundError):
            return [name for name in os.listdir(self.checkpoints) if not name.isdecimal()]  # noqa: PTH208
        return []

    def workers(self) -> dict[int, int]:
        """Process ids by rank."""
        if self._case.processes == 1:
            return {0: self._process.pid} if self.status is None else {}
        found = marked_pids(f"CHAOS={self._marker}")
        return {int(env["RANK"]): pid for pid, env in found.items() if "RANK" in env}

    def signal(self, number: signal.Signals, rank: int | None) -> None:
        """To a worker; None: to the program or torchrun."""
        pid = self._process.pid if rank is None else self.workers().get(rank)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill_all(self) -> None:
        """Until nothing is left, also of what is being started just now."""
        while found := marked_pids(f"CHAOS={self._marker}"):
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.poll()
            time.sleep(POLL_IN_S)
        self._process.wait()

    def wait(self, until: Callable[[], bool], what: str, poll_in_s: float = POLL_IN_S) -> bool:
        """Whether it came to that before the program ended."""
        limit = time.monotonic() + PATIENCE_IN_S
        while not until():
            if self.status is not None:
                return until()
            if time.monotonic() > limit:
                raise FoundError(f"{what} did not come within {PATIENCE_IN_S:g} s:\n{self.text()[-3000:]}")
            time.sleep(poll_in_s)
        return True


def phase(text: str, aside: Sequence[str]) -> str:
    """What an attempt was at when it was killed, by what it has said and left."""
    hit = re.findall(r"^trap: (.*)$", text, re.MULTILINE)
    left = hit[-1:] if hit and "/." in hit[-1] else list(aside)
    lines = re.findall(r"INFO (training|step|evaluating|evaluated|saved) (.*)$", text, re.MULTILINE)
    if not lines:
        return "start"
    if any("delet" in name for name in left):
        return "rotation"
    if any(".writing-" in name for name in left):
        return "save"
    if lines[-1][0] == "evaluating" or (hit and "evaluat" in hit[-1]):
        return "evaluation"
    return "end" if f"step {STEPS} of" in text else "step"


# --- Kills. ---


class Tormentor:
    """Runs one case, and kills it."""

    def __init__(self, case: Case, kills: int, rng: random.Random, scratch: Path) -> None:
        self._case, self._kills, self._rng, self._scratch = case, kills, rng, scratch
        self._tally = Tally()
        self._seconds_to_step = 5.0
        self._fruitless = 0
        self._title = f"{case.project}, {case.processes} process{'es' if case.processes > 1 else ''}"

    def run(self) -> tuple[Tally, float]:
        """Kills and compares; what was done, and how many seconds that took."""
        whole = self._scratch / "whole"
        began = time.monotonic()
        with Start(self._case, whole, self._scratch / "whole.log", 0, ()) as start:
            start.wait(lambda: "step 2 of" in start.text(), "the first step")
            self._seconds_to_step = time.monotonic() - start.began
            start.wait(lambda: start.status is not None, "the end")
            if start.status != 0:
                raise FoundError(f"{self._title}: the run in peace failed:\n{start.text()[-3000:]}")
        tell(f"{self._title}: a run in peace took {time.monotonic() - began:.0f} s")
        while self._killed < self._kills:
            self._tally.runs += 1
            run = self._scratch / f"run-{self._tally.runs}"
            self._until_the_end(run)
            if found := differences(whole, run, STEPS):
                listed = "\n  ".join(found[:20])
                raise FoundError(f"{self._title}: {run} is not the run that was left in peace:\n  {listed}")
            tell(f"{self._title}: run {self._tally.runs} came to its end, bit for bit as the one in peace")
            shutil.rmtree(run)
        return self._tally, time.monotonic() - began

    @property
    def _killed(self) -> int:
        return sum(self._tally.kills.values())

    def _until_the_end(self, run: Path) -> None:
        log = run.with_suffix(".log")
        log.touch()
        while not self._start(run, log):
            pass

    def _start(self, run: Path, log: Path) -> bool:
        """Starts the program, and kills it unless there were enough kills; whether it has come to its end."""
        rng, several, left = self._rng, self._case.processes > 1, self._kills - self._killed
        max_restarts = rng.choice([0, MAX_RESTARTS]) if several else 0
        traps: list[Trap] = []
        if left > 0 and self._fruitless < 2 and rng.random() < 0.4:
            traps = [self._trap() for _ in range(min(left, max_restarts + 1))]
        with Start(self._case, run, log, max_restarts, traps) as start:
            disturbed = False
            while True:
                self._tally.starts += 1
                workers = self._disturb(start, bool(traps)) if self._killed < self._kills else None
                if workers is None:
                    start.wait(lambda: start.status is not None, "the end")
                    if start.status != 0 or start.newest() != STEPS:
                        if disturbed and start.newest() != STEPS:
                            return False
                        raise FoundError(f"{self._title}: ended with {start.status} by itself:\n{start.text()[-3000:]}")
                    return True
                disturbed = True
                if start.status is None:
                    self._await_others(start, workers)
                if start.status is not None:
                    return False
                start.next_attempt()

    def _await_others(self, start: Start, before: set[int]) -> None:
        """Waits for the end, or for new workers in the place of those that there were."""
        began = time.monotonic()
        start.wait(lambda: not before & set(start.workers().values()), "the end of the other processes")
        if self._case.processes > 1:
            self._tally.noticed.append(time.monotonic() - began)
        start.wait(lambda: bool(start.workers()), "torchrun's next workers")

    def _trap(self) -> Trap:
        """Before a file operation of a save, a rotation, or a look at the checkpoints."""
        rng = self._rng
        if rng.random() < 0.5:
            return Trap("delet", rng.randint(1, 7))
        if self._case.processes > 1 and rng.random() < 0.3:
            return Trap(r"\.writing-\d+/__1_", rng.randint(1, 6), rank=1)
        return Trap(FILES, rng.randint(5, 60))

    def _disturb(self, start: Start, is_trapped: bool) -> set[int] | None:
        """Kills, or stops, at a moment; the process ids of the workers, None where the program ended before it."""
        rng, several = self._rng, self._case.processes > 1
        if is_trapped:
            if not start.wait(lambda: "trap: " in start.text(), "the trap"):
                return None
            workers = set(start.workers().values())
            self._killed_now(start, "trap")
            return workers
        if self._fruitless >= 2:
            if not start.wait(lambda: start.newest() > start.base, "a checkpoint"):
                return None
            moment = "step"
        else:
            moment = rng.choices(["start", "step", "save", "evaluation"], [1, 3, 3, 2])[0]
        if not self._await(start, moment):
            return None
        workers = set(start.workers().values())
        if rng.random() < 0.1 and moment != "start":
            start.signal(signal.SIGTERM, rng.choice([None, *range(self._case.processes)]))
            self._tally.stops += 1
            tell(f"{self._title}: SIGTERM in a {moment}")
            return workers
        victim = rng.choice([None, *range(self._case.processes)]) if several else None
        if victim is None:
            start.kill_all()
        else:
            start.signal(signal.SIGKILL, victim)
        self._killed_now(start, "all" if victim is None else f"rank {victim}")
        return workers

    def _await(self, start: Start, moment: str) -> bool:
        """Waits for a moment of a kind; False where the program has come to an end before it."""
        rng = self._rng
        if moment == "start":
            delay = rng.uniform(0, self._seconds_to_step)
            return start.wait(lambda: time.monotonic() - start.began > delay, moment)
        if moment == "save":
            left, count = set(start.aside()), rng.randint(1, 4)
            seen: set[str] = set()

            def saves() -> bool:
                seen.update(name for name in start.aside() if name not in left and "delet" not in name)
                return len(seen) >= count

            found = start.wait(saves, moment, SAVE_POLL_IN_S)
        else:
            pattern = r"INFO step " if moment == "step" else r"INFO evaluating "
            count = rng.randint(1, 8)
            found = start.wait(lambda: len(re.findall(pattern, start.text())) >= count, moment)
        time.sleep(rng.choice([0.0, rng.uniform(0, 0.2)]))
        return found and start.status is None

    def _killed_now(self, start: Start, who: str) -> None:
        text, newest = start.text(), start.newest()
        found = phase(text, start.aside())
        logged = max(map(int, re.findall(rf"INFO step (\d+) of {STEPS}", text)), default=start.base)
        self._fruitless = 0 if newest > start.base else self._fruitless + 1
        self._tally.kills[found] += 1
        self._tally.lost.append(max(0, logged - newest))
        tell(
            f"{self._title}: kill {self._killed} of {self._kills}: {who}, in {found}, "
            f"after step {logged}; continues after {newest}"
        )


# --- The command line. ---


def tell(text: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


def report(tallies: dict[Case, tuple[Tally, float]]) -> str:
    rows = []
    for case, (tally, seconds) in tallies.items():
        noticed = f"{max(tally.noticed):.1f}" if tally.noticed else "-"
        counts = [sum(tally.kills.values()), *(tally.kills[name] for name in PHASES), tally.stops, tally.starts]
        lost = f"{sum(tally.lost)}, at most {max(tally.lost)}"
        rows.append([f"{case.project}, {case.processes}", *counts, tally.runs, lost, noticed, f"{seconds:.0f}", "yes"])
    headers = [
        "processes",
        "kills",
        *PHASES,
        "SIGTERM",
        "starts",
        "runs",
        "steps lost",
        "others ended within, s",
        "seconds",
        "equal",
    ]
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)


@contextlib.contextmanager
def scratch_directory(keep: Path | None) -> Iterator[Path]:
    """Removed at the end, unless something was found."""
    directory = Path(tempfile.mkdtemp(prefix="chaos-", dir=keep))
    try:
        yield directory
    except FoundError as found:
        raise SystemExit(f"{found}\n{directory} is kept") from None
    except BaseException:
        shutil.rmtree(directory)
        raise
    if keep is None:
        shutil.rmtree(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of each project (%(default)s)")
    parser.add_argument("--projects", default="recap,twhin", help="separated by commas (%(default)s)")
    parser.add_argument("--processes", default="1,2", help="numbers of them, separated by commas (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (%(default)s)")
    parser.add_argument("--keep", type=Path, help="a directory to work in, where logs and the run in peace are left")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # all processes end, folders go
    numbers = [int(word) for word in args.processes.split(",")]
    tallies: dict[Case, tuple[Tally, float]] = {}
    with scratch_directory(args.keep) as scratch:
        for project in args.projects.split(","):
            data = scratch / f"data-{project}"
            if project == "recap":
                generate_impressions(data, PRESETS["default"], 0, (2000, 500))
            else:
                generate_graph(data, 0, 1000, 600, 5000)
            for index, processes in enumerate(numbers):
                case = Case(project, processes, data)
                kills = args.kills * (index + 1) // len(numbers) - args.kills * index // len(numbers)
                folder = scratch / f"{project}-{processes}"
                folder.mkdir()
                rng = random.Random(f"{args.seed} {project} {processes}")
                tallies[case] = Tormentor(case, kills, rng, folder).run()
    sys.stdout.write(f"\n{report(tallies)}\n")


if __name__ == "__main__":
    main()
