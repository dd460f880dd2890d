import logging

import pytest
import torch

from core import autocast as autocast_module
from core.autocast import Autocast, configured_autocast
from core.config.training import RuntimeConfig
from tests.support.toy import CPU, ToyModel, toy_batch


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_forward_pass_computes_in_the_dtype(dtype: torch.dtype) -> None:
    autocast = Autocast(CPU, dtype)
    with autocast():
        assert ToyModel()(toy_batch(2))[1]["logits"].dtype == dtype
    assert ToyModel()(toy_batch(2))[1]["logits"].dtype == torch.float32


def test_without_a_dtype_nothing_is_cast() -> None:
    with Autocast(CPU, None)():
        assert not torch.is_autocast_enabled("cpu")
        assert ToyModel()(toy_batch(2))[1]["logits"].dtype == torch.float32


def test_a_context_can_be_entered_again_and_again() -> None:
    autocast = Autocast(CPU, torch.bfloat16)
    for _ in range(2):
        with autocast():
            assert torch.is_autocast_enabled("cpu")
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        (RuntimeConfig(), None),
        (RuntimeConfig(amp_dtype="float16"), None),
        (RuntimeConfig(enable_amp=True), torch.bfloat16),
        (RuntimeConfig(enable_amp=True, amp_dtype="float16"), torch.float16),
    ],
)
def test_the_configuration_decides(runtime: RuntimeConfig, expected: torch.dtype | None) -> None:
    assert configured_autocast(runtime, CPU).dtype == expected


@pytest.mark.parametrize("amp_dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("emulated", [None, torch.bfloat16, torch.float16])
def test_only_an_emulated_dtype_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, emulated: torch.dtype | None, amp_dtype: str
) -> None:
    monkeypatch.setattr(autocast_module, "emulates", lambda dtype, _: dtype == emulated)
    autocast = configured_autocast(
        RuntimeConfig.model_validate({"enable_amp": True, "amp_dtype": amp_dtype}), torch.device("cpu")
    )
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == (autocast.dtype == emulated)
    assert all("runtime.enable_amp" in message and f"emulates {amp_dtype}" in message for message in warnings)


def test_autocast_that_is_disabled_is_not_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(autocast_module, "emulates", lambda *_: True)
    configured_autocast(RuntimeConfig(amp_dtype="float16"), CPU)
    assert caplog.messages == []
