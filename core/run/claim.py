"""A save_dir that one process of a kind has to itself: the lock, and how a process is told that it can't have it."""

import fcntl
import os
import secrets
import socket
from pathlib import Path
from typing import IO

from common.errors import UserError
from common.process.paths import user_path


class ClaimedDirectory:
    """training.save_dir, with the lock of one kind of process. Kinds don't hinder each other."""

    def __init__(self, save_dir: str, lock_name: str) -> None:
        self.path = user_path(save_dir)
        self.checkpoints = self.path / "checkpoints"
        self._lock_path = self.path / lock_name
        self._lock: IO[str] | None = None

    def lock(self) -> str | None:
        """Locks until release() or the end of the process, however it ends.

        Returns:
          what is written in the lock for as long, seen by every process that shares the directory; None where another
          process has it.

        Raises:
          OSError: the directory can't be written.
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
        """The process that has the lock, in words."""
        try:
            return self._lock_path.read_text().strip()
        except OSError:
            return ""

    def check_shared(self, holder: str) -> None:
        """Raises UserError where this process doesn't see what lock() has written on rank 0."""
        if self.holder != holder.strip():
            raise UserError(
                f"training.save_dir {self.path}: this process (on {socket.gethostname()}, in {Path.cwd()}) doesn't see "
                "what rank 0 has written there; all processes need the same directory on a shared file system"
            )

    def check_held(self) -> None:
        """Raises UserError where the directory was removed, or taken over by another process, since lock()."""
        assert self._lock is not None
        try:
            held = os.path.samestat(os.fstat(self._lock.fileno()), self._lock_path.stat())
        except (FileNotFoundError, NotADirectoryError):
            held = False
        except OSError:  # what is refused is told by those who write
            held = True
        if not held:
            raise UserError(f"training.save_dir {self.path}: the directory was removed while it was in use")

    def release(self) -> None:
        """Lets other processes have the directory."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def refused(self, error: OSError) -> UserError:
        """What the operating system refuses here, as a user's mistake."""
        return UserError(
            f"training.save_dir {self.path}: can't be written: {error.strerror}: {error.filename or self.path}; choose "
            "a directory that this user may write, with room for checkpoints"
        )
