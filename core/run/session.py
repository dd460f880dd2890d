"""Guards a run from before its first collective until its end."""

import contextlib
import signal
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from common.distributed.world import World
from common.process.rerun import how_to_continue
from common.process.stop_signals import StopSignals
from common.tracking.measurement import Tracker
from common.tracking.trackers import Trackers
from core.config.training import RuntimeConfig
from core.run.claim import ClaimedDirectory
from core.run.lost_rank import report_lost_rank
from core.run.shutdown_timeout import warn_if_killed_early
from core.run.watchdog import Watchdog


class Session:
    """Owns the stop signals, the watchdog, the report of a lost rank, the lock on save_dir and the trackers.

    Leaving the `with` block calls the functions registered with at_end(), finishes the trackers and releases the lock.
    """

    def __init__(
        self, runtime: RuntimeConfig, world: World, directory: ClaimedDirectory, *, overwrites: bool = False
    ) -> None:
        """Initialize without communication, signal handlers or files. Entering the session starts it.

        Args:
          runtime: configuration of the time limits.
          world: rank of this process, world size and device.
          directory: save_dir of the run.
          overwrites: the same command starts over (see how_to_continue()).
        """
        self.how_to_continue = how_to_continue(overwrites=overwrites)
        """Advice for the user, such as "run the same command again to continue"."""
        self.watchdog = Watchdog(world.rank, runtime.hang_dump_after_in_s)
        self.trackers = Trackers()
        """The trackers of this rank. There are none before open_trackers(), or on ranks other than 0."""
        self._signals = StopSignals(runtime.grace_period_in_s, self.watchdog.situation, self.how_to_continue)
        self._grace_period_in_s = runtime.grace_period_in_s
        self._world = world
        self._directory = directory
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        warn_if_killed_early(self._grace_period_in_s)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.watchdog)
            stack.enter_context(self._signals)
            stack.enter_context(
                report_lost_rank(
                    self._world, self.watchdog.situation, self._directory.checkpoints, self.how_to_continue
                )
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    def is_stop_requested(self) -> bool:
        """True once this rank has received a stop signal, or has noticed that another process has claimed save_dir."""
        return self._signals.received is not None or self._directory.is_taken

    def agree_on_stop_signal(self) -> signal.Signals:
        """Return the stop signal of the lowest rank that has received one. At least one must want to stop. Collective.

        Raises:
          UserError: another process has claimed save_dir.
        """
        self._world.consensus.on_rank_zero(self._directory.check_not_taken)
        received = self._world.consensus.gather(self._signals.received)
        return next(number for number in received if number is not None)

    def lock_save_dir(self) -> None:
        """Lock save_dir on rank 0, and check that all ranks share it. Collective.

        Raises:
          UserError: save_dir cannot be locked, or a rank does not see it.
        """
        consensus = self._world.consensus
        if self._world.is_rank_zero:
            self.at_end(self._directory.release)
        holder = consensus.broadcast_from_rank_zero(self._directory.claim)
        consensus.on_all_ranks(lambda: self._directory.check_shared(holder))

    def open_trackers(self, build: Callable[[], Trackers], additional: Mapping[str, Callable[[], Tracker]]) -> None:
        """Open the trackers on rank 0. Collective.

        Args:
          build: builds the run's own trackers.
          additional: functions that build additional trackers, by name.

        Raises:
          UserError: a tracker is not configured correctly.
        """

        def open_on_rank_zero() -> None:
            self.trackers = build()
            for name, build_tracker in additional.items():
                self.trackers.add(name, build_tracker)

        self.at_end(self._finish_trackers)
        self._world.consensus.on_rank_zero(open_on_rank_zero)

    def at_end(self, close: Callable[[], object]) -> None:
        """Register a function to call when the session ends. The last one registered is called first."""
        self._stack.callback(close)

    def _finish_trackers(self) -> None:
        self.trackers.finish()
