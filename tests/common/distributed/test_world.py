import datetime
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from common.distributed.world import World, joined_world
from common.numerics import emulates_bfloat16, seed_initial_weights, seed_step, set_deterministic, set_precision
from common.process.environment import rank_from_env, world_size_from_env


@pytest.fixture
def numerics_restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back, too
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    before = precisions()
    yield
    for backend, precision in zip(backends(), before, strict=True):
        backend.fp32_precision = precision
    torch.use_deterministic_algorithms(False)


def backends() -> tuple[Any, ...]:
    cudnn: Any = torch.backends.cudnn
    return torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn


def precisions() -> list[str]:
    return [backend.fp32_precision for backend in backends()]


@pytest.mark.usefixtures("numerics_restored")
def test_precision_is_tf32_or_ieee_everywhere():
    set_precision(True)
    assert precisions() == ["tf32"] * 3
    set_precision(False)
    assert precisions() == ["ieee"] * 3


@pytest.mark.usefixtures("numerics_restored")
def test_deterministic_refuses_what_has_no_deterministic_implementation():
    def fill_uninitialised() -> None:
        torch.empty(3).resize_(4).put_(torch.tensor([0]), torch.tensor([1.0]), accumulate=False)

    set_deterministic(True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        fill_uninitialised()
    set_deterministic(False)
    fill_uninitialised()


def drawn(seed: int, step: int, rank: int) -> tuple[float, ...]:
    seed_step(seed, step, rank)
    return tuple(torch.rand(2).tolist())


def test_draws_of_a_step_are_reproducible_and_differ_between_seeds_steps_and_ranks():
    places = list(itertools.product((0, 1, 2, 2**32 - 1), (1, 2, 3, 1000, 10**7), (0, 1, 2, 255)))
    draws = {place: drawn(*place) for place in places}
    assert len(set(draws.values())) == len(places)
    assert all(drawn(*place) == draw for place, draw in reversed(draws.items()))


def test_draws_of_neighbouring_steps_are_unrelated():
    first = torch.tensor([drawn(0, step, rank)[0] for step in range(1, 1001) for rank in range(2)])
    assert abs(first.mean().item() - 0.5) < 0.03  # 4.6 sigma
    pairs = first.reshape(-1, 2)
    assert abs(torch.corrcoef(pairs.T)[0, 1].item()) < 0.15


def test_initial_weights_are_alike_on_all_ranks_and_not_those_of_a_step():
    seed_initial_weights(5)
    first = torch.rand(3)
    seed_initial_weights(5)
    assert torch.equal(first, torch.rand(3))


def test_a_world_of_one_makes_no_process_group(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (rank_from_env(), world_size_from_env()) == (0, 1)
    with joined_world(5.0, "cpu") as world:
        assert world == World(0, 0, 1, torch.device("cpu"), datetime.timedelta(seconds=5))
        assert world.is_rank_zero
        assert not torch.distributed.is_initialized()


def test_rank_0_alone_is_main():
    assert [World(rank, 0, 3, torch.device("cpu")).is_rank_zero for rank in range(3)] == [True, False, False]


@pytest.mark.skipif(shutil.which("lscpu") is None, reason="needs lscpu")
def test_whether_a_cpu_emulates_bfloat16_is_what_the_kernel_says():
    flags = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout.split()
    has_units = any(flag in flags for flag in ("avx512_bf16", "amx_bf16", "bf16"))
    assert emulates_bfloat16(torch.device("cpu")) == (not has_units)
    assert not emulates_bfloat16(torch.device("cuda"))
