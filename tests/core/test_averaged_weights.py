"""A run with training.ema_decay: the average is saved, resumed, evaluated and used for a warm start."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from common.checkpointing.reader import CheckpointReader, read_state, read_tensors
from common.errors import ConfigError, UserError
from common.tracking.measurement import Measurement
from common.tracking.metrics_file import read_metrics
from core.autocast import Autocast
from core.config.training import JobConfig, RuntimeConfig, TrainingConfig
from core.custom_training_loop import Outcome, only_evaluate, train
from core.evaluation.evaluator import Evaluator
from core.run.components import TrainingComponents
from core.run.tensors import load_averaged_model, load_model
from tests.support.spoiled_model import SpoiledModel, spoil_batch
from tests.support.toy import CPU, ToyModel, dense, loop_arguments, toy_components

DECAY = 0.7


def job(directory: Path, module: ToyModel | None = None, ema_decay: float | None = DECAY, **options: Any) -> Any:
    directory.mkdir(exist_ok=True)
    return toy_components(directory, module, ema_decay=ema_decay, **options)


def run(components: TrainingComponents) -> Outcome:
    return train(*loop_arguments(components))


def checkpoint(directory: Path, step: int) -> Path:
    return directory / f"run/checkpoints/{step}"


def measured(directory: Path, file: str = "metrics.jsonl") -> list[tuple[int, str, str | None, Any]]:
    return [(m.step, m.mode, m.partition, m.metrics) for m in read_metrics(directory / "run" / file)]


def assert_equal_tensors(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint of each of its 10 steps."""
    directory = tmp_path_factory.mktemp("averaged")
    run(job(directory, checkpoint_every_n=1))
    return directory


def test_a_checkpoint_holds_the_average_of_all_weights_since_the_start(averaged: Path) -> None:
    """The average of each step, in float64, from the weights in the checkpoints before it."""
    initial = ToyModel(dropout=0.3, batch_norm=True).state_dict()
    expected = {name: tensor.double() for name, tensor in initial.items() if tensor.is_floating_point()}
    for n in range(1, 11):
        weights = read_tensors(checkpoint(averaged, n), "model.")
        d = min(DECAY, (1 + n) / (10 + n))
        expected = {name: d * value + (1 - d) * weights[name].double() for name, value in expected.items()}
        found = read_tensors(checkpoint(averaged, n), "average.")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name].double(), value, rtol=1e-5, atol=1e-7)
        assert read_state(checkpoint(averaged, n))["progress"]["averaged_updates"] == n


def test_averaging_and_evaluating_leave_training_as_it_is_bit_for_bit(averaged: Path, tmp_path: Path) -> None:
    run(job(tmp_path / "plain", ema_decay=None, checkpoint_every_n=1, eval_every_n=0))
    for step in (1, 4, 10):
        plain = read_tensors(checkpoint(tmp_path / "plain", step))
        found = {
            name: tensor
            for name, tensor in read_tensors(checkpoint(averaged, step)).items()
            if not name.startswith("average.")
        }
        assert_equal_tensors(found, plain)


@pytest.mark.parametrize("step", [3, 8])
def test_a_run_that_was_killed_continues_bit_for_bit(averaged: Path, tmp_path: Path, step: int) -> None:
    run(job(tmp_path, checkpoint_every_n=1, num_train_steps=step))
    run(job(tmp_path, checkpoint_every_n=1))
    assert_equal_tensors(read_tensors(checkpoint(tmp_path, 10)), read_tensors(checkpoint(averaged, 10)))
    found, expected = ([m for m in measured(path) if m[1] == "evaluate"] for path in (tmp_path, averaged))
    assert found == expected
    assert len(found) == 10


def test_the_average_is_what_trainer_and_follower_evaluate(averaged: Path) -> None:
    components = job(averaged, checkpoint_every_n=1)
    only_evaluate(
        *(getattr(components, name) for name in ("config", "model", "train_reader", "evaluation_sets", "world"))
    )
    trainer = [m for m in measured(averaged) if m[1] == "evaluate"]
    assert measured(averaged, "metrics-evaluator.jsonl") == trainer
    for load, is_equal in ((load_averaged_model, True), (load_model, False)):
        model = dense(ToyModel(dropout=0.3, batch_norm=True))
        with CheckpointReader(checkpoint(averaged, 10)) as opened:
            load(model, opened)
        assert (evaluated(components, model) == trainer[-1][3]) == is_equal


def evaluator_of(components: TrainingComponents) -> Evaluator:
    return Evaluator.configured(
        components.config, components.evaluation_sets, components.world, Autocast(CPU, None), lambda *_: None
    )


def evaluated(components: TrainingComponents, model: Any) -> Any:
    found: list[Measurement] = []
    evaluator = evaluator_of(components)
    evaluator.evaluate(model, 10, ["rows"], lambda: False, found.append)
    return found[0].metrics


def test_an_evaluation_that_fails_leaves_the_weights_bit_for_bit(tmp_path: Path) -> None:
    components = job(tmp_path)
    run(components)
    before = {name: tensor.clone() for name, tensor in components.model.module.state_dict().items()}

    def fail(_: Measurement) -> None:
        assert not torch.equal(components.model.module.out.weight, before["out.weight"])
        raise OSError

    evaluator = evaluator_of(components)
    with pytest.raises(OSError):
        evaluator.evaluate(components.model, 10, ["rows"], lambda: False, fail)
    assert_equal_tensors(components.model.module.state_dict(), before)


def spoiled(when: Callable[[int], bool]) -> SpoiledModel:
    return SpoiledModel(when, spoil_batch, batch_norm=True)


def test_a_skipped_update_does_not_count(tmp_path: Path) -> None:
    run(job(tmp_path, spoiled(lambda call: call in (4, 5)), checkpoint_every_n=1))
    third, fourth, fifth, sixth = (read_tensors(checkpoint(tmp_path, step), "average.") for step in (3, 4, 5, 6))
    assert_equal_tensors(fourth, third)
    assert_equal_tensors(fifth, third)
    assert not torch.equal(sixth["out.weight"], third["out.weight"])
    counts = [read_state(checkpoint(tmp_path, n))["progress"]["averaged_updates"] for n in (3, 5, 6, 10)]
    assert counts == [3, 3, 4, 8]


def test_float16_averages_only_the_updates_that_its_scaler_applies(tmp_path: Path) -> None:
    training = TrainingConfig(save_dir=str(tmp_path / "run"), num_train_steps=10, ema_decay=DECAY)
    config = JobConfig(training=training, runtime=RuntimeConfig(enable_amp=True, amp_dtype="float16"))
    run(job(tmp_path, config=config))
    skipped = sum(int(m[3]["skipped_updates"]) for m in measured(tmp_path) if m[1] == "train")
    assert read_state(checkpoint(tmp_path, 10))["progress"]["averaged_updates"] == 10 - skipped


@pytest.mark.parametrize(("before", "now"), [(None, DECAY), (DECAY, None), (DECAY, 0.5)])
def test_a_resume_with_another_decay_is_an_error(tmp_path: Path, before: float | None, now: float | None) -> None:
    run(job(tmp_path, ema_decay=before, num_train_steps=4))
    with pytest.raises(UserError, match=r"holds another run:\n  training\.ema_decay: .* in the run, .* now"):
        run(job(tmp_path, ema_decay=now))
    assert run(job(tmp_path, ema_decay=before)).step == 10


@pytest.mark.parametrize("ema_decay", [None, DECAY])
def test_a_warm_start_takes_the_average(averaged: Path, tmp_path: Path, ema_decay: float | None) -> None:
    source = checkpoint(averaged, 10)
    components = job(tmp_path, ema_decay=ema_decay, initial_checkpoint_dir=str(source), num_train_steps=1)
    began: dict[str, torch.Tensor] = {}

    def begin(*_: Any) -> None:
        began.update({name: tensor.clone() for name, tensor in components.model.module.state_dict().items()})

    components.model.module.register_forward_pre_hook(lambda *_: None if began else begin())
    run(components)
    assert_equal_tensors(began, read_tensors(source, "model.") | read_tensors(source, "average."))
    if ema_decay is not None:
        weights, average = (read_tensors(checkpoint(tmp_path, 1), prefix) for prefix in ("model.", "average."))
        for name, value in average.items():
            expected = 2 / 11 * began[name].double() + 9 / 11 * weights[name].double()
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)


def test_a_checkpoint_without_an_average_is_loaded_as_it_is(tmp_path: Path) -> None:
    components = job(tmp_path, ema_decay=None, num_train_steps=2)
    run(components)
    model = dense(ToyModel(dropout=0.3, batch_norm=True))
    with CheckpointReader(checkpoint(tmp_path, 2)) as opened:
        load_averaged_model(model, opened)
    assert_equal_tensors(model.module.state_dict(), components.model.module.state_dict())


def test_a_nonfinite_average_is_not_saved(tmp_path: Path) -> None:
    components = job(tmp_path, checkpoint_every_n=1, train_log_every_n=2)

    def spoil() -> dict[str, float]:
        assert components.model.average is not None
        components.model.average.tensors()["out.bias"][1] = math.nan
        return {}

    with pytest.raises(UserError, match=r"non-finite after step 2 \(average of out\.bias\[1\]: nan\)"):
        train(*loop_arguments(components), extra_metrics=spoil)


def test_sharded_tables_are_refused(tmp_path: Path) -> None:
    model = dense(ToyModel())
    model.has_sharded_tables = True
    with pytest.raises(ConfigError, match=r"^training\.ema_decay: .*sharded tables"):
        job(tmp_path, model=model)
