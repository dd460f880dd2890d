import argparse
import os

import pytest

from common.process.arguments import at_least_1, seed_number, utf8_text


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "", "many", "1e3"])
def test_at_least_1_rejects_anything_but_whole_numbers_from_1(text):
    with pytest.raises(argparse.ArgumentTypeError, match=">= 1"):
        at_least_1(text)


@pytest.mark.parametrize("text", ["-1", str(2**32), "x"])
def test_seed_number_rejects_anything_but_whole_numbers_below_2_to_32(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"from 0 to {2**32 - 1}"):
        seed_number(text)


def test_both_types_return_integers():
    assert (at_least_1("1"), at_least_1("100000000000")) == (1, 10**11)
    assert (seed_number("0"), seed_number(str(2**32 - 1))) == (0, 2**32 - 1)


def test_text_that_is_not_utf8_is_rejected():
    assert utf8_text("ćevap") == "ćevap"
    with pytest.raises(argparse.ArgumentTypeError, match="not valid UTF-8"):
        utf8_text(os.fsdecode(b"caf\xe9"))
