"""Sends measurements to Weights & Biases.

The wandb package is imported only when a run uses it. `common.wandb` holds the configuration.
"""

import contextlib
import errno
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import pydantic

from common.errors import UserError
from common.tracking.measurement import Measurement
from common.tracking.run_files import FOLLOWER_WANDB, WANDB, WANDB_DIRECTORY
from common.tracking.sent_points import STEP_KEY, SentPoints, stream_of
from common.wandb import WandbConfig, read_key

logger = logging.getLogger(__name__)

JobType = Literal["train", "evaluate"]

# wandb's process writes its file in blocks of this size, in bytes.
_BLOCK_SIZE = 32 * 1024

_RUN_FILES = {"train": WANDB, "evaluate": FOLLOWER_WANDB}

_REFUSED = "Weights & Biases refuses a setting in runtime.wandb or a variable WANDB_*"

_INIT_TIMEOUT_IN_S = 30.0
_FINISH_TIMEOUT_IN_S = 15.0  # less than the wait in common.tracking.trackers


def _settings(config: WandbConfig) -> dict[str, Any]:
    """Return settings that silence wandb and give every wait a time limit."""
    settings: dict[str, Any] = {
        "silent": True,
        "console": "off",
        "save_code": False,
        "reinit": "create_new",  # does not change the global wandb.run
        "finish_timeout": _FINISH_TIMEOUT_IN_S,
        "finish_timeout_raises": True,
    }
    if config.host is not None:
        settings["base_url"] = config.host
    if "WANDB_INIT_TIMEOUT" not in os.environ:
        settings["init_timeout"] = _INIT_TIMEOUT_IN_S
    return settings


def _check_settings(config: WandbConfig) -> None:
    """Raise UserError if W&B refuses a setting or an environment variable. A missing package is reported later."""
    try:
        import wandb
    except ImportError:
        return
    try:
        wandb.Settings().update_from_env_vars(dict(os.environ))
        wandb.Settings(**_settings(config))
    except pydantic.ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise UserError(f"{_REFUSED}: {problems}") from error
    except wandb.errors.UsageError as error:
        raise UserError(f"{_REFUSED}: {error}") from error


def _ensure_home(directory: Path) -> None:
    """Let W&B keep its settings, cache and key file in `directory` if the user has no home directory to write to.

    Containers often run as a user without one. W&B would then fail to start.
    """
    try:
        if os.access(Path.home(), os.W_OK):
            return
    except RuntimeError:  # neither HOME nor an entry in the list of users
        pass
    home = directory / "home"
    home.mkdir(parents=True, exist_ok=True)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        os.environ.setdefault(name, str(home))
    os.environ.setdefault("NETRC", str(home / ".netrc"))


def _children() -> list[int]:
    """Return the ids of the child processes of all threads."""
    children: list[int] = []
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it may have ended
            children += map(int, (thread / "children").read_text().split())
    return children


class WandbTracker:
    """Sends measurements to one W&B run, which every resume in the same directory continues.

    Keys are `train/<metric>`, `evaluate/<partition>/<metric>` and `.../timing/<name>`, plotted over
    `trainer/global_step`. A resume does not send again what the run has already sent, even if it was killed
    (common/tracking/sent_points.py). The API key stays in memory: it is written to no file and no
    environment variable.

    A trainer and its follower have one W&B run each, with separate files (`wandb.json` and `wandb-evaluator.json`).
    Both runs are in one group, named after the id of the trainer's run.

    start(), log() and finish() may block and must be called in one thread. Only they communicate with W&B. start()
    raises whatever prevents tracking: the package is missing, the server does not answer within 30 s (or
    WANDB_INIT_TIMEOUT), or the key is rejected.
    """

    def __init__(
        self,
        config: WandbConfig,
        run_dir: Path,
        resolved_config: Mapping[str, Any],
        *,
        job_type: JobType = "train",
        run_id: str | None = None,
        group: str | None = None,
        backlog: Iterable[Measurement] = (),
    ) -> None:
        """Initialize without communication.

        Args:
          config: the user's settings.
          run_dir: save_dir of the run.
          resolved_config: configuration that W&B displays; JSON values.
          job_type: "train" for the trainer, "evaluate" for the follower.
          run_id: id to use if the file has none yet.
          group: id of the trainer's run; None for this run's own id.
          backlog: earlier measurements; start() sends those that were not sent.

        Raises:
          UserError: the key file is not usable, or W&B refuses a setting or an environment variable.
          OSError: the file with the run's id cannot be written.
          ValueError: the file with the run's id is damaged.
        """
        _check_settings(config)
        run_dir.mkdir(parents=True, exist_ok=True)
        self._sent = SentPoints(run_dir / _RUN_FILES[job_type], run_id)
        self.run_id = self._sent.run_id
        self.run_has_failed = False
        """Set this before finish() to mark the run as failed."""
        self._key = read_key(config.key_path) if config.key_path is not None else None
        self._config = config
        self._run_dir = run_dir
        self._resolved_config = resolved_config
        self._job_type = job_type
        self._group = group or self.run_id
        self._backlog = backlog
        self._is_complete = True

    def start(self) -> Self:
        """Start wandb's process and the run, send the backlog, and return this tracker."""
        directory = self._run_dir / WANDB_DIRECTORY
        _ensure_home(directory)
        self._sent.read_killed_sessions(directory)
        import wandb

        self._wandb = wandb
        self._original_hooks = (sys.exit, sys.excepthook)
        config, settings = self._config, _settings(self._config)
        try:
            # Set up the session first. Otherwise it prints a greeting before it has read that it must be silent.
            wandb.setup(settings=wandb.Settings(**settings))
            why_offline = "the mode is set to offline"
            if self._key is not None:
                settings["api_key"] = self._key
            elif os.environ.get("WANDB_MODE") not in ("offline", "disabled") and not wandb.login(
                prompt=False, verify=False
            ):
                # Otherwise init() would ask for a key and wait, and the session's telemetry would contact the server.
                settings["mode"] = "offline"
                wandb.setup(settings=wandb.Settings(**settings))
                why_offline = "no API key was found"
            self._run = wandb.init(
                id=self.run_id,
                resume="allow",
                dir=self._run_dir,
                entity=config.entity,
                project=config.project,
                group=self._group,
                job_type=self._job_type,
                name=config.name,
                tags=config.tags or None,  # None lets WANDB_TAGS apply
                notes=config.notes,
                config={"metadata": config.metadata, **self._resolved_config},
                settings=wandb.Settings(**settings),
            )
            self._run.define_metric(STEP_KEY)
            self._run.define_metric("*", step_metric=STEP_KEY)
        except BaseException:
            self._end_service()
            raise
        if self._run.disabled:
            logger.info("Weights & Biases is switched off (mode disabled).")
        elif self._run.offline:
            logger.info("Weights & Biases: offline (%s), run %s in %s", why_offline, self.run_id, directory)
        else:
            logger.info("Weights & Biases: online, run %s at %s", self.run_id, self._run.url)
        for measurement in self._backlog:
            self.log(measurement)
        return self

    def log(self, measurement: Measurement) -> None:
        """Send one measurement, unless it was sent before.

        Raises:
          OSError: the disk has no room for another block.
        """
        stream = stream_of(measurement)
        if self._run.disabled or self._sent.contains(stream, measurement.step):
            return
        values: dict[str, float | int | bool] = {STEP_KEY: measurement.step}
        values |= {f"{stream}/{name}": x for name, x in measurement.metrics.items() if x is not None}
        values |= {f"{stream}/timing/{name}": x for name, x in measurement.timing.items()}
        self._is_complete = False
        self._check_room()
        # Never pass step=. W&B drops values whose step is lower than an earlier one, which happens after a resume.
        self._run.log(values)
        self._sent.add(measurement)
        self._is_complete = True
        if not self._run.offline:
            self._sent.save()

    def finish(self) -> None:
        """End the run and wandb's process."""
        try:
            self._run.finish(exit_code=1 if self.run_has_failed else 0)
            # Offline, all blocks are on disk only now. A kill or a full disk loses the last ones.
            if self._is_complete or not self._run.offline:
                self._sent.end_session(Path(self._run.dir).parent)
                self._sent.save()
        finally:
            self._end_service()

    def kill_service(self) -> None:
        """Kill wandb's process. If it hangs, so does every call to it, and so would the exit of this process."""
        for pid in _children():
            with contextlib.suppress(OSError):  # it may have ended
                if Path(f"/proc/{pid}/comm").read_text().strip() == "wandb-core":
                    os.kill(int(pid), signal.SIGKILL)

    def _check_room(self) -> None:
        """Raise OSError if the disk is full, because wandb's process silently drops what it cannot write."""
        directory = self._run_dir / WANDB_DIRECTORY
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            room = bytes(_BLOCK_SIZE)
            if file.write(room) < len(room):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))

    def _end_service(self) -> None:
        """End wandb's process, which would otherwise run until ours exits, and remove its hooks."""
        try:
            self._wandb.teardown()
        except SystemExit as error:  # teardown() reports a failed process this way
            raise RuntimeError(f"wandb's process ended with status {error.code}") from error
        finally:
            sys.exit, sys.excepthook = self._original_hooks
