import pytest
import torch
from torch import nn

from common.errors import ConfigError
from common.process.memory import free_memory
from core.models.size import check_size


def test_a_model_is_refused_if_weights_and_gradients_exceed_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    width = int((free_memory().num_bytes / 8) ** 0.5)  # two float32 matrices of this width fill the memory
    check_size(lambda: nn.Linear(width // 2, width), "model")
    with pytest.raises(ConfigError, match=rf"model has [\d,]+ parameters.* needs .*weight \[{2 * width}, {width}\]"):
        check_size(lambda: nn.Sequential(nn.Linear(width, 2 * width)), "model")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="4 process"):
        check_size(lambda: nn.Linear(width // 2, width), "model")


def test_the_check_allocates_nothing_and_draws_nothing() -> None:
    state = torch.get_rng_state()
    check_size(lambda: nn.Linear(1000, 1000), "model")
    assert torch.equal(state, torch.get_rng_state())
