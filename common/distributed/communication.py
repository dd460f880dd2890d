"""Recognizes errors of the communication between ranks."""

import re

import torch.distributed as dist


def communication_error(error: BaseException | None) -> str | None:
    """Return the first sentence of the communication error among an error's causes, or None."""
    while error is not None:
        lines = str(error).splitlines() or [""]
        # gloo's errors have no type of their own, but they name its source files.
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/" in lines[0]):
            return re.sub(r"^\[[^\]]*\] ", "", lines[0]).split(". ")[0]
        error = error.__cause__ or error.__context__
    return None
