"""A directory that appears when it is complete. Does not know what is in it."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common.errors import UserError


@contextlib.contextmanager
def atomic_directory(out: Path) -> Iterator[Path]:
    """A new directory to write to, which becomes `out` when the `with` block ends without an error.

    Until then it is hidden beside `out`; an error leaves nothing.

    Raises:
      UserError: `out` can't be written, or exists and is not an empty directory.
    """
    out = out.resolve()
    try:
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise UserError(f"--out {out}: exists already; remove it, or give another directory")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as aside:
            partial = Path(aside) / out.name
            partial.mkdir()
            yield partial
            partial.rename(out)
    except OSError as error:
        where = "" if error.filename in (None, str(out)) else f": {error.filename}"
        raise UserError(f"--out {out}: can't be written: {error.strerror}{where}; give another directory") from error
