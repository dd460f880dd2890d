"""Trains over two "hosts" of one machine, loses one of them in several ways, brings it back, and compares.

    sudo python benchmarks/two_hosts.py [--project recap] [--ways killed,cut,endpoint] [--keep DIR]

Needs root and `ip` (iproute2); status 2 without. A host is a network namespace; a veth pair joins them, the file system
is shared. On each runs torchrun --nnodes 2 with the c10d rendezvous, whose endpoint is host a, and one worker.

    killed    all processes of host b get SIGKILL at once
    cut       host b's link goes down until both workers have ended: nobody is told, packets are lost
    endpoint  all processes of host a get SIGKILL at once, and with it the rendezvous is gone

Then torchrun is started again on every host where it has ended, and on none else. The run must end by itself, with the
state and the measurements of a run that was left in peace: else the status is 1, and the directory is kept.
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
PATIENCE_IN_S = 300.0


class FoundError(Exception):
    """What must not be."""


# --- The hosts. ---


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def namespace(host: str) -> str:
    return f"two-hosts-{host}"


def link(host: str) -> str:
    return f"th-{host}"


@contextlib.contextmanager
def network() -> Iterator[None]:
    """Two namespaces joined by a cable; gone at the end."""
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
    """The trainer on both hosts; all its processes end when the context is left."""

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
        """Gives torchrun's command on a host."""
        agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        agent += ["--max-restarts", "3", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{HOSTS['a']}:{PORT}"]
        # Where the names of the hosts are known, torchrun finds both by itself.
        agent += ["--rdzv-conf", f"is_host={int(host == 'a')}", "--local-addr", HOSTS[host]]
        environment = {
            "OMP_NUM_THREADS": "1",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # else a host can't come back (docs/clusters.md)
            "GLOO_SOCKET_IFNAME": link(host),  # the name of this machine is not its address here
            "TWO_HOSTS": self._entry(host),
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

    def _entry(self, host: str) -> str:
        return f"{self._token}-{host}"

    def log(self, host: str) -> Path:
        return self._log.with_suffix(f".{host}.log")

    def status(self, host: str) -> int | None:
        """Of torchrun; None: it runs."""
        return self._agents[host].poll()

    def worker(self, host: str) -> int | None:
        """Its process id; None: there is none."""
        found = marked_pids(f"TWO_HOSTS={self._entry(host)}")
        return next((pid for pid, environment in found.items() if "RANK" in environment), None)

    def kill(self, host: str) -> None:
        """All processes of a host."""
        while found := marked_pids(f"TWO_HOSTS={self._entry(host)}"):
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._agents[host].poll()
        self._agents[host].wait()

    def wait(self, until: Callable[[], bool], what: str) -> float:
        """The seconds that it took."""
        began = time.monotonic()
        while not until():
            over = all(self.status(host) is not None for host in HOSTS) and not until()
            if over or time.monotonic() - began > PATIENCE_IN_S:
                logs = "\n".join(f"--- {host}\n{self.log(host).read_text()[-3000:]}" for host in HOSTS)
                raise FoundError(f"{what} did not come after {time.monotonic() - began:.0f} s\n{logs}")
            time.sleep(0.05)
        return time.monotonic() - began


# --- Losing one. ---


def lose(way: str, cluster: Cluster) -> list[str]:
    """Loses a host in the middle of the run and brings it back; a row of the table."""
    lost, survivor = ("a", "b") if way == "endpoint" else ("b", "a")

    def said(pattern: str) -> list[str]:
        """By rank 0, which is on host a."""
        return re.findall(pattern, cluster.log("a").read_text(), re.MULTILINE)

    cluster.wait(lambda: bool(said(r"saved \S+/8$")), "the checkpoint of step 8")
    workers = {host: cluster.worker(host) for host in HOSTS}
    if way == "cut":
        ip("-n", namespace(lost), "link", "set", link(lost), "down")
    else:
        cluster.kill(lost)
    tell(f"{way}: host {lost} is gone")
    noticed = cluster.wait(lambda: cluster.worker(survivor) != workers[survivor], "the end of the survivor's worker")
    tell(f"{way}: the worker of host {survivor} has ended after {noticed:.1f} s")
    if way == "endpoint":
        cluster.wait(lambda: cluster.status(survivor) is not None, f"the end of torchrun on host {survivor}")
    elif way == "cut":
        cluster.wait(lambda: cluster.worker(lost) != workers[lost], "the end of the lost host's worker")
        ip("-n", namespace(lost), "link", "set", link(lost), "up")
    again: Counter[str] = Counter()

    def is_back() -> bool:
        for host in HOSTS:
            if (status := cluster.status(host)) is not None:
                tell(f"{way}: torchrun on host {host} has ended with {status}, and is started again")
                again[host] += 1
                cluster.start(host)
        return bool(said("continuing after step"))

    back = cluster.wait(is_back, "the next start")
    step = said(r"continuing after step (\d+) ")[-1]
    tell(f"{way}: continues after step {step}, {back:.1f} s after host {lost} is back")
    return [way, f"{noticed:.1f}", ", ".join(sorted(again)) or "none", f"{back:.1f}", step]


def finish(cluster: Cluster) -> None:
    cluster.wait(lambda: all(cluster.status(host) is not None for host in HOSTS), "the end")
    if statuses := {host: status for host in HOSTS if (status := cluster.status(host)) != 0}:
        logs = "\n".join(cluster.log(host).read_text()[-3000:] for host in statuses)
        raise FoundError(f"torchrun ended with {statuses} on its hosts\n{logs}")


# --- The command line. ---


def tell(text: str) -> None:
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

    with cluster("peace") as both:
        finish(both)
    tell(f"{project}: a run in peace has ended")
    rows = []
    for way in ways:
        with cluster(way) as both:
            row = lose(way, both)
            finish(both)
        if found := differences(scratch / "peace", scratch / way, STEPS):
            raise FoundError(f"{way}: the run is not the one in peace:\n  " + "\n  ".join(found[:20]))
        tell(f"{way}: the run came to its end, bit for bit as the one in peace")
        rows.append([*row, "yes"])
    headers = ["way", "noticed after, s", "torchrun started again on", "goes on after, s", "after step", "equal"]
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", choices=["recap", "twhin"], default="recap", help="(%(default)s)")
    parser.add_argument("--ways", default="killed,cut,endpoint", help="separated by commas (%(default)s)")
    parser.add_argument("--keep", type=Path, help="a directory to work in, where logs and runs are left")
    args = parser.parse_args()
    if os.geteuid() != 0 or shutil.which("ip") is None:
        sys.stderr.write("error: network namespaces need root, and `ip` (Debian: apt-get install iproute2)\n")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # namespaces and processes end
    scratch = Path(tempfile.mkdtemp(prefix="two-hosts-", dir=args.keep))
    try:
        with network():
            sys.stdout.write(f"\n{compare(args.project, args.ways.split(','), scratch)}\n")
    except FoundError as found:
        sys.stderr.write(f"{found}\n{scratch} is kept\n")
        return 1
    except BaseException:
        shutil.rmtree(scratch)
        raise
    if args.keep is None:
        shutil.rmtree(scratch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
