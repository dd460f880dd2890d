"""Prepares the process of a test for torch.export, which the command runs in a process of its own."""

from typing import Any

import torch


def forget_precision() -> None:
    """Restore the settings of TF32 of a new process. torch.export raises an error if a run has changed them."""
    cudnn: Any = torch.backends.cudnn
    cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "tf32"
