"""The plans of torch.distributed.checkpoint: what changes while they are made is changed back."""

import gc
import warnings

import pytest

from common.checkpointing.planning import planning


def _fail() -> None:
    with planning():
        assert not gc.isenabled()
        raise ZeroDivisionError


def test_garbage_collection_is_paused_and_continues_after_an_error() -> None:
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        _fail()
    assert gc.isenabled()


def test_garbage_collection_stays_disabled_if_the_user_has_disabled_it() -> None:
    gc.disable()
    try:
        with planning(), planning():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_only_the_warning_about_the_process_group_is_silenced() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with planning():
            warnings.warn("torch.distributed is disabled, unavailable or uninitialized, assuming", stacklevel=1)
            warnings.warn("another", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["another"]
