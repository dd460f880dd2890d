"""Trains on two simulated hosts, loses one of them in several ways, brings it back, and compares the results.

    sudo python benchmarks/two_hosts.py [--project recap] [--ways killed,cut,endpoint] [--keep DIR]

This needs root and `ip` (iproute2), and exits with status 2 without them. The hosts are network namespaces of this
machine that are connected by a veth pair and share the file system. Each host runs torchrun --nnodes 2 with one worker
and the c10d rendezvous. The endpoint is host a.

    killed    all processes of host b receive SIGKILL at once
    cut       the link of host b is down until both workers have ended; packets are lost without any error
    endpoint  all processes of host a receive SIGKILL at once, which also ends the rendezvous

The script then restarts torchrun only on the hosts where it has ended. The run must finish with the same state and
measurements as an undisturbed run. Otherwise the script exits with status 1 and keeps its directory.
"""

import argparse
import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tabulate import tabulate  # noqa: E402

from common.process.paths import user_path  # noqa: E402
from projects.home.recap.tools.generate import PRESETS  # noqa: E402
from projects.home.recap.tools.generate import generate as generate_impressions  # noqa: E402
from projects.twhin.tools.generate import generate as generate_graph  # noqa: E402
from tests.support.comparison import differences  # noqa: E402
from tests.support.programs import RECAP, TWHIN, marked_pids  # noqa: E402
from tests.support.runs import small_run, small_twhin_run  # noqa: E402

STEPS = 60
TIMEOUT_IN_S = 20
OPTIONS = (
    f"training.num_train_steps={STEPS}",
    "training.num_epochs=10",
    "training.checkpoint_every_n=4",
    "training.checkpoint_max_to_keep=3",
    "training.train_log_every_n=2",
    f"runtime.process_group_timeout_in_s={TIMEOUT_IN_S}",
)
HOSTS = {"a": "10.231.7.1", "b": "10.231.7.2"}
PORT = 29400
WAIT_LIMIT_IN_S = 300.0


class ProblemError(Exception):
    """Raised if a run hangs, fails or differs from the undisturbed run."""


# --- The hosts. ---


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def namespace(host: str) -> str:
    return f"two-hosts-{host}"


def link(host: str) -> str:
    return f"th-{host}"


@contextlib.contextmanager
def network() -> Iterator[None]:
    """Create two connected namespaces. Delete them at the end."""
    with contextlib.ExitStack() as stack:
        for host in HOSTS:
            ip("netns", "add", namespace(host))
            stack.callback(ip, "netns", "delete", namespace(host))
        ip(
            *("link", "add", link("a"), "netns", namespace("a")),
            *("type", "veth", "peer", "name", link("b"), "netns", namespace("b")),
        )
        for host, address in HOSTS.items():
            ip("-n", namespace(host), "address", "add", f"{address}/24", "dev", link(host))
            ip("-n", namespace(host), "link", "set", "lo", "up")
            ip("-n", namespace(host), "link", "set", link(host), "up")
        yield


class Cluster:
    """Runs the trainer on both hosts. All its processes end when the context ends."""

    def __init__(self, module: str, arguments: list[str], log: Path) -> None:
        self._module, self._arguments, self._log = module, arguments, log
        self._token = secrets.token_hex(8)
        self._agents: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Cluster":
        for host in HOSTS:
            self.start(host)
        return self

    def __exit__(self, *_: object) -> None:
        for host in HOSTS:
            self.kill(host)

    def start(self, host: str) -> None:
        """Start torchrun on a host."""
        agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        agent += ["--max-restarts", "3", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{HOSTS['a']}:{PORT}"]
        # If the hosts had names that resolve, torchrun would find out both values itself.
        agent += ["--rdzv-conf", f"is_host={int(host == 'a')}", "--local-addr", HOSTS[host]]
        environment = {
            "OMP_NUM_THREADS": "1",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # without it, a host cannot come back (docs/clusters.md)
            "GLOO_SOCKET_IFNAME": link(host),  # the machine's name does not resolve to an address in its namespace
            "TWO_HOSTS": self._marker(host),
        }
        with self.log(host).open("ab") as file:
            self._agents[host] = subprocess.Popen(
                ["ip", "netns", "exec", namespace(host), *agent, "-m", self._module, *self._arguments],
                cwd=ROOT,
                env=os.environ | environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def _marker(self, host: str) -> str:
        return f"{self._token}-{host}"

    def log(self, host: str) -> Path:
        return self._log.with_suffix(f".{host}.log")

    def status(self, host: str) -> int | None:
        """Return the exit status of torchrun on a host, or None if it is running."""
        return self._agents[host].poll()

    def worker(self, host: str) -> int | None:
        """Return the process id of the worker on a host, or None if there is none."""
        processes = marked_pids(f"TWO_HOSTS={self._marker(host)}")
        return next((pid for pid, environment in processes.items() if "RANK" in environment), None)

    def kill(self, host: str) -> None:
        """Kill all processes of a host."""
        while pids := marked_pids(f"TWO_HOSTS={self._marker(host)}"):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._agents[host].poll()
        self._agents[host].wait()

    def wait(self, until: Callable[[], bool], what: str) -> float:
        """Wait until a condition holds, and return the seconds that it took.

        Raises:
          ProblemError: the program ended first, or the time limit has passed.
        """
        began = time.monotonic()
        while not until():
            has_ended = all(self.status(host) is not None for host in HOSTS) and not until()
            if has_ended or time.monotonic() - began > WAIT_LIMIT_IN_S:
                logs = "\n".join(f"--- {host}\n{self.log(host).read_text()[-3000:]}" for host in HOSTS)
                raise ProblemError(f"gave up after {time.monotonic() - began:.0f} s, waiting for {what}\n{logs}")
            time.sleep(0.05)
        return time.monotonic() - began


# --- Losing a host. ---


def lose(way: str, cluster: Cluster) -> list[str]:
    """Lose a host in the middle of the run and bring it back. Return a row of the table."""
    lost, survivor = ("a", "b") if way == "endpoint" else ("b", "a")

    def logged(pattern: str) -> list[str]:
        """Return the matches in the log of rank 0, which is on host a."""
        return re.findall(pattern, cluster.log("a").read_text(), re.MULTILINE)

    cluster.wait(lambda: bool(logged(r"saved \S+/8$")), "the checkpoint of step 8")
    workers = {host: cluster.worker(host) for host in HOSTS}
    if way == "cut":
        ip("-n", namespace(lost), "link", "set", link(lost), "down")
    else:
        cluster.kill(lost)
    print_progress(f"{way}: lost host {lost}")
    noticed = cluster.wait(lambda: cluster.worker(survivor) != workers[survivor], "the end of the remaining worker")
    print_progress(f"{way}: the worker on host {survivor} ended after {noticed:.1f} s")
    if way == "endpoint":
        cluster.wait(lambda: cluster.status(survivor) is not None, f"the end of torchrun on host {survivor}")
    elif way == "cut":
        cluster.wait(lambda: cluster.worker(lost) != workers[lost], "the end of the lost host's worker")
        ip("-n", namespace(lost), "link", "set", link(lost), "up")
    restarts: Counter[str] = Counter()

    def is_back() -> bool:
        for host in HOSTS:
            if (status := cluster.status(host)) is not None:
                print_progress(f"{way}: torchrun on host {host} ended with status {status}; restarting it")
                restarts[host] += 1
                cluster.start(host)
        return bool(logged("continuing after step"))

    back = cluster.wait(is_back, "training to continue")
    step = logged(r"continuing after step (\d+) ")[-1]
    print_progress(f"{way}: training continues after step {step}, {back:.1f} s after host {lost} came back")
    return [way, f"{noticed:.1f}", ", ".join(sorted(restarts)) or "none", f"{back:.1f}", step]


def finish(cluster: Cluster) -> None:
    cluster.wait(lambda: all(cluster.status(host) is not None for host in HOSTS), "the end of the run")
    if statuses := {host: status for host in HOSTS if (status := cluster.status(host)) != 0}:
        logs = "\n".join(cluster.log(host).read_text()[-3000:] for host in statuses)
        raise ProblemError(f"torchrun ended with status {statuses}\n{logs}")


# --- The command line. ---


def print_progress(text: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


def compare(project: str, ways: list[str], scratch: Path) -> str:
    data = scratch / "data"
    if project == "recap":
        generate_impressions(data, PRESETS["default"], 0, (2000, 500))
    else:
        generate_graph(data, 0, 1000, 600, 5000)

    def cluster(name: str) -> Cluster:
        arguments = small_run if project == "recap" else small_twhin_run
        module = RECAP if project == "recap" else TWHIN
        return Cluster(module, arguments(data, scratch / name, *OPTIONS), scratch / name)

    with cluster("undisturbed") as both:
        finish(both)
    print_progress(f"{project}: the undisturbed run has finished")
    rows = []
    for way in ways:
        with cluster(way) as both:
            row = lose(way, both)
            finish(both)
        if different := differences(scratch / "undisturbed", scratch / way, STEPS):
            raise ProblemError(f"{way}: the run differs from the undisturbed run:\n  " + "\n  ".join(different[:20]))
        print_progress(f"{way}: the run finished and equals the undisturbed run bit for bit")
        rows.append([*row, "yes"])
    headers = ["way", "noticed after, s", "torchrun restarted on", "continues after, s", "after step", "equal"]
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--project", choices=["recap", "twhin"], default="recap", help="what to train (default: %(default)s)"
    )
    parser.add_argument(
        "--ways", default="killed,cut,endpoint", help="ways to lose a host, separated by commas (default: %(default)s)"
    )
    parser.add_argument("--keep", type=user_path, help="directory for logs and runs, which are kept there")
    args = parser.parse_args()
    if os.geteuid() != 0 or shutil.which("ip") is None:
        sys.stderr.write("error: network namespaces need root and the program ip (Debian: apt-get install iproute2)\n")
        return 2
    # Exits normally, so that namespaces and processes are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    scratch = Path(tempfile.mkdtemp(prefix="two-hosts-", dir=args.keep))
    try:
        with network():
            sys.stdout.write(f"\n{compare(args.project, args.ways.split(','), scratch)}\n")
    except ProblemError as problem:
        sys.stderr.write(f"{problem}\nLogs and runs are in {scratch}\n")
        return 1
    except BaseException:
        shutil.rmtree(scratch)
        raise
    if args.keep is None:
        shutil.rmtree(scratch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
