"""Runs the Heavy Ranker's program in this process and tests its options and configuration keys."""

import json
import logging
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from common.checkpointing.directory import complete_steps
from common.checkpointing.manifest import CheckpointError
from common.checkpointing.reader import read_tensors
from common.errors import ConfigError, UserError
from common.reader.files import DataError
from common.reader.vectors import with_lists
from projects.home.recap.main import main
from tests.support.faults import flip_a_bit, full_disk
from tests.support.runs import small_run

Train = Callable[..., int]


@pytest.fixture
def train(recap_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Return a function that runs the program. Options that begin with -- are flags; all others are overrides."""

    def run(*options: str, save_dir: Path = tmp_path / "run", data: Path = recap_data) -> int:
        flags = [word for option in options if option.startswith("--") for word in option.split()]
        arguments = small_run(data, save_dir, *(option for option in options if not option.startswith("--")))
        monkeypatch.setattr(sys, "argv", ["main", *arguments, *flags])
        return main()

    return run


def lines(save_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (save_dir / "metrics.jsonl").read_text().splitlines()]


def losses(save_dir: Path) -> list[float]:
    return [line["metrics"]["loss"] for line in lines(save_dir) if line["mode"] == "train"]


def test_runs_exactly_num_train_steps_and_saves_the_last_step(train: Train, tmp_path: Path) -> None:
    assert train("training.num_train_steps=11", "training.train_log_every_n=5", "training.checkpoint_every_n=4") == 0
    assert complete_steps(tmp_path / "run/checkpoints") == [4, 8, 11]
    events = [(line["step"], line["mode"]) for line in lines(tmp_path / "run")]
    assert events == [(4, "evaluate"), (5, "train"), (8, "evaluate"), (10, "train"), (11, "train"), (11, "evaluate")]


def test_stops_after_num_epochs_if_they_end_first(train: Train, tmp_path: Path) -> None:
    assert train("training.num_train_steps=1000", "training.num_epochs=1", "training.checkpoint_every_n=1000") == 0
    assert complete_steps(tmp_path / "run/checkpoints") == [2000 // 96]


def test_gradient_accumulation_counts_updates_as_steps(train: Train, tmp_path: Path) -> None:
    options = ("training.num_train_steps=1000", "training.num_epochs=1", "training.gradient_accumulation=3")
    assert train(*options, "training.checkpoint_every_n=1000") == 0
    assert complete_steps(tmp_path / "run/checkpoints") == [2000 // 96 // 3]


def test_rerunning_a_finished_run_changes_nothing_and_more_steps_continue_it(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train() == 0
    before = lines(tmp_path / "run")
    capsys.readouterr()
    assert train() == 0
    captured = capsys.readouterr()
    assert re.search(r"finished.*\b12 steps", captured.err)
    assert re.search(r"validation .*step 12: 500 examples", captured.out)
    assert lines(tmp_path / "run") == before
    assert train("training.num_train_steps=14") == 0
    assert complete_steps(tmp_path / "run/checkpoints")[-1] == 14
    assert lines(tmp_path / "run")[: len(before)] == before


@pytest.mark.parametrize("optimizer", ["adamw={beta_1: 0.95}", "adagrad={}"])
def test_a_resume_continues_the_states_of_the_optimizer(train: Train, tmp_path: Path, optimizer: str) -> None:
    options = ("optimizer.adam=null", f"optimizer.{optimizer}")
    assert train(*options, save_dir=tmp_path / "whole") == 0
    assert train(*options, "training.num_train_steps=6") == 0
    assert train(*options) == 0
    resumed, whole = (read_tensors(tmp_path / run / "checkpoints/12") for run in ("run", "whole"))
    assert resumed.keys() == whole.keys()
    assert any(name.startswith("optimizer.") for name in whole)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    rates = [name for name in lines(tmp_path / "run")[0]["metrics"] if name.startswith("learning_rate/")]
    assert len(rates) == 11
    with pytest.raises(UserError, match=r"optimizer\.ad\w+: "):
        train("training.num_train_steps=14")


def test_rotation_keeps_the_newest_two_checkpoints(train: Train, tmp_path: Path) -> None:
    assert train("training.checkpoint_max_to_keep=2", "training.checkpoint_every_n=3", "training.eval_every_n=0") == 0
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["12", "9"]


def test_metrics_may_change_between_a_run_and_its_resume(
    train: Train, recap_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("training.num_train_steps=4") == 0
    one = "recap.engagement.is_favorited"
    strata = "model.stratifiers=[{name: kind 0, index: 3, value: 0}, {name: none, index: 3, value: -5}]"
    choice = ("metrics={exact: true, thresholds: [0.1]}", f"validation_data.validation.evaluation_tasks=[{one}]")
    capsys.readouterr()
    assert train("training.num_train_steps=8", strata, *choice) == 0
    before, after = (line["metrics"] for line in lines(tmp_path / "run") if line["mode"] == "evaluate")
    tasks = {name.partition("/")[0] for name in after} - {"mean", "stratum", "examples"}
    assert tasks == {one}
    assert after["mean/rce"] == after[f"{one}/rce"] != before["mean/rce"]
    assert f"{one}/precision_at_0.5" in before
    assert f"{one}/recall_at_0.1" in after
    stored = with_lists(pq.read_table(recap_data / "validation", columns=["discrete", one]))
    kind = np.array(stored["discrete"].to_pylist())[:, 3]
    assert after["stratum/kind 0/examples"] == (kind == 0).sum() > 0
    labels = stored[one].to_numpy()
    assert after[f"stratum/kind 0/{one}/ctr"] == pytest.approx(labels[kind == 0].mean(), rel=1e-12)
    assert after["stratum/none/examples"] == 0
    assert after["stratum/none/mean/rce"] is None
    printed = capsys.readouterr().out
    assert "is_replied" not in printed
    assert "\nkind 0 " in printed


def test_a_stratum_beyond_the_discrete_features_is_an_error(train: Train) -> None:
    with pytest.raises(ConfigError, match=r"model.stratifiers\[0\].index is 4\b.*the data has 4\b"):
        train("model.stratifiers=[{name: a, index: 4, value: 0}]")


def test_a_small_embedding_table_beyond_the_discrete_features_is_an_error(train: Train) -> None:
    with pytest.raises(ConfigError, match=r"model.small_embeddings.tables: .*\ba has index 4\b.*train_data has 4\b"):
        train("model.small_embeddings={tables: [{name: a, num_embeddings: 9, embedding_dim: 2, index: 4}]}")


def test_an_id_beyond_its_small_embedding_table_is_an_error(train: Train) -> None:
    with pytest.raises(DataError, match=r"column 'discrete': .* position 3\b.* 0 (to|and) 0\b"):
        train("model.small_embeddings={tables: [{name: a, num_embeddings: 1, embedding_dim: 2, index: 3}]}")


def test_a_changed_configuration_is_an_error_unless_the_run_is_overwritten(train: Train, tmp_path: Path) -> None:
    assert train("training.eval_every_n=0") == 0
    (tmp_path / "run/notes.txt").write_text("mine")
    other = ("runtime.seed=5", "train_data.lanes=6", "training.max_grad_norm=2.0")
    with pytest.raises(UserError) as caught:
        train(*other)
    for difference in (
        r"runtime.seed: .*\b0\b.*\b5\b",
        r"train_data.lanes: .*\b12\b.*\b6\b",
        r"training.max_grad_norm: .*\bnull\b.*\b2\.0\b",
    ):
        assert re.search(difference, str(caught.value))
    # Steps, logging, evaluation, rotation and runtime may change.
    allowed = ("training.num_train_steps=13", "training.train_log_every_n=2", "training.eval_every_n=13")
    runtime = ("runtime.enable_amp=true", "runtime.amp_dtype=float16")
    assert train(*allowed, "training.checkpoint_max_to_keep=3", *runtime) == 0
    first = losses(tmp_path / "run")
    assert train(*other, "--overwrite_save_dir", "training.num_train_steps=4") == 0
    assert complete_steps(tmp_path / "run/checkpoints") == [4]
    assert losses(tmp_path / "run")[0] != first[0]
    assert (tmp_path / "run/notes.txt").read_text() == "mine"


def test_other_files_under_the_same_name_are_an_error(train: Train, recap_data: Path, tmp_path: Path) -> None:
    assert train("training.num_train_steps=4", "training.eval_every_n=0") == 0
    (tmp_path / "data").mkdir()
    for name in ("train", "validation", "schema.json"):
        (tmp_path / "data" / name).symlink_to(recap_data / name)
    with pytest.raises(UserError, match=r"train_data\.inputs: "):
        train(data=tmp_path / "data")


def test_files_selected_by_day_and_hour_give_the_same_run(
    train: Train, recap_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split in ("train", "validation"):
        (tmp_path / split / "2023/01/31").mkdir(parents=True)
        (tmp_path / split / "2023/01/31/05").symlink_to(recap_data / split)
    days = f"{{data_root: {tmp_path}/train, end_date: 2023/01/31, days: 2, num_missing_days_tol: 1}}"
    hours = f"{{data_root: {tmp_path}/validation, end_datetime: 2023-01-31 05, hours: 1}}"
    by_date = [
        *("train_data.inputs=null", f"train_data.explicit_date_inputs={days}"),
        *("validation_data.validation.inputs=null", f"validation_data.validation.explicit_datetime_inputs={hours}"),
    ]
    assert train(save_dir=tmp_path / "by_name") == 0
    assert train(*by_date, save_dir=tmp_path / "by_date") == 0
    one, other = ([line["metrics"] for line in lines(tmp_path / run)] for run in ("by_name", "by_date"))
    assert one == other
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    [warning] = [message for message in warnings if "learning rate schedules" not in message]
    assert warning.startswith("train_data.explicit_date_inputs: 1 of 2 days ")
    assert warning.endswith("Missing: 2023/01/30")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_trains_on_cpu(train: Train, tmp_path: Path, dtype: str) -> None:
    # Ten epochs of four batches are enough to memorize the rows.
    length = ("training.num_train_steps=40", "training.num_epochs=null", "training.checkpoint_every_n=40")
    options = (*length, "training.eval_every_n=0", "train_data.global_batch_size=480")
    assert train(*options, "runtime.enable_amp=true", f"runtime.amp_dtype={dtype}", save_dir=tmp_path / "amp") == 0
    assert train(*options, save_dir=tmp_path / "fp32") == 0
    mixed, full = losses(tmp_path / "amp"), losses(tmp_path / "fp32")
    assert mixed != full
    assert mixed[-1] < 0.5 * mixed[0]
    assert mixed == pytest.approx(full, rel=0.02)


def test_float16_resumes_with_its_loss_scale(train: Train, tmp_path: Path) -> None:
    amp = ("runtime.enable_amp=true", "runtime.amp_dtype=float16", "training.eval_every_n=0")
    assert train(*amp, save_dir=tmp_path / "whole") == 0
    assert train(*amp, "training.num_train_steps=8", save_dir=tmp_path / "parts") == 0
    scale = json.loads((tmp_path / "parts/checkpoints/8/state.json").read_text())["scaler"]["scale"]
    assert scale > 0
    assert train(*amp, save_dir=tmp_path / "parts") == 0
    one, other = (read_tensors(tmp_path / run / "checkpoints/12") for run in ("whole", "parts"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_an_evaluation_without_examples_is_a_warning_and_has_no_table(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("training.eval_timeout_in_s=1.0e-9", "training.checkpoint_every_n=6") == 0
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [message for message in warnings if "did not evaluate" in message] == [
        f"did not evaluate validation at step {step}: training.eval_timeout_in_s ended before its first batch"
        for step in (6, 12)
    ]
    report = capsys.readouterr().out
    assert "validation after step 12: 0 examples, stopped by eval_timeout_in_s\n\ncheckpoints " in report
    assert "AUROC" not in report
    assert [line["metrics"]["mean/loss"] for line in lines(tmp_path / "run") if line["mode"] == "evaluate"] == [
        None
    ] * 2


def test_an_evaluation_that_times_out_is_partial_and_training_continues(train: Train, tmp_path: Path) -> None:
    options = ("training.eval_timeout_in_s=1.0e-6", "training.checkpoint_every_n=6")
    assert train(*options) == 0
    evaluations = [line for line in lines(tmp_path / "run") if line["mode"] == "evaluate"]
    assert [line["step"] for line in evaluations] == [6, 12]
    for line in evaluations:
        assert line["timing"]["timed_out"] is True
        assert line["metrics"]["examples"] < 500
    assert complete_steps(tmp_path / "run/checkpoints") == [6, 12]


def test_a_resume_runs_an_evaluation_that_was_missed(train: Train, tmp_path: Path) -> None:
    assert train() == 0
    path = tmp_path / "run/metrics.jsonl"
    complete = lines(tmp_path / "run")
    assert (complete[-1]["step"], complete[-1]["mode"]) == (12, "evaluate")
    path.write_text("".join(json.dumps(line) + "\n" for line in complete[:-1]) + '{"step": 12, "mo')  # as if killed
    assert train() == 0
    assert lines(tmp_path / "run")[-1]["metrics"] == complete[-1]["metrics"]
    assert len(lines(tmp_path / "run")) == len(complete)


def test_warm_start_uses_the_weights_and_begins_at_step_0(train: Train, tmp_path: Path) -> None:
    assert train("training.eval_every_n=0", save_dir=tmp_path / "first") == 0
    checkpoint = tmp_path / "first/checkpoints/12"
    zero_rate = "optimizer={adam: {}, single_task_learning_rate: {constant: 0.0}}"
    # A save_dir stands for its newest checkpoint.
    options = (f"training.initial_checkpoint_dir={tmp_path / 'first'}", zero_rate, "training.num_train_steps=1")
    assert train(*options) == 0
    before, after = (read_tensors(path, "model.") for path in (checkpoint, tmp_path / "run/checkpoints/1"))
    parameters = [name for name in before if "running_" not in name and "num_batches" not in name]
    assert all(torch.equal(before[name], after[name]) for name in parameters)
    with pytest.raises(CheckpointError, match=r"no complete checkpoint"):
        train(f"training.initial_checkpoint_dir={tmp_path}", save_dir=tmp_path / "third")


def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert train("training.eval_every_n=0", save_dir=tmp_path / "whole") == 0
    assert train("training.eval_every_n=0") == 0
    checkpoints = tmp_path / "run/checkpoints"
    flip_a_bit(damaged := checkpoints / "12/tensors-0.bin")
    assert train("training.eval_every_n=0") == 0
    assert re.search(rf"{damaged}\b.*damaged", caplog.text)
    assert re.search(r"\bstep 8\b", caplog.text)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    resumed, whole = (read_tensors(root / "12") for root in (checkpoints, tmp_path / "whole/checkpoints"))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_all_checkpoints_damaged_is_an_error_that_deletes_nothing(train: Train, tmp_path: Path) -> None:
    assert train("training.eval_every_n=0") == 0
    for path in (tmp_path / "run/checkpoints").iterdir():
        flip_a_bit(path / "tensors-0.bin")
    with pytest.raises(CheckpointError, match=r"all .*damaged"):
        train("training.num_train_steps=16")
    assert complete_steps(tmp_path / "run/checkpoints") == [4, 8, 12]


def test_a_run_that_cannot_save_exits_with_status_1(train: Train, tmp_path: Path) -> None:
    with full_disk(65536):
        assert train() == 1
    assert len(losses(tmp_path / "run")) == 4, "training continued"
    assert complete_steps(tmp_path / "run/checkpoints") == []
    assert train() == 0
    assert complete_steps(tmp_path / "run/checkpoints") == [4, 8, 12]


def test_print_config_prints_a_configuration_that_loads_again(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train("--print_config", "runtime.seed=7")
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["runtime"]["seed"] == 7
    assert not (tmp_path / "run").exists()


def test_debug_loop_writes_nothing_and_has_the_same_first_loss(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("training.train_log_every_n=1", "training.num_train_steps=1", save_dir=tmp_path / "loop") == 0
    capsys.readouterr()
    assert train("--debug_loop", "training.num_train_steps=2", save_dir=tmp_path / "debug") == 0
    assert not (tmp_path / "debug").exists()
    printed = capsys.readouterr().err
    assert f"step 1: loss {losses(tmp_path / 'loop')[0]:.6f}" in printed
    assert "step 2: loss" in printed
    assert re.search(r"validation.*'mean/loss': ", printed)


def test_too_few_rows_for_a_batch_is_an_error(train: Train, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\b2,?000 rows.*\b2,?400\b"):
        train("train_data.global_batch_size=2400")
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_run_that_diverges_stops(train: Train, tmp_path: Path) -> None:
    options = ("training.num_train_steps=400", "training.num_epochs=null", "training.checkpoint_every_n=1000")
    rate = "optimizer={adam: {}, single_task_learning_rate: {constant: 1.0e+30}}"
    with pytest.raises(UserError, match=r"diverged.*\b101\b.*\(\d+ to 1\d\d\)") as raised:
        train(*options, rate)
    assert "output logits[" in str(raised.value)
    assert complete_steps(tmp_path / "run/checkpoints") == []


def test_one_example_per_process_is_too_few_for_batch_norm(train: Train) -> None:
    with pytest.raises(
        UserError, match=r"train_data.global_batch_size is 1, .* 1 process.* batch norm needs at least two"
    ):
        train("train_data.global_batch_size=1", "train_data.lanes=1")


def test_overwriting_deletes_nothing_if_the_initial_checkpoint_cannot_be_used(train: Train, tmp_path: Path) -> None:
    assert train("training.eval_every_n=0") == 0
    with pytest.raises(
        CheckpointError,
        match=rf"^/nowhere: no such directory \(.*{Path.cwd()}\).*save_dir",
    ):
        train("training.initial_checkpoint_dir=/nowhere", "--overwrite_save_dir")
    own = f"training.initial_checkpoint_dir={tmp_path / 'run/checkpoints/12'}"
    with pytest.raises(UserError, match="would delete it; copy the checkpoint"):
        train(own, "--overwrite_save_dir")
    assert complete_steps(tmp_path / "run/checkpoints") == [4, 8, 12]


def test_a_world_size_without_a_launcher_is_an_error(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"WORLD_SIZE.*\b2\b.*RANK, MASTER_ADDR, MASTER_PORT.*torchrun"):
        train()


def test_the_follower_evaluates_a_run_trained_without_evaluations(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("training.eval_every_n=0", "runtime.enable_amp=true") == 0
    capsys.readouterr()
    assert train("--mode evaluate", "runtime.enable_amp=true") == 0
    printed = capsys.readouterr().out
    assert re.search(r"validation .*step 12: 500 examples", printed)
    assert re.search(rf"metrics\s+{tmp_path}/run/metrics-evaluator.jsonl", printed)
    # The evaluation of the same weights by the trainer.
    (tmp_path / "other").mkdir()
    assert train("training.eval_every_n=12", "runtime.enable_amp=true", save_dir=tmp_path / "other") == 0
    last = (tmp_path / "run/metrics-evaluator.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["metrics"] == lines(tmp_path / "other")[-1]["metrics"]


def test_a_follower_exits_with_1_without_a_final_checkpoint_and_with_an_error_without_any(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"nothing could be evaluated|no checkpoint"):
        train("--mode evaluate", "training.eval_timeout_in_s=0.1")
    assert train("training.num_train_steps=4", "training.eval_every_n=0") == 0
    assert train("--mode evaluate", "training.eval_timeout_in_s=0.1") == 1
    assert re.search(r"no .*checkpoint.* step 4\b", capsys.readouterr().err)


def test_a_follower_stopped_by_a_signal_exits_with_0(train: Train) -> None:
    class Kill(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("waiting for"):
                os.kill(os.getpid(), signal.SIGTERM)

    logging.getLogger("core.evaluation.poller").addHandler(kill := Kill())
    try:
        assert train("--mode evaluate") == 0
    finally:
        logging.getLogger("core.evaluation.poller").removeHandler(kill)


@pytest.mark.parametrize("option", ["--overwrite_save_dir", "--debug_loop"])
def test_a_follower_rejects_training_options(train: Train, tmp_path: Path, option: str) -> None:
    with pytest.raises(UserError, match=rf"{option}\b.*--mode evaluate"):
        train("--mode evaluate", option)
    assert not (tmp_path / "run").exists()
