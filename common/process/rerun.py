"""Says what running the same command again does, for messages. Knows the options that act once.

This module imports only the standard library, because programs use it before imports that take seconds.
"""

import sys

SAME_COMMAND = "run the same command again to continue"
OVERWRITE = "--overwrite_save_dir"
_DEBUG = "--debug_loop"


def how_to_continue(*, overwrites: bool = False) -> str:
    """Return the sentence "run the same command again to continue", if that is true.

    Args:
      overwrites: the run was started with overwrite_save_dir, on the command line or in Python.
    """
    if overwrites or _is_given(OVERWRITE):
        return f"run the same command without {OVERWRITE} to continue (with it, this run would be deleted)"
    return SAME_COMMAND


def how_to_start() -> str:
    """Return the sentence "run the same command again to start", or also how to continue a run that it would delete."""
    return how_to_continue() if _is_given(OVERWRITE) else "run the same command again to start"


def what_the_same_command_does() -> str:
    """Return the end of the sentence "interrupted; the same command ..." for a trainer."""
    if _is_given(_DEBUG):
        return "starts over"
    without = f"without {OVERWRITE} " if _is_given(OVERWRITE) else ""
    return f"{without}continues from the newest checkpoint"


def capitalized(text: str) -> str:
    """Return the text with a capital first letter."""
    return text[0].upper() + text[1:]


def _is_given(option: str) -> bool:
    """Return whether the option is on the command line, perhaps abbreviated."""
    return any(len(word) > len("--") and option.startswith(word) for word in sys.argv[1:])
