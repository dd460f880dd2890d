import os
from pathlib import Path

import pytest

from common.process.memory import memory_limit_in_bytes

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
    assert memory_limit_in_bytes(tmp_path) == limit


def test_without_control_groups_the_limit_is_the_physical_memory(tmp_path: Path) -> None:
    assert memory_limit_in_bytes(tmp_path) == PHYSICAL_MEMORY


def test_the_limit_of_this_machine_is_at_most_its_physical_memory() -> None:
    assert 0 < memory_limit_in_bytes() <= PHYSICAL_MEMORY
