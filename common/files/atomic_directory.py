"""Creates a directory that appears only when it is complete. Knows nothing about its contents."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common.errors import UserError


@contextlib.contextmanager
def atomic_directory(out: Path) -> Iterator[Path]:
    """Yield a new directory to write to, and rename it to `out` when the `with` block ends without an error.

    Until then, it is a hidden directory next to `out`. It is removed after an error.

    Raises:
      UserError: `out` cannot be written, or it exists and is not an empty directory.
    """
    out = out.resolve()
    try:
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise UserError(f"--out {out} already exists; remove it or choose another directory")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as hidden:
            partial = Path(hidden) / out.name
            partial.mkdir()
            yield partial
            partial.rename(out)
    except OSError as error:
        where = "" if error.filename in (None, str(out)) else f": {error.filename}"
        raise UserError(
            f"--out {out}: cannot write this directory: {error.strerror}{where}; choose another directory"
        ) from error
