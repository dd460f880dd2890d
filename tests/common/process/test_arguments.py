import argparse

import pytest

from common.process.arguments import at_least_1, seed_number


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
