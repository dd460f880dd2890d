import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from common.errors import UserError
from common.numerics import emulates, seed_initial_weights, seed_step, set_deterministic, set_precision


@pytest.fixture
def numerics_restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that monkeypatch restores it
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
def test_set_deterministic_refuses_operations_without_a_deterministic_implementation():
    def fill_uninitialized() -> None:
        torch.empty(3).resize_(4).put_(torch.tensor([0]), torch.tensor([1.0]), accumulate=False)

    set_deterministic(True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        fill_uninitialized()
    set_deterministic(False)
    fill_uninitialized()


@pytest.mark.usefixtures("numerics_restored")
def test_without_a_gpu_the_workspace_of_cublas_does_not_matter(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    set_deterministic(True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":0:0"


@pytest.mark.usefixtures("numerics_restored")
def test_a_workspace_of_cublas_that_is_not_deterministic_is_refused(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match=r"CUBLAS_WORKSPACE_CONFIG=':0:0'.*:4096:8 or :16:8"):
        set_deterministic(True)


def draw(seed: int, step: int, rank: int) -> tuple[float, ...]:
    seed_step(seed, step, rank)
    return tuple(torch.rand(2).tolist())


def test_random_numbers_of_a_step_are_reproducible_and_differ_between_seeds_steps_and_ranks():
    keys = list(itertools.product((0, 1, 2, 2**32 - 1), (1, 2, 3, 1000, 10**7), (0, 1, 2, 255)))
    draws = {key: draw(*key) for key in keys}
    assert len(set(draws.values())) == len(keys)
    assert all(draw(*key) == numbers for key, numbers in reversed(draws.items()))


def test_random_numbers_of_neighboring_steps_and_ranks_are_uncorrelated():
    first = torch.tensor([draw(0, step, rank)[0] for step in range(1, 1001) for rank in range(2)])
    assert abs(first.mean().item() - 0.5) < 0.03  # 4.6 sigma
    pairs = first.reshape(-1, 2)
    assert abs(torch.corrcoef(pairs.T)[0, 1].item()) < 0.15


def test_the_same_seed_gives_the_same_initial_weights():
    seed_initial_weights(5)
    first = torch.rand(3)
    seed_initial_weights(5)
    assert torch.equal(first, torch.rand(3))


@pytest.mark.skipif(shutil.which("lscpu") is None, reason="needs lscpu")
@pytest.mark.parametrize(
    ("dtype", "units"),
    [
        (torch.bfloat16, ("avx512_bf16", "amx_bf16", "bf16")),
        (torch.float16, ("avx512_fp16", "amx_fp16", "asimdhp")),
    ],
)
def test_emulates_agrees_with_lscpu(dtype, units):
    flags = subprocess.run(["lscpu"], capture_output=True, text=True, check=True, timeout=120).stdout.split()
    assert emulates(dtype, torch.device("cpu")) == (not any(flag in flags for flag in units))
    assert not emulates(dtype, torch.device("cuda"))
