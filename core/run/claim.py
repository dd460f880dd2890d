"""Claims a save_dir for one process of each kind: with a lock, and with a file that names the holder.

Locks do not work everywhere, and some keep out only processes of the same host. Each claim therefore writes a random
token, and its holder reads the token again before it saves, deletes or appends.
"""

import fcntl
import logging
import os
import secrets
import socket
from pathlib import Path
from typing import IO

from common.errors import UserError
from common.files.abilities import MissingAbilityError, why_locks_do_not_work
from common.files.durable import replace_file
from common.process.identity import is_running, process_identity
from common.process.paths import user_path

logger = logging.getLogger(__name__)

_RELEASED = "released\n"


class DirectoryLock:
    """The lock of one kind of process on a directory.

    The lock file is only locked. Its holder neither reads nor writes it, because closing a second descriptor of a file
    can drop the locks on it. `<lock>.holder` next to it has the claim.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self._lock_path = directory / name
        self._claim_path = directory / f"{name}.holder"
        self._file: IO[str] | None = None
        self._claim = ""

    def acquire(self, claim: str) -> bool:
        """Lock the directory until release() or until the process ends, even if it is killed.

        If locks do not work in the directory, log a warning, and refuse only a holder that is running on this machine.

        Args:
          claim: the claim to write.

        Returns:
          False if another process holds the lock.

        Raises:
          OSError: the directory is not writable.
        """
        problem = why_locks_do_not_work(self.directory)
        self._file = self._lock_path.open("a")
        if not self._try_to_lock(has_locks=problem is None):
            self._file.close()
            self._file = None
            return False
        if problem is not None:
            logger.warning(
                "%s: file locks do not work here (%s), so a second run in this directory may not be refused. Before it "
                "writes, each process checks whether another one has claimed the directory since, and ends if so. Use "
                "a file system with flock, such as NFS 4 without local_lock, or Lustre with -o flock",
                self.directory,
                problem,
            )
        replace_file(self._claim_path, claim)
        self._claim = claim
        return True

    def _try_to_lock(self, *, has_locks: bool) -> bool:
        assert self._file is not None
        if has_locks:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        earlier = self.read()
        identity = earlier.strip().rpartition(" ")[2]
        return earlier.endswith(_RELEASED) or identity == process_identity(os.getpid()) or not is_running(identity)

    @property
    def holder(self) -> str:
        """Description of the process that claimed the directory last, for messages."""
        return self.read().partition(",")[0]

    def is_taken(self) -> bool:
        """Return whether another process has claimed the directory since acquire()."""
        return self._claim != "" and self.read() not in ("", self._claim)

    def is_in_place(self) -> bool:
        """Return whether the lock file is still at its path since acquire()."""
        assert self._file is not None
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self._lock_path.stat())
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # a later write reports the error
            return True

    def release(self) -> None:
        """Unlock the directory."""
        if self._file is None:
            return
        if self._claim and self.read() == self._claim:
            try:
                replace_file(self._claim_path, self._claim + _RELEASED)
            except OSError as error:
                logger.warning("%s: cannot write: %s", self._claim_path, error.strerror)
        self._claim = ""
        self._file.close()
        self._file = None

    def read(self) -> str:
        """Return the claim in the directory, "" if there is none or it cannot be read."""
        try:
            return self._claim_path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""


class ClaimedDirectory:
    """A save_dir with the lock of one kind of process. Different kinds can hold it at the same time."""

    def __init__(self, save_dir: str, lock_name: str) -> None:
        self.path = user_path(save_dir)
        self.checkpoints = self.path / "checkpoints"
        self._taken_by: DirectoryLock | None = None
        self._locks = [DirectoryLock(self.path, lock_name)]
        self._refused_by = self._locks[0]

    def claim(self) -> str:
        """Lock the directory for this process until release(), or raise a UserError. Called on rank 0.

        Returns:
          The claim, which every process that shares the directory can read.
        """
        raise NotImplementedError

    def lock(self) -> str | None:
        """Lock the directory until release() or until the process ends, even if it is killed.

        Returns:
          The claim, which every process that shares the directory can read. None if another process holds the lock.

        Raises:
          OSError: the directory is not writable.
        """
        pid = os.getpid()
        claim = f"process {pid} on {socket.gethostname()}, {secrets.token_hex(8)} {process_identity(pid)}\n"
        for lock in self._locks:
            if not lock.acquire(claim):
                self._refused_by = lock
                return None
        return claim * len(self._locks)

    @property
    def holder(self) -> str:
        """Description of the process that holds the lock, for messages."""
        return self._refused_by.holder

    def check_shared(self, claim: str) -> None:
        """Raise UserError if this process does not see what lock() wrote on rank 0."""
        if "".join(lock.read() for lock in self._locks) != claim:
            raise UserError(
                f"training.save_dir {self.path}: this process (on {socket.gethostname()}, in {Path.cwd()}) does not "
                "see what rank 0 wrote there; all processes need the same directory on a shared file system"
            )

    def check_held(self) -> None:
        """Raise UserError if the directory was removed, or taken by another process, since lock()."""
        if not self._locks[0].is_in_place():
            raise UserError(f"training.save_dir {self.path}: the directory was removed while it was in use")
        self.check_not_taken()

    def check_not_taken(self) -> None:
        """Raise UserError if another process has claimed the directory since lock()."""
        if not self.may_write() and self._taken_by is not None:
            raise UserError(
                f"{self._taken_by.directory}: {self._taken_by.holder} has claimed this directory since this process "
                "started, because file locks do not work between the two. This process ends and writes nothing more "
                "here. Let only one run use the directory"
            )

    def may_write(self) -> bool:
        """Read the claim again. Return False once another process has claimed the directory since lock()."""
        if self._taken_by is None:
            self._taken_by = next((lock for lock in self._locks if lock.is_taken()), None)
        return self._taken_by is None

    @property
    def is_taken(self) -> bool:
        """True if may_write() has returned False. Reads no file."""
        return self._taken_by is not None

    def release(self) -> None:
        """Unlock the directory."""
        for lock in self._locks:
            lock.release()

    def not_writable(self, error: OSError) -> UserError:
        """Return the UserError for a failed write."""
        where = f"training.save_dir {self.path}"
        if isinstance(error, MissingAbilityError):
            return UserError(f"{where}: {error.strerror}, which a run needs; use a directory on another file system")
        return UserError(
            f"{where}: cannot write: {error.strerror}: {error.filename or self.path}; choose a directory that this "
            "user can write to, with space for checkpoints"
        )
