"""Recognizes a launch that is repeated, so that a one-time option such as --overwrite_save_dir acts once.

A launch is one command of the user. torchrun, a scheduler or a container runtime can start its processes many times.
"""

import dataclasses
import json
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

import pydantic

from common.errors import UserError
from common.files.durable import replace_file
from common.process.identity import process_identity

# Variables with the id of a job and with the number of its attempt, which is higher after a requeue.
_SCHEDULERS = (("SLURM_JOB_ID", "SLURM_RESTART_COUNT"), ("AWS_BATCH_JOB_ID", "AWS_BATCH_JOB_ATTEMPT"))


@dataclasses.dataclass(frozen=True)
class Launch:
    """Facts that identify a launch, as JSON values."""

    run_id: str | None
    """torchrun's --rdzv-id; None without torchrun, or if it is torchrun's default, which all launches share."""
    torchruns: list[str]
    """Identities of the torchrun processes on all machines; empty without torchrun."""
    job: str | None
    """Job of a scheduler."""
    attempt: int
    """Number of the job's attempt."""
    container: str | None
    """Name of the container or pod."""
    container_start: str
    """Identity of the container's first process."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], torchruns: Iterable[str | None]) -> Self:
        """Return the launch that environment variables describe.

        Args:
          environment: environment variables of rank 0.
          torchruns: identity of each rank's torchrun; None for a rank without.
        """
        run_id = environment.get("TORCHELASTIC_RUN_ID")
        job, attempt = None, 0
        for variable, attempt_variable in _SCHEDULERS:
            if variable in environment:
                job = f"{variable}={environment[variable]}"
                number = environment.get(attempt_variable, "0")
                attempt = int(number) if number.isdecimal() else 0
        is_container = "KUBERNETES_SERVICE_HOST" in environment or any(
            Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv")
        )
        return cls(
            run_id=None if run_id in (None, "", "none") else run_id,
            torchruns=sorted({identity for identity in torchruns if identity is not None}),
            job=job,
            attempt=attempt,
            container=socket.gethostname() if is_container else None,
            container_start=process_identity(1),
        )

    def __str__(self) -> str:
        facts = [
            f"torchrun's id {self.run_id}" if self.run_id is not None else None,
            f"{self.job}, attempt {self.attempt}" if self.job is not None else None,
            f"container {self.container}" if self.container is not None else None,
        ]
        return ", ".join(fact for fact in facts if fact is not None) or "the same torchrun process"

    def is_repeated_by(self, later: "Launch") -> bool:
        """Return whether torchrun has started `later` for the same command, or it has the same --rdzv-id."""
        if self.run_id is not None and later.run_id is not None:
            return self.run_id == later.run_id
        return not set(self.torchruns).isdisjoint(later.torchruns)

    def is_restarted_by(self, later: "Launch") -> bool:
        """Return whether `later` is the same job after a requeue, or the same container after a restart."""
        is_requeued = self.job is not None and self.job == later.job and later.attempt > self.attempt
        is_same_container = self.container is not None and self.container == later.container
        return is_requeued or (is_same_container and self.container_start != later.container_start)


@dataclasses.dataclass(frozen=True)
class Overwrite:
    """Records whether a run starts over in its save_dir."""

    launch: Launch | None = None
    """This launch if its command has the option to start over, else None."""
    is_due: bool = False
    """True if the launch has not started over yet."""


_LAUNCH = pydantic.TypeAdapter(Launch)


class LaunchRecord:
    """The launches that have started over in a save_dir, in a file, oldest first."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def how_to_start_over_again(self, launch: Launch) -> str | None:
        """Return a clause for a message if this launch, or one that it repeats, has started over already; else None.

        Raises:
          UserError: the file is damaged.
        """
        launches = self._read()
        if any(earlier.is_repeated_by(launch) for earlier in launches):
            other_id = " with another --rdzv-id" if launch.run_id is not None else ""
            return f"start a new launch{other_id}, or delete the directory"
        # Only the last launch counts, so that a user can start over again within the same job or container.
        if launches and launches[-1].is_restarted_by(launch):
            return "run the command once more without a restart of the job or container, or delete the directory"
        return None

    def add(self, launch: Launch) -> None:
        """Record a launch durably, unless it is recorded already. Raises OSError."""
        launches = self._read()
        if launch in launches:
            return
        launches.append(launch)
        lines = [json.dumps(dataclasses.asdict(launch)) + "\n" for launch in launches]
        replace_file(self._path, "".join(lines))

    def _read(self) -> list[Launch]:
        if not self._path.exists():
            return []
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines() or [""]
            return [_LAUNCH.validate_json(line, strict=True) for line in lines]
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"{self._path}: this file is damaged, so it is unknown whether --overwrite_save_dir has already "
                f"started over here ({error}). Remove it to start over, or omit the option to continue"
            ) from error
