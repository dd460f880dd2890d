"""Defines types for argparse's `type=`. paths.py defines that of paths."""

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


def utf8_text(text: str) -> str:
    """Return the text. Raises argparse.ArgumentTypeError if it was not given as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid UTF-8") from None
    return text
