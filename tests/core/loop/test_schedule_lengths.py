"""Warnings of learning rate schedules that the run's last step cuts."""

from pathlib import Path
from typing import Any

import pydantic
import pytest

from common.optimizers.config import LearningRate
from core.config.training import JobConfig, TrainingConfig
from core.custom_training_loop import train
from core.loop.schedule_lengths import warn_of_cut_schedules
from tests.support.toy import loop_arguments, toy_components

COSINE = {"learning_rate": 0.1, "final_learning_rate": 0.01, "num_ramp_steps": 5, "final_num_steps": 20}
RAMP = {"learning_rate": 0.1, "num_ramp_steps": 20}
PIECES = {"learning_rate_boundaries": [5, 20], "learning_rate_values": [0.3, 0.2, 0.1]}


class ConfigWithRates(JobConfig):
    """A configuration with learning rates below a field, a mapping and a list."""

    rate: LearningRate = LearningRate(constant=0.1)
    towers: dict[str, LearningRate] = pydantic.Field(default_factory=dict)
    tables: list[LearningRate] = pydantic.Field(default_factory=list)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"rate": {"linear_ramp_to_cosine": COSINE}}, "rate.linear_ramp_to_cosine.final_num_steps is 20"),
        (
            {"towers": {"a": {"constant": 0.1}, "b.c": {"linear_ramp_to_constant": RAMP}}},
            "towers[b.c].linear_ramp_to_constant.num_ramp_steps is 20",
        ),
        (
            {"tables": [{"constant": 0.1}, {"piecewise_constant": PIECES}]},
            "tables[1].piecewise_constant.learning_rate_boundaries[1] is 20",
        ),
    ],
)
def test_schedules_that_end_after_the_last_step_are_named(
    keys: dict[str, Any], named: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = ConfigWithRates.model_validate(keys)
    warn_of_cut_schedules(config, 20)
    assert not caplog.messages
    warn_of_cut_schedules(config, 19)
    (message,) = caplog.messages
    lines = message.splitlines()
    assert lines[0] == "the run ends after step 19, before these learning rate schedules do:"
    assert [line.strip() for line in lines[1:-1]] == [named]


def test_a_run_warns_once_before_its_first_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    training = TrainingConfig(save_dir=str(tmp_path / "run"), num_train_steps=10, checkpoint_every_n=4)
    config = ConfigWithRates(training=training, rate=LearningRate.model_validate({"linear_ramp_to_cosine": COSINE}))
    for _ in range(2):  # the second start has nothing to train
        train(*loop_arguments(toy_components(tmp_path, config=config)))
    assert len([message for message in caplog.messages if "learning rate schedules" in message]) == 1
