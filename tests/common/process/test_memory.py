import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from common.process.memory import allocation_failure, format_bytes, free_memory, memory_shortage
from tests.support.root import ROOT

PHYSICAL_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
V2_MEMBERSHIP = "0::/pods/one"
V1_MEMBERSHIP = "9:name=systemd:/\n4:cpu,memory:/pods/one\n1:cpu:/\n0::/"
V1_NO_LIMIT = 2**63 - 4096  # how the kernel writes "no limit" in cgroup v1


def write(root: Path, files: dict[str, str | int]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")


@pytest.mark.parametrize(
    ("membership", "files", "limit"),
    [
        (V2_MEMBERSHIP, {"pods/one/memory.max": 1000, "pods/memory.max": "max"}, 1000),
        (V2_MEMBERSHIP, {"pods/one/memory.max": "max", "pods/memory.max": 2000}, 2000),
        (V2_MEMBERSHIP, {"memory.max": 3000}, 3000),  # a container that sees its path on the host
        ("0::/../../pods", {"pods/memory.max": 4000}, 4000),
        (V1_MEMBERSHIP, {"memory/pods/one/memory.limit_in_bytes": 5000}, 5000),
        (V1_MEMBERSHIP, {"memory/memory.limit_in_bytes": 6000}, 6000),
        (V1_MEMBERSHIP, {"memory/memory.limit_in_bytes": V1_NO_LIMIT}, PHYSICAL_MEMORY),
        (V1_MEMBERSHIP, {"cpu/memory.limit_in_bytes": 7000}, PHYSICAL_MEMORY),
        (V2_MEMBERSHIP, {"pods/one/memory.max": "max"}, PHYSICAL_MEMORY),
        (V2_MEMBERSHIP, {"pods/other/memory.max": 8000}, PHYSICAL_MEMORY),
    ],
)
def test_the_lowest_limit_of_the_group_and_its_parents_applies(
    tmp_path: Path, membership: str, files: dict[str, str | int], limit: int
) -> None:
    write(tmp_path, {"proc/self/cgroup": membership})
    write(tmp_path / "sys/fs/cgroup", files)
    assert free_memory(root=tmp_path).num_bytes == limit


def test_without_control_groups_the_limit_is_the_physical_memory(tmp_path: Path) -> None:
    assert free_memory(root=tmp_path).num_bytes == PHYSICAL_MEMORY


def test_memory_of_this_machine_is_at_most_its_physical_memory() -> None:
    assert 0 < free_memory().num_bytes < PHYSICAL_MEMORY


V2_USE = {"memory.max": 1000, "memory.current": 700, "memory.stat": "anon 500\nactive_file 80\ninactive_file 120"}
V1_USE = {
    "memory.limit_in_bytes": 1000,
    "memory.usage_in_bytes": 700,
    "memory.stat": "active_file 1\ninactive_file 1\ntotal_active_file 80\ntotal_inactive_file 120",
}


@pytest.mark.parametrize(
    ("membership", "folder", "use"), [(V2_MEMBERSHIP, "pods", V2_USE), (V1_MEMBERSHIP, "memory/pods", V1_USE)]
)
def test_what_is_in_use_counts_except_for_caches_of_files(
    tmp_path: Path, membership: str, folder: str, use: dict[str, str | int]
) -> None:
    write(tmp_path, {"proc/self/cgroup": membership})
    write(tmp_path / "sys/fs/cgroup" / folder, use)
    free = free_memory(root=tmp_path)
    assert free == (500, "this container has 1,000 B, of which 500 B are in use")
    assert free_memory(processes=3, root=tmp_path).num_bytes == 500 // 3
    # The group itself has a higher limit, but less of it is free.
    write(tmp_path / "sys/fs/cgroup" / folder / "one", use)
    name = "memory.current" if "memory.max" in use else "memory.usage_in_bytes"
    write(tmp_path / "sys/fs/cgroup" / folder / "one", {name: 1100})
    assert free_memory(root=tmp_path).num_bytes == 100
    write(tmp_path / "sys/fs/cgroup" / folder / "one", {name: 5000})
    assert free_memory(root=tmp_path).num_bytes == 0


def test_memory_that_other_programs_use_is_not_free(tmp_path: Path) -> None:
    write(tmp_path, {"proc/meminfo": "MemTotal:  99 kB\nMemFree:  1 kB\nMemAvailable:  3 kB"})
    free = free_memory(root=tmp_path)
    assert free.num_bytes == 3072
    assert free.reason.startswith("this machine has ")


SHOW = "from common.process.memory import free_memory; print(*free_memory(8), sep=';')"


@pytest.mark.parametrize(
    ("number", "limit", "name"),
    [
        (resource.RLIMIT_AS, 300 * 2**20, "the address space of this process (ulimit -v) has 300.0 MiB"),
        (resource.RLIMIT_DATA, 200 * 2**20, "the data of this process (ulimit -d) has 200.0 MiB"),
    ],
)
def test_limits_of_the_process_are_not_shared(number: int, limit: int, name: str) -> None:
    process = subprocess.run(
        [sys.executable, "-c", SHOW],
        cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(number, (limit, limit)),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    free, reason = process.stdout.strip().split(";")
    assert reason.startswith(name)
    # The interpreter uses some of it. Eight processes do not divide it.
    assert limit - 150 * 2**20 < int(free) < limit - 2**20


def test_shortage_names_the_processes_and_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory_shortage(2**20) is None
    shortage = memory_shortage(2 * PHYSICAL_MEMORY)
    assert shortage is not None
    assert shortage.startswith(f"needs {format_bytes(2 * PHYSICAL_MEMORY)}, but this ")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    shortage = memory_shortage(PHYSICAL_MEMORY // 3)
    assert shortage is not None
    assert f"needs {format_bytes(PHYSICAL_MEMORY // 3)} in each of the 4 processes on this machine, but" in shortage
    assert memory_shortage(2**20) is None
    shortage = memory_shortage(2 * PHYSICAL_MEMORY, processes=1)
    assert shortage is not None
    assert shortage.startswith(f"needs {format_bytes(2 * PHYSICAL_MEMORY)}, but this ")


def test_failures_to_allocate_are_recognized_in_causes() -> None:
    memory = MemoryError("Unable to allocate 8.00 GiB")
    error = ValueError("cannot read")
    assert allocation_failure(error) is None
    error.__cause__ = memory
    assert allocation_failure(error) is memory
    torch_error = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
    assert allocation_failure(torch_error) is torch_error


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1,023 B"), (1024, "1.0 KiB"), (3 * 2**19, "1.5 MiB"), (2**40, "1,024.0 GiB")],
)
def test_format_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(("gib", "is_enough"), [(1, False), (8, True)])
def test_a_program_for_torch_needs_some_address_space(gib: int, is_enough: bool) -> None:
    """Uses a new process, because the address space of this one is already larger."""
    code = (
        "import resource\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({gib} * 2**30,) * 2)\n"
        "from common.process.memory import check_address_space\n"
        "check_address_space()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert (ended.returncode == 0) == is_enough
    assert (
        "(ulimit -v) is limited to 1.0 GiB, but loading torch and training take at least" in ended.stderr
    ) != is_enough
