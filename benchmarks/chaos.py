"""Kills the trainer at random moments, restarts it until it finishes, and compares it with an undisturbed run.

    python benchmarks/chaos.py --kills 100 [--projects recap,twhin] [--processes 1,2] [--seed 0] [--keep DIR]

The kills of each project are divided among the numbers of processes. A run has 30 steps on a small generated data set.
It saves every 3 steps, keeps two checkpoints, logs every 2 steps and evaluates every 4. Each kill is a SIGKILL:

- to one process or, with several processes, sometimes to torchrun and all its processes at once;
- at a random time after a launch, a step, the beginning of a save or a batch of an evaluation, or exactly before a file
  operation of a save or a rotation (tests/support/trap.py).

Some runs receive a SIGTERM instead, which does not count as a kill. With several processes, half of the launches have
--max-restarts 3. When a run has finished, its parameters, optimizer states, state.json and the metrics of every line of
metrics.jsonl are compared with those of the undisturbed run. Further runs follow until the number of kills is reached.

The script exits with status 1 if a run differs, hangs or ends with an error. It then keeps the directory and prints its
name.
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
from common.process.paths import user_path  # noqa: E402
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
# Options that add state and randomness: dropout, momenta, clipping, and tables of both kinds of sharding.
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
# Longest wait for an expected event, in seconds. Long, because the machine may be busy.
WAIT_LIMIT_IN_S = 240.0
POLL_IN_S = 0.02
# A save takes a few milliseconds.
SAVE_POLL_IN_S = 0.001
FILES = r"^(open|os\.\w+|shutil\.\w+) .*/checkpoints/"


class ProblemError(Exception):
    """Raised if a run hangs, fails or differs from the undisturbed run."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A project and the number of processes to train it on."""

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
    """Counts of what happened to the runs of a case."""

    kills: Counter[str] = dataclasses.field(default_factory=Counter)
    """Number of kills by phase."""
    stops: int = 0
    starts: int = 0
    runs: int = 0
    lost: list[int] = dataclasses.field(default_factory=list)
    """Steps repeated after each kill, as far as they were logged."""
    noticed: list[float] = dataclasses.field(default_factory=list)
    """Seconds from a kill or SIGTERM of one of several processes to the end of the others."""


# --- The program as processes. ---


class Start:
    """Starts the program as a user does. Ends all its processes when the context ends."""

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
        """Begin a new attempt. From now on, text() and base refer to the workers of this attempt."""
        self._seen = self._log.stat().st_size
        self.began = time.monotonic()
        self.base = self.newest()

    @property
    def status(self) -> int | None:
        """Exit status of the program or torchrun; None if it is running."""
        return self._process.poll()

    def text(self) -> str:
        """Return the log of this attempt."""
        with self._log.open("rb") as file:
            file.seek(self._seen)
            return file.read().decode(errors="replace")

    def newest(self) -> int:
        """Return the step of the newest complete checkpoint, or 0."""
        return (complete_steps(self.checkpoints) or [0])[-1]

    def unfinished(self) -> list[str]:
        """Return the names of the directories of unfinished saves and rotations."""
        with contextlib.suppress(FileNotFoundError):
            return [name for name in os.listdir(self.checkpoints) if not name.isdecimal()]  # noqa: PTH208
        return []

    def workers(self) -> dict[int, int]:
        """Return the process ids of the workers by rank."""
        if self._case.processes == 1:
            return {0: self._process.pid} if self.status is None else {}
        processes = marked_pids(f"CHAOS={self._marker}")
        return {int(env["RANK"]): pid for pid, env in processes.items() if "RANK" in env}

    def signal(self, number: signal.Signals, rank: int | None) -> None:
        """Send a signal to a worker or, if `rank` is None, to the program or torchrun."""
        pid = self._process.pid if rank is None else self.workers().get(rank)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill_all(self) -> None:
        """Kill all processes, including those that are just being started."""
        while pids := marked_pids(f"CHAOS={self._marker}"):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.poll()
            time.sleep(POLL_IN_S)
        self._process.wait()

    def wait(self, until: Callable[[], bool], what: str, poll_in_s: float = POLL_IN_S) -> bool:
        """Wait until a condition holds. Return False if the program ended first.

        Raises:
          ProblemError: the time limit has passed.
        """
        limit = time.monotonic() + WAIT_LIMIT_IN_S
        while not until():
            if self.status is not None:
                return until()
            if time.monotonic() > limit:
                raise ProblemError(f"timed out after {WAIT_LIMIT_IN_S:g} s, waiting for {what}:\n{self.text()[-3000:]}")
            time.sleep(poll_in_s)
        return True


def phase(text: str, unfinished: Sequence[str]) -> str:
    """Return the phase in which an attempt was killed, judged by its log and its unfinished directories."""
    hit = re.findall(r"^trap: (.*)$", text, re.MULTILINE)
    left = hit[-1:] if hit and "/." in hit[-1] else list(unfinished)
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


class CaseRunner:
    """Runs one case and kills it at random moments."""

    def __init__(self, case: Case, kills: int, rng: random.Random, scratch: Path) -> None:
        self._case, self._kills, self._rng, self._scratch = case, kills, rng, scratch
        self._tally = Tally()
        self._seconds_to_step = 5.0
        self._fruitless = 0
        self._title = f"{case.project}, {case.processes} process{'es' if case.processes > 1 else ''}"

    def run(self) -> tuple[Tally, float]:
        """Run, kill and compare until the number of kills is reached. Return the counts and the duration in seconds."""
        undisturbed = self._scratch / "undisturbed"
        began = time.monotonic()
        with Start(self._case, undisturbed, undisturbed.with_suffix(".log"), 0, ()) as start:
            start.wait(lambda: "step 2 of" in start.text(), "the first step")
            self._seconds_to_step = time.monotonic() - start.began
            start.wait(lambda: start.status is not None, "the end of the run")
            if start.status != 0:
                raise ProblemError(f"{self._title}: the undisturbed run failed:\n{start.text()[-3000:]}")
        print_progress(f"{self._title}: the undisturbed run took {time.monotonic() - began:.0f} s")
        while self._killed < self._kills:
            self._tally.runs += 1
            run = self._scratch / f"run-{self._tally.runs}"
            self._until_the_end(run)
            if different := differences(undisturbed, run, STEPS):
                listed = "\n  ".join(different[:20])
                raise ProblemError(f"{self._title}: {run} differs from the undisturbed run:\n  {listed}")
            print_progress(f"{self._title}: run {self._tally.runs} finished and equals the undisturbed run bit for bit")
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
        """Start the program, and kill it unless the number of kills is reached. Return True if it has finished."""
        rng, several, left = self._rng, self._case.processes > 1, self._kills - self._killed
        max_restarts = rng.choice([0, MAX_RESTARTS]) if several else 0
        traps: list[Trap] = []
        if left > 0 and self._fruitless < 2 and rng.random() < 0.4:
            traps = [self._trap() for _ in range(min(left, max_restarts + 1))]
        with Start(self._case, run, log, max_restarts, traps) as start:
            is_disturbed = False
            while True:
                self._tally.starts += 1
                workers = self._disturb(start, bool(traps)) if self._killed < self._kills else None
                if workers is None:
                    start.wait(lambda: start.status is not None, "the end of the run")
                    if start.status != 0 or start.newest() != STEPS:
                        if is_disturbed and start.newest() != STEPS:
                            return False
                        raise ProblemError(
                            f"{self._title}: ended with status {start.status} without a kill:\n{start.text()[-3000:]}"
                        )
                    return True
                is_disturbed = True
                if start.status is None:
                    self._await_others(start, workers)
                if start.status is not None:
                    return False
                start.next_attempt()

    def _await_others(self, start: Start, before: set[int]) -> None:
        """Wait until the other workers have ended and torchrun has started new ones, or has ended."""
        began = time.monotonic()
        start.wait(lambda: not before & set(start.workers().values()), "the end of the other processes")
        if self._case.processes > 1:
            self._tally.noticed.append(time.monotonic() - began)
        start.wait(lambda: bool(start.workers()), "torchrun's next workers")

    def _trap(self) -> Trap:
        """Return a random trap before a file operation of a save, a rotation or a scan of the checkpoints."""
        rng = self._rng
        if rng.random() < 0.5:
            return Trap("delet", rng.randint(1, 7))
        if self._case.processes > 1 and rng.random() < 0.3:
            return Trap(r"\.writing-\d+/tensors-1\.", rng.randint(1, 3), rank=1)
        return Trap(FILES, rng.randint(5, 60))

    def _disturb(self, start: Start, is_trapped: bool) -> set[int] | None:
        """Kill or stop the program at a random moment.

        Returns:
          the process ids of the workers; None if the program ended before the moment.
        """
        rng, several = self._rng, self._case.processes > 1
        if is_trapped:
            if not start.wait(lambda: "trap: " in start.text(), "the trap"):
                return None
            workers = set(start.workers().values())
            self._record_kill(start, "trap")
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
            print_progress(f"{self._title}: SIGTERM during {moment}")
            return workers
        victim = rng.choice([None, *range(self._case.processes)]) if several else None
        if victim is None:
            start.kill_all()
        else:
            start.signal(signal.SIGKILL, victim)
        self._record_kill(start, "all" if victim is None else f"rank {victim}")
        return workers

    def _await(self, start: Start, moment: str) -> bool:
        """Wait for a random moment of a kind. Return False if the program ended before it."""
        rng = self._rng
        if moment == "start":
            delay = rng.uniform(0, self._seconds_to_step)
            return start.wait(lambda: time.monotonic() - start.began > delay, moment)
        if moment == "save":
            leftovers, count = set(start.unfinished()), rng.randint(1, 4)
            seen: set[str] = set()

            def saves() -> bool:
                seen.update(name for name in start.unfinished() if name not in leftovers and "delet" not in name)
                return len(seen) >= count

            is_reached = start.wait(saves, moment, SAVE_POLL_IN_S)
        else:
            pattern = r"INFO step " if moment == "step" else r"INFO evaluating "
            count = rng.randint(1, 8)
            is_reached = start.wait(lambda: len(re.findall(pattern, start.text())) >= count, moment)
        time.sleep(rng.choice([0.0, rng.uniform(0, 0.2)]))
        return is_reached and start.status is None

    def _record_kill(self, start: Start, who: str) -> None:
        text, newest = start.text(), start.newest()
        killed_in = phase(text, start.unfinished())
        logged = max(map(int, re.findall(rf"INFO step (\d+) of {STEPS}", text)), default=start.base)
        self._fruitless = 0 if newest > start.base else self._fruitless + 1
        self._tally.kills[killed_in] += 1
        self._tally.lost.append(max(0, logged - newest))
        print_progress(
            f"{self._title}: kill {self._killed} of {self._kills}: {who}, during {killed_in}, "
            f"after step {logged}; continues after {newest}"
        )


# --- The command line. ---


def print_progress(text: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


def results_table(tallies: dict[Case, tuple[Tally, float]]) -> str:
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
    """Create a directory. Remove it at the end, unless a problem was found or the user keeps it."""
    directory = Path(tempfile.mkdtemp(prefix="chaos-", dir=keep))
    try:
        yield directory
    except ProblemError as problem:
        raise SystemExit(f"{problem}\nLogs and runs are in {directory}") from None
    except BaseException:
        shutil.rmtree(directory)
        raise
    if keep is None:
        shutil.rmtree(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="number of kills per project (default: %(default)s)")
    parser.add_argument(
        "--projects", default="recap,twhin", help="projects, separated by commas (default: %(default)s)"
    )
    parser.add_argument(
        "--processes", default="1,2", help="numbers of processes, separated by commas (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random choices (default: %(default)s)")
    parser.add_argument(
        "--keep", type=user_path, help="directory for logs and the undisturbed run, which are kept there"
    )
    args = parser.parse_args()
    # Exits normally, so that processes and directories are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
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
                tallies[case] = CaseRunner(case, kills, rng, folder).run()
    sys.stdout.write(f"\n{results_table(tallies)}\n")


if __name__ == "__main__":
    main()
