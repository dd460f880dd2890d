import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from common.agreement import Control, ControlWord, StopSignals
from core.config.base_config import UserError


def test_alone_the_word_is_ones_own():
    control = ControlWord()
    for flags in (Control.NONE, Control.STOP, Control.BAD_DATA | Control.TIME_UP):
        control.begin(flags)
        assert control.result() == flags


def test_words_nest():
    control = ControlWord()
    control.begin(Control.BAD_DATA)
    control.begin(Control.TIME_UP)
    assert control.result() == Control.TIME_UP
    assert control.result() == Control.BAD_DATA


def test_alone_errors_are_raised_and_values_returned_at_once():
    control = ControlWord()
    control.raise_together(None)
    control.together(lambda: None)
    assert control.from_main(lambda: None) is None
    assert control.from_main(lambda: [1, 2]) == [1, 2]

    def mistake() -> None:
        raise UserError("mine")

    for act in (control.together, control.from_main):
        with pytest.raises(UserError, match="mine"):
            act(mistake)
    with pytest.raises(UserError, match="mine"):
        control.raise_together(UserError("mine"))


def test_what_is_no_mistake_of_the_user_is_not_held_back():
    with pytest.raises(ZeroDivisionError):
        ControlWord().together(lambda: 1 // 0)  # type: ignore[arg-type]


@pytest.fixture
def handlers() -> Iterator[dict[signal.Signals, Any]]:
    """The handlers before the test; they are put back whatever the test does."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield {**before}
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_only_sets_a_flag(handlers, number):
    with StopSignals() as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received is number
        os.kill(os.getpid(), signal.SIGTERM)  # impatience of a cluster changes nothing
        assert stop.received is signal.SIGTERM
    assert {n: signal.getsignal(n) for n in handlers} == handlers


def test_a_second_interrupt_ends_at_once_and_handlers_are_put_back(handlers):
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.received is signal.SIGINT
    with pytest.raises(RuntimeError, match="within"), StopSignals():
        raise RuntimeError("within")
    assert {n: signal.getsignal(n) for n in handlers} == handlers


@pytest.mark.usefixtures("handlers")
def test_handlers_of_others_are_put_back():
    seen: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    with StopSignals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert seen == []
    os.kill(os.getpid(), signal.SIGTERM)
    assert seen == [signal.SIGTERM]
