"""The tracker that sends measurements to Weights & Biases.

The package wandb is imported only where a run is tracked with it. Its configuration is in `common.wandb`.
"""

import contextlib
import errno
import json
import logging
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from common.tracking.measurement import Measurement
from common.wandb import WandbConfig, read_key

logger = logging.getLogger(__name__)

# In what wandb's process writes its file, in bytes.
_BLOCK_SIZE = 32 * 1024

STEP_KEY = "trainer/global_step"

_RUN_FILES = {"train": "wandb.json", "evaluate": "wandb-evaluator.json"}

_INIT_TIMEOUT_IN_S = 30.0
_FINISH_TIMEOUT_IN_S = 15.0  # less than common.tracking.trackers waits


class _RunFile:
    """One of _RUN_FILES in a run directory: the id of the W&B run, and the last step sent of each stream."""

    def __init__(self, path: Path, run_id: str | None) -> None:
        self._path = path
        if path.exists():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                self.run_id = str(content["run_id"])
                self._sent = {str(stream): int(step) for stream, step in content["sent"].items()}
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise ValueError(f"{path} is damaged; remove it to start a new W&B run ({error!r})") from error
        else:
            self.run_id = run_id or secrets.token_hex(4)
            self._sent = {}
            self.save()

    def was_sent(self, stream: str, step: int) -> bool:
        return step <= self._sent.get(stream, -1)

    def mark_sent(self, stream: str, step: int) -> None:
        """For this process; save() tells the next one."""
        self._sent[stream] = step

    def save(self) -> None:
        aside = self._path.with_name(self._path.name + ".tmp")
        aside.write_text(json.dumps({"run_id": self.run_id, "sent": self._sent}) + "\n", encoding="utf-8")
        aside.replace(self._path)


def _settings(config: WandbConfig) -> dict[str, Any]:
    """Settings of wandb under which it prints nothing and waits for nothing without a bound."""
    settings: dict[str, Any] = {
        "silent": True,
        "console": "off",
        "save_code": False,
        "reinit": "create_new",  # leaves the global wandb.run alone
        "finish_timeout": _FINISH_TIMEOUT_IN_S,
        "finish_timeout_raises": True,
    }
    if config.host is not None:
        settings["base_url"] = config.host
    if "WANDB_INIT_TIMEOUT" not in os.environ:
        settings["init_timeout"] = _INIT_TIMEOUT_IN_S
    return settings


class WandbTracker:
    """The sink that sends measurements to one W&B run, which every resume in the same directory continues.

    Keys are `train/<metric>`, `evaluate/<partition>/<metric>` and `.../timing/<name>`, drawn over
    `trainer/global_step`. What a run sent before it was resumed is not sent again; offline, what a session recorded
    counts as sent once the session has ended. The API key is handed over in memory: no file and no environment
    variable gets it.

    Trainer and evaluator have a W&B run each, with a file of its own (`wandb.json`, `wandb-evaluator.json`). One group,
    named by the id of the trainer's, holds both.

    started(), log() and finish() may block, and belong into one thread: W&B is reached only there. started() raises
    whatever hinders it: the package is missing, the server doesn't answer within 30 s (or WANDB_INIT_TIMEOUT), the key
    is refused.
    """

    def __init__(
        self,
        config: WandbConfig,
        run_dir: Path,
        resolved_config: Mapping[str, Any],
        *,
        job_type: Literal["train", "evaluate"] = "train",
        run_id: str | None = None,
        group: str | None = None,
        backlog: Iterable[Measurement] = (),
        has_failed: Callable[[], bool] = lambda: False,
    ) -> None:
        """Args:
        config: the user's.
        run_dir: save_dir of the run.
        resolved_config: what W&B shows as the run's config; JSON values.
        job_type: which of the two processes this is.
        run_id: used if the file has none yet.
        group: id of the trainer's run; None: this run's own.
        backlog: measured earlier; sent now, where it was not.
        has_failed: asked by finish(): whether the program has.

        Raises:
          UserError: the key file can't serve.
          OSError, ValueError: the file of the run's id can't be written, or is damaged.
        """
        run_dir.mkdir(parents=True, exist_ok=True)
        self._run_file = _RunFile(run_dir / _RUN_FILES[job_type], run_id)
        self.run_id = self._run_file.run_id
        self._key = read_key(config.key_path) if config.key_path is not None else None
        self._config = config
        self._run_dir = run_dir
        self._resolved_config = resolved_config
        self._job_type = job_type
        self._group = group or self.run_id
        self._backlog = backlog
        self._has_failed = has_failed
        self._is_complete = True

    def started(self) -> Self:
        """Starts wandb's process and the run there, and sends the backlog; returns itself."""
        import wandb

        self._wandb = wandb
        self._hooks_before = (sys.exit, sys.excepthook)
        config, settings = self._config, _settings(self._config)
        try:
            # First the session: it would greet the user before it knows that it is to be silent.
            wandb.setup(settings=wandb.Settings(**settings))
            why_offline = "as its mode says"
            if self._key is not None:
                settings["api_key"] = self._key
            elif os.environ.get("WANDB_MODE") not in ("offline", "disabled") and not wandb.login(
                prompt=False, verify=False
            ):
                settings["mode"] = "offline"  # else init() would ask for a key and wait,
                wandb.setup(settings=wandb.Settings(**settings))  # and the session's telemetry seek the server
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
                tags=config.tags,
                notes=config.notes,
                config={**self._resolved_config, "metadata": config.metadata},
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
            directory = self._run_dir / "wandb"
            logger.info("Weights & Biases: offline (%s), run %s in %s", why_offline, self.run_id, directory)
        else:
            logger.info("Weights & Biases: online, run %s at %s", self.run_id, self._run.url)
        for measurement in self._backlog:
            self.log(measurement)
        return self

    def log(self, measurement: Measurement) -> None:
        stream = "/".join(part for part in (measurement.mode, measurement.partition) if part is not None)
        if self._run.disabled or self._run_file.was_sent(stream, measurement.step):
            return
        values: dict[str, float | int | bool] = {STEP_KEY: measurement.step}
        values |= {f"{stream}/{name}": x for name, x in measurement.metrics.items() if x is not None}
        values |= {f"{stream}/timing/{name}": x for name, x in measurement.timing.items()}
        self._is_complete = False
        self._check_room()
        # Never step=: W&B drops what comes with a lower step than it has seen, as after a resume.
        self._run.log(values)
        self._run_file.mark_sent(stream, measurement.step)
        self._is_complete = True
        if not self._run.offline:
            self._run_file.save()

    def finish(self) -> None:
        """Ends the run and wandb's process."""
        try:
            self._run.finish(exit_code=1 if self._has_failed() else 0)
            # Offline it is only now on disk: a kill would have taken the last blocks with it, and so does a full disk.
            if self._is_complete or not self._run.offline:
                self._run_file.save()
        finally:
            self._end_service()

    def _check_room(self) -> None:
        """Raises OSError where the disk is full: wandb's process leaves out what it can't write, and tells nobody."""
        with tempfile.TemporaryFile(dir=self._run_dir / "wandb", buffering=0) as file:
            room = bytes(_BLOCK_SIZE)
            if file.write(room) < len(room):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._run_dir / "wandb"))

    def abandon(self) -> None:
        """Kills wandb's process: where that hangs, whoever talks to it does, and so would the end of ours."""
        for children in Path("/proc/self/task").glob("*/children"):
            for pid in children.read_text().split():
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{pid}/comm").read_text().strip() == "wandb-core":
                        os.kill(int(pid), signal.SIGKILL)

    def _end_service(self) -> None:
        """Ends wandb's own process, which else lives until ours ends, and takes its hooks out."""
        try:
            self._wandb.teardown()
        except SystemExit as error:  # how it says that its process failed
            raise RuntimeError(f"the process of wandb ended with status {error.code}") from error
        finally:
            sys.exit, sys.excepthook = self._hooks_before
