"""Tests that need a GPU. `pytest -m gpu` runs only these. Without CUDA they are skipped."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from common.checkpointing.directory import complete_steps
from common.checkpointing.reader import read_tensors
from common.device_copies import DeviceCopies
from common.distributed.world import World, joined_world
from common.errors import UserError
from common.numerics import set_deterministic, set_precision
from common.optimizers.config import LearningRate
from common.optimizers.learning_rate import ParameterGroupScheduler
from common.reader.reader import BatchReader
from common.tracking.metrics_file import read_metrics
from core.config.training import JobConfig, RuntimeConfig, TrainingConfig
from core.custom_training_loop import train
from core.loop.skipped_steps import SkippedStepCounter
from core.loop.step import TrainStep
from core.metrics.evaluation_set import EvaluationSet
from core.metrics.multi_task import MultiTaskMetrics
from core.models.averaging import WeightAverage
from tests.support.ranks import run_ranks
from tests.support.toy import (
    ToyBatch,
    ToyModel,
    dense,
    gradients,
    largest_difference,
    replicated,
    rows_reader,
    toy_batch,
    toy_step,
)

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda", 0)
ALONE = World(0, 0, 1, CUDA)


def fused_adam(model: torch.nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam([{"params": list(model.parameters()), "name": "all"}], lr=0.01, fused=True)


def cuda_step(model: ToyModel, amp: torch.dtype | None = None) -> TrainStep:
    rate = LearningRate(constant=0.01)
    return toy_step(model, optimizer=fused_adam(model), learning_rate=rate, world=ALONE, amp=amp)


# --- Precision ---


@pytest.fixture
def precision() -> Iterator[None]:
    yield
    set_precision(False)


@pytest.mark.usefixtures("precision")
def test_tf32_rounds_products_to_ten_bits_and_ieee_does_not():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=generator) for _ in range(2))
    truth = a.double() @ b.double()
    error = {}
    for tf32 in (False, True):
        set_precision(tf32)
        found = (a.to(CUDA) @ b.to(CUDA)).cpu().double()
        error[tf32] = ((found - truth).norm() / truth.norm()).item()
    assert error[False] < 1e-6
    if torch.cuda.get_device_capability() >= (8, 0):
        assert 1e-5 < error[True] < 1e-3


@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16])
def test_autocast_follows_float32(amp):
    losses = {}
    for dtype in (None, amp):
        model = ToyModel().to(CUDA)
        step = cuda_step(model, dtype)
        losses[dtype] = [step([toy_batch(64, seed=n).to(CUDA)], n)[0].item() for n in range(1, 101)]
    first, last = (sum(losses[None][part]) for part in (slice(0, 10), slice(-10, None)))
    assert last < 0.9 * first
    np.testing.assert_allclose(losses[amp], losses[None], rtol=0.05)


def test_float16_skips_an_update_that_overflows_and_halves_its_scale():
    model = ToyModel().to(CUDA)
    step = cuda_step(model, torch.float16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = toy_batch(8).to(CUDA)
    batch.weights[0, 0] = float("inf")
    _, skipped = step([batch], 1)
    assert skipped.item() == 1
    assert step.scaler.get_scale() == 2.0**15
    assert largest_difference(model.state_dict(), before) == 0
    assert step([toy_batch(8).to(CUDA)], 2)[1].item() == 0
    assert largest_difference(model.state_dict(), before) > 0


# --- Steps ---


@pytest.mark.parametrize("algorithm", [torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad])
def test_optimizers_update_as_on_a_cpu_and_skip_non_finite_gradients(algorithm):
    models = {}
    is_fused = algorithm is not torch.optim.Adagrad  # torch before 2.13 has no fused one on CUDA
    for world in (World(0, 0, 1, torch.device("cpu")), ALONE):
        model = models[world.device.type] = ToyModel().to(world.device)
        optimizer = algorithm(model.parameters(), lr=0.01, weight_decay=0.1, fused=is_fused)
        step = toy_step(model, optimizer=optimizer, learning_rate=LearningRate(constant=0.01), world=world)
        for number in range(1, 6):
            batch = toy_batch(16, seed=number)
            if number == 3:
                batch.weights[0, 0] = float("nan")
            _, skipped = step([batch.to(world.device)], number)
            assert skipped.item() == (number == 3)
    assert largest_difference(models["cuda"].cpu().state_dict(), models["cpu"].state_dict()) < 1e-5


@pytest.fixture
def restored_sync_debug_mode() -> Iterator[None]:
    """Restore the mode after a test in which waiting for the device is an error."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("restored_sync_debug_mode")
def test_averaging_never_waits_for_the_device_and_equals_the_definition():
    model = ToyModel(batch_norm=True).to(CUDA)
    distributed = dense(model, ALONE)
    average = distributed.average = WeightAverage(model, 0.3)
    step = toy_step(distributed, optimizer=fused_adam(model), learning_rate=LearningRate(constant=0.01), world=ALONE)
    good, bad = toy_batch(8).to(CUDA), toy_batch(8).to(CUDA)
    bad.weights[0, 0] = float("nan")
    step([good], 1)  # the first step checks the gradients
    expected = {name: tensor.double() for name, tensor in average.tensors().items()}
    n = 1
    for number, batch in enumerate([good, bad, bad, good, good], start=2):
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        step([batch], number)
        torch.cuda.set_sync_debug_mode("default")
        if batch is good:
            n += 1
            decay = min(0.3, (1 + n) / (10 + n))
            weights = model.state_dict()
            expected = {key: decay * value + (1 - decay) * weights[key].double() for key, value in expected.items()}
        assert largest_difference(average.tensors(), expected) < 1e-6
    assert average.num_updates == n == 4


@pytest.mark.usefixtures("restored_sync_debug_mode")
@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_a_step_never_waits_for_the_device_even_if_its_update_is_skipped(amp):
    model = ToyModel(batch_norm=True).to(CUDA)
    step = cuda_step(model, amp)
    good, bad = toy_batch(8).to(CUDA), toy_batch(8).to(CUDA)
    bad.weights[0, 0] = float("nan")
    counter = SkippedStepCounter(CUDA, 3, 0)
    counter.add(step([good], 1)[1])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    _, skipped = step([bad], 2)
    for _ in range(40):
        counter.add(skipped)
        counter.poll()
    torch.cuda.set_sync_debug_mode("default")
    assert counter.too_many is None, "set by settle() only, which all ranks call together"
    assert counter.settle() == 40
    assert counter.too_many == range(2, 6)
    assert skipped.item() == 1
    assert largest_difference(model.state_dict(), before) == 0
    torch.cuda.set_sync_debug_mode("error")
    _, skipped = step([good], 3)
    torch.cuda.set_sync_debug_mode("default")
    assert skipped.item() == 0
    assert largest_difference(model.state_dict(), before) > 0


def test_gradients_equal_those_on_the_cpu():
    cuda_model, cpu_model = ToyModel().to(CUDA), ToyModel()
    cuda_step(cuda_model)([toy_batch(24).to(CUDA)], 1)
    toy_step(cpu_model)([toy_batch(24)], 1)
    found = {name: gradient.cpu() for name, gradient in gradients(cuda_model).items()}
    assert largest_difference(found, gradients(cpu_model)) < 1e-6


def test_a_pinned_batch_is_copied_to_cuda_on_another_stream():
    pinned = toy_batch(8).pin_memory()
    assert pinned.features.is_pinned()
    assert pinned.labels.is_pinned()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        moved = pinned.to(CUDA, non_blocking=True)
    torch.cuda.current_stream().wait_stream(stream)
    moved.record_stream(torch.cuda.current_stream())
    assert torch.equal(moved.features.cpu(), toy_batch(8).features)


# --- NCCL ---


@pytest.fixture
def nccl_of_one() -> Iterator[World]:
    """Join a process group of one rank, like joined_world() does with several ranks."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29641", "RANK": "0", "WORLD_SIZE": "1"}
    torch.cuda.set_device(CUDA)
    dist.init_process_group("cpu:gloo,cuda:nccl", device_id=CUDA)
    yield World(0, 0, 2, CUDA)  # world size 2, so that the model is wrapped in DDP
    dist.destroy_process_group()
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"):
        del os.environ[name]


@pytest.mark.parametrize(
    ("variables", "fact"),
    [
        ({"LOCAL_RANK": "99", "LOCAL_WORLD_SIZE": "100"}, r"LOCAL_RANK=99, but this process sees \d+ GPU"),
        ({}, "WORLD_SIZE=100 but no LOCAL_RANK"),
    ],
)
def test_a_rank_without_a_gpu_of_its_own_is_refused(
    variables: dict[str, str], fact: str, monkeypatch: pytest.MonkeyPatch
):
    launch = {"RANK": "99", "WORLD_SIZE": "100", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29641"} | variables
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=fact), joined_world(5.0, "cuda"):
        pass


def test_gradients_over_nccl_equal_those_without_it(nccl_of_one: World):
    wrapped = replicated(ToyModel().to(CUDA), nccl_of_one)
    assert isinstance(wrapped.replica, DistributedDataParallel)
    loss, _ = wrapped(toy_batch(24).to(CUDA))
    torch.autograd.backward(loss)
    alone = ToyModel().to(CUDA)
    alone(toy_batch(24).to(CUDA))[0].backward()
    assert largest_difference(gradients(wrapped.module), gradients(alone)) < 1e-6


def two_gpus(world: World) -> dict[str, torch.Tensor]:
    wrapped = replicated(ToyModel().to(world.device), world)
    toy_step(wrapped, world=world)([toy_batch(24).parts(world.size)[world.rank].to(world.device)], 1)
    return {name: gradient.cpu() for name, gradient in gradients(wrapped.module).items()}


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_gradients_on_two_gpus_equal_those_of_one_process():
    cpu = ToyModel()
    toy_step(cpu)([toy_batch(24)], 1)
    for found in run_ranks(two_gpus):
        assert largest_difference(found, gradients(cpu)) < 1e-5


# --- The training loop ---


@pytest.fixture
def reader(tmp_path: Path) -> BatchReader[ToyBatch]:
    return rows_reader(tmp_path)


def test_the_reader_returns_pinned_batches(reader: BatchReader[ToyBatch]):
    batches = reader.train(seed=0, pin_memory=True)
    try:
        assert next(batches).batch.features.is_pinned()
    finally:
        batches.close()


@pytest.fixture
def deterministic() -> Iterator[None]:
    set_deterministic(True)
    yield
    set_deterministic(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("amp_dtype", [None, "bfloat16", "float16"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    tmp_path: Path, reader: BatchReader[ToyBatch], amp_dtype: Literal["bfloat16", "float16"] | None
) -> None:
    """Compares weights, optimizer states, loss scale and metrics. Checkpoints are saved through pinned memory."""

    def run(name: str, num_train_steps: int) -> Path:
        runtime = RuntimeConfig(deterministic=True, enable_amp=amp_dtype is not None, amp_dtype=amp_dtype or "bfloat16")
        training = TrainingConfig(
            save_dir=str(tmp_path / name),
            num_train_steps=num_train_steps,
            checkpoint_every_n=4,
            train_log_every_n=3,
        )
        model = ToyModel(dropout=0.2, batch_norm=True).to(CUDA)
        optimizer = fused_adam(model)
        rates = ParameterGroupScheduler(optimizer, [LearningRate(constant=0.01)])
        evaluation_sets = {"rows": EvaluationSet(reader, lambda device: MultiTaskMetrics(["a", "b"], device))}
        config = JobConfig(runtime=runtime, training=training)
        train(config, model, optimizer, rates, reader, evaluation_sets, ALONE)
        return tmp_path / name

    whole, resumed = run("whole", 12), run("resumed", 8)
    assert run("resumed", 12) == resumed
    assert complete_steps(whole / "checkpoints")[-1] == complete_steps(resumed / "checkpoints")[-1] == 12
    expected, found = (read_tensors(path / "checkpoints/12") for path in (whole, resumed))
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    lines = [
        [(m.step, m.metrics) for m in read_metrics(path / "metrics.jsonl") if m.mode == "evaluate" and m.step == 12]
        for path in (whole, resumed)
    ]
    assert lines[0] == lines[1]


# --- Copies ---


def test_batches_are_pinned_and_copied_correctly_on_another_stream(tmp_path: Path):
    """Each batch is copied while the device computes on the previous ones."""
    reader = rows_reader(tmp_path)
    expected = [positioned.batch for positioned in reader.train(seed=1, num_epochs=4)]
    copies = DeviceCopies(CUDA)
    weight = torch.ones(expected[0].features.shape[1], 4096, device=CUDA)
    sums = []
    for positioned in reader.train(seed=1, num_epochs=4, pin_memory=True):
        assert positioned.batch.features.is_pinned()
        batch = copies.copy(positioned.batch)
        sums.append((batch.features @ weight)[:, 0])  # memory of the batch is freed before this is computed
    assert len(sums) == len(expected)
    for found, batch in zip(sums, expected, strict=True):
        torch.testing.assert_close(found.cpu(), batch.features.sum(dim=1))
