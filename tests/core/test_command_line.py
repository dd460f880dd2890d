"""Reads command lines of a toy project."""

import sys
from collections.abc import Callable
from pathlib import Path

import pydantic
import pytest

from common.errors import ConfigError, UserError
from core.command_line import Command, read_command
from core.config.training import JobConfig


class ToyConfig(JobConfig):
    """The configuration of the toy project."""

    data: str = pydantic.Field(description="Directory of the data.")


Read = Callable[..., Command[ToyConfig]]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """Return a function that reads a command line, with a configuration unless it is given."""
    (tmp_path / "config.yaml").write_text("training: {num_train_steps: 6}\ndata: here\n")

    def read(*arguments: str, config: str = "--config") -> Command[ToyConfig]:
        monkeypatch.setattr(sys, "argv", ["toy", config, str(tmp_path / "config.yaml"), *arguments])
        return read_command("projects.toy.main", "Trains a toy.", ToyConfig)

    return read


def test_the_configuration_and_the_options_are_read(read: Read) -> None:
    command = read("--set", "training.num_train_steps=7", "--overwrite_save_dir")
    assert (command.config.data, command.config.training.num_train_steps) == ("here", 7)
    assert (command.mode, command.overwrite_save_dir, command.debug_loop) == ("train", True, False)
    assert read("--mode", "evaluate").mode == "evaluate"
    assert read("--debug_loop").debug_loop


def test_the_name_of_the_option_in_the_original_works(read: Read) -> None:
    assert read(config="--config_path") == read()


@pytest.mark.parametrize(("rank", "printed"), [("0", True), ("1", False)])
def test_rank_0_prints_the_resolved_configuration(
    read: Read,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    rank: str,
    printed: bool,
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as ended:
        read("--print_config", "--set", "training.num_train_steps=77", "--set", f"training.save_dir={tmp_path}/run")
    assert ended.value.code == 0
    assert ("num_train_steps: 77" in capsys.readouterr().out) == printed
    assert not (tmp_path / "run").exists()


def test_the_debug_loop_refuses_to_overwrite(read: Read) -> None:
    with pytest.raises(UserError, match=r"--overwrite_save_dir .*--debug_loop"):
        read("--debug_loop", "--overwrite_save_dir")


@pytest.mark.parametrize("option", ["--overwrite_save_dir", "--debug_loop"])
def test_a_follower_refuses_options_of_the_trainer(read: Read, option: str) -> None:
    with pytest.raises(UserError, match=rf"{option} .*--mode evaluate"):
        read("--mode", "evaluate", option)


def test_wrong_arguments_and_keys_are_user_errors(read: Read) -> None:
    with pytest.raises(UserError, match=r"(?s)--mood.*python -m projects\.toy\.main"):
        read("--mood", "evaluate")
    with pytest.raises(ConfigError, match=r"training\.num_steps"):
        read("--set", "training.num_steps=3")


def test_a_missing_key_file_of_wandb_is_a_user_error(read: Read, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path}/no-key"):
        read("--set", f"runtime.wandb={{project: toy, key_path: {tmp_path}/no-key}}")
