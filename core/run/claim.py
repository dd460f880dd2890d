"""Claims a save_dir with a lock that only one process of each kind can hold."""

import fcntl
import os
import secrets
import socket
from pathlib import Path
from typing import IO

from common.errors import UserError
from common.process.paths import user_path


class ClaimedDirectory:
    """A save_dir with the lock of one kind of process. Different kinds can hold it at the same time."""

    def __init__(self, save_dir: str, lock_name: str) -> None:
        self.path = user_path(save_dir)
        self.checkpoints = self.path / "checkpoints"
        self._lock_path = self.path / lock_name
        self._lock: IO[str] | None = None

    def claim(self) -> str:
        """Lock the directory for this process until release(), or raise a UserError. Called on rank 0.

        Returns:
          The content of the lock, which every process that shares the directory can read.
        """
        raise NotImplementedError

    def lock(self) -> str | None:
        """Lock the directory until release() or until the process ends, even if it is killed.

        Returns:
          The content of the lock, which every process that shares the directory can read. None if another process
          holds it.

        Raises:
          OSError: the directory is not writable.
        """
        self._lock = self._lock_path.open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        holder = f"process {os.getpid()} on {socket.gethostname()}, {secrets.token_hex(4)}\n"
        self._lock.truncate(0)
        self._lock.write(holder)
        self._lock.flush()
        return holder

    @property
    def holder(self) -> str:
        """Description of the process that holds the lock, for messages."""
        try:
            return self._lock_path.read_text().strip()
        except OSError:
            return ""

    def check_shared(self, holder: str) -> None:
        """Raise UserError if this process does not see what lock() wrote on rank 0."""
        if self.holder != holder.strip():
            raise UserError(
                f"training.save_dir {self.path}: this process (on {socket.gethostname()}, in {Path.cwd()}) does not "
                "see what rank 0 wrote there; all processes need the same directory on a shared file system"
            )

    def check_held(self) -> None:
        """Raise UserError if the directory was removed, or taken by another process, since lock()."""
        assert self._lock is not None
        try:
            held = os.path.samestat(os.fstat(self._lock.fileno()), self._lock_path.stat())
        except (FileNotFoundError, NotADirectoryError):
            held = False
        except OSError:  # a later write reports the error
            held = True
        if not held:
            raise UserError(f"training.save_dir {self.path}: the directory was removed while it was in use")

    def release(self) -> None:
        """Unlock the directory."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def not_writable(self, error: OSError) -> UserError:
        """Return the UserError for a failed write."""
        return UserError(
            f"training.save_dir {self.path}: cannot write: {error.strerror}: {error.filename or self.path}; choose a "
            "directory that this user can write to, with space for checkpoints"
        )
