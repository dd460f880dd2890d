import sys

import pytest

from common.process.rerun import how_to_continue, how_to_start, what_the_same_command_does

WITHOUT = "run the same command without --overwrite_save_dir to continue (with it, this run would be deleted)"


@pytest.mark.parametrize(
    ("options", "continuing", "starting", "effect"),
    [
        (
            ["--set", "training.save_dir=--overwrite"],
            "run the same command again to continue",
            "run the same command again to start",
            "continues from the newest checkpoint",
        ),
        (
            ["--overwrite_save_dir"],
            WITHOUT,
            WITHOUT,
            "without --overwrite_save_dir continues from the newest checkpoint",
        ),
        (["--over"], WITHOUT, WITHOUT, "without --overwrite_save_dir continues from the newest checkpoint"),
        (
            ["--debug_loop"],
            "run the same command again to continue",
            "run the same command again to start",
            "starts over",
        ),
    ],
)
def test_advice_to_run_the_same_command_again_is_true(
    monkeypatch: pytest.MonkeyPatch, options: list[str], continuing: str, starting: str, effect: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", "--config", "run.yaml", *options])
    assert (how_to_continue(), how_to_start(), what_the_same_command_does()) == (continuing, starting, effect)


def test_a_script_that_always_starts_over_gets_the_same_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["my_script.py"])
    assert how_to_continue(overwrites=True) == WITHOUT
