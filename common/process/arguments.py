"""Defines number types for argparse's `type=`."""

import argparse


def at_least_1(text: str) -> int:
    """Parse a whole number >= 1. Raises argparse.ArgumentTypeError for any other text."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= 1")
    return int(text)


def seed_number(text: str) -> int:
    """Parse a whole number from 0 to 2^32 - 1. Raises argparse.ArgumentTypeError for any other text."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {2**32 - 1}")
    return int(text)
