"""The Heavy Ranker. `load_ranker` opens a trained one for use in another program."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from projects.home.recap.ranker.load import Ranker


def load_ranker(path: str | os.PathLike[str], *, best: bool = False, device: str = "cpu") -> "Ranker":
    """Open a trained ranker as a function from columns to a table of predictions (docs/library.md).

    Args:
      path: save_dir of a run, a checkpoint, or a directory of projects.home.recap.export.
      best: use the best checkpoint of the run, not the newest one.
      device: device of the model, such as "cpu" or "cuda:0". An export runs on the CPU.

    Raises:
      UserError: there is no checkpoint or export, it cannot be used, or the device does not exist.
    """
    from projects.home.recap.ranker.load import load

    return load(path, best=best, device=device)
