import pytest

from common.agreement import Control, ControlWord
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
