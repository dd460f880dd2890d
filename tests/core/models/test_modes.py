import logging

import pytest
from torch import nn

from core.models.modes import evaluation_mode, start_training


def model() -> nn.Sequential:
    """Return a model in training mode whose batch norm is frozen."""
    norm = nn.BatchNorm1d(3).eval()
    return nn.Sequential(nn.Sequential(nn.Linear(2, 3), norm), nn.Dropout(0.5))


def modes(module: nn.Module) -> dict[str, bool]:
    return {name: submodule.training for name, submodule in module.named_modules()}


@pytest.mark.parametrize("training", [True, False])
def test_each_submodule_returns_to_its_mode_even_after_an_error(training):
    module = model()
    module.training = training
    before = modes(module)
    with evaluation_mode(module):
        assert set(modes(module).values()) == {False}
    assert modes(module) == before
    with pytest.raises(ValueError, match="broken"), evaluation_mode(module):
        raise ValueError("the model is broken")
    assert modes(module) == before


class Merging(nn.Module):
    """Overrides train(), as modules do that compute something in advance for evaluation."""

    merged = False

    def train(self, mode: bool = True) -> "Merging":
        self.merged = not mode
        return super().train(mode)


def test_an_overridden_train_is_called():
    module = nn.Sequential(Merging())
    merging = module[0]
    with evaluation_mode(module):
        assert merging.merged
    assert not merging.merged
    assert merging.training


def test_training_keeps_submodules_that_are_in_evaluation_mode_and_names_them(caplog):
    caplog.set_level(logging.INFO)
    module = model()
    start_training(module)
    assert modes(module) == {"": True, "0": True, "0.0": True, "0.1": False, "1": True}
    assert caplog.messages == ["submodules in evaluation mode keep it: 0.1"]


def test_a_model_in_evaluation_mode_is_switched_to_training(caplog):
    caplog.set_level(logging.INFO)
    module = model().eval()
    start_training(module)
    assert set(modes(module).values()) == {True}
    assert caplog.messages == []
