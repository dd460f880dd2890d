"""Lets all ranks act together on stop flags, errors and values that only one of them has.

Otherwise, a rank that receives a signal, reads a bad row or reaches a time limit would leave the loop on its own, and
the other ranks would wait for it in a collective.
"""

import datetime
import enum
from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from common.errors import RankFailedError, UserError

T = TypeVar("T")


class RankFlag(enum.IntFlag):
    """Flags that ranks exchange alongside their steps."""

    NONE = 0
    STOP = 1
    """A signal asked this rank to stop."""
    BAD_DATA = 2
    """This rank cannot read its next batch."""
    TIME_UP = 4
    """This rank's clock has passed a limit."""
    NONFINITE = 8
    """This rank has counted too many skipped updates in a row."""


class RankConsensus:
    """Combines the flags, errors and values of all ranks.

    Each World has one. begin() sends this rank's flags, and result() waits for the flags of all ranks. These pairs can
    be nested: an evaluation exchanges its own flags while the exchange for the next training step is in flight.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, timeout: datetime.timedelta | None = None) -> None:
        """Initialize without communication. The first use creates the process group.

        Args:
          rank: rank of this process.
          world_size: number of ranks. A world of one never communicates.
          timeout: longest wait for the other ranks. None uses torch's default.
        """
        self._rank = rank
        self._world_size = world_size
        self._timeout = timeout
        self._created_group: dist.ProcessGroup | None = None
        self._begun: list[tuple[RankFlag, int] | tuple[torch.Tensor, dist.Work]] = []

    @property
    def _group(self) -> dist.ProcessGroup:
        """A separate process group, so that flags never queue behind gradients. The first access is collective."""
        if self._created_group is None:
            self._created_group = dist.new_group(backend="gloo", timeout=self._timeout)
        return self._created_group

    def begin(self, own: RankFlag, pace: int = 1) -> None:
        """Start to reduce the flags of all ranks in the background.

        Args:
          own: flags of this rank.
          pace: a number >= 1. All ranks receive the pace of rank 0.
        """
        if self._world_size == 1:
            self._begun.append((own, pace))
            return
        values = [int(own) >> bit & 1 for bit in range(len(RankFlag))]
        joined = torch.tensor([*values, pace if self._rank == 0 else 0], dtype=torch.int32)
        self._begun.append((joined, dist.all_reduce(joined, op=dist.ReduceOp.MAX, group=self._group, async_op=True)))

    def result(self) -> RankFlag:
        """Return the flags that any rank passed to the latest begin() without a result. The same on all ranks."""
        return self.result_and_pace()[0]

    def result_and_pace(self) -> tuple[RankFlag, int]:
        """Return what result() returns, and the pace that rank 0 passed to begin()."""
        joined, begun = self._begun.pop()
        if isinstance(joined, RankFlag):
            assert isinstance(begun, int)
            return joined, begun
        assert isinstance(begun, dist.Work)
        begun.wait()
        *flags, pace = joined.tolist()
        return RankFlag(sum(is_set << bit for bit, is_set in enumerate(flags))), pace

    def raise_on_all_ranks(self, error: Exception | None) -> None:
        """Raise the UserError of the lowest rank that has one, on every rank. Return if no rank has one. Collective.

        A rank with any other exception raises it unchanged; the other ranks raise a RankFailedError.
        """
        sent = error
        if error is not None and not isinstance(error, UserError):
            sent = RankFailedError(
                f"rank {self._rank} failed; its output has the traceback: {type(error).__name__}: {error}"
            )
        first = next((e for e in self.gather(sent) if e is not None), None)
        if isinstance(sent, RankFailedError):
            assert error is not None
            raise error
        if first is not None:
            raise first

    def gather(self, value: T) -> list[T]:
        """Return the picklable values of all ranks, by rank, on every rank. Collective."""
        values = [value]
        if self._world_size > 1:
            values *= self._world_size
            dist.all_gather_object(values, value, group=self._group)
        return values

    def broadcast_from_rank_zero(self, read: Callable[[], T]) -> T:
        """Return on every rank what `read` returns on rank 0. Collective.

        The value must be picklable. Errors are raised as in on_all_ranks().
        """
        box = [self.on_all_ranks(read if self._rank == 0 else _nothing)]
        if self._world_size > 1:
            dist.broadcast_object_list(box, src=0, group=self._group)
        return cast(T, box[0])

    def on_rank_zero(self, action: Callable[[], object]) -> None:
        """Run `action` on rank 0. Errors are raised as in on_all_ranks(). Collective."""
        self.on_all_ranks(action if self._rank == 0 else _nothing)

    def on_all_ranks(self, action: Callable[[], T]) -> T:
        """Run `action` on every rank, and return what it returns on this rank. Collective.

        Raises:
          UserError: on every rank, if `action` raises a UserError or an OSError on any.
          Exception: this rank's `action` raises any other exception. The other ranks raise a RankFailedError.
        """
        error: Exception | None = None
        value: T | None = None
        try:
            value = action()
        except OSError as raised:
            error = UserError(f"{raised.filename or 'the file system'}: {raised.strerror or raised}")
        except Exception as raised:
            error = raised
        self.raise_on_all_ranks(error)
        return cast(T, value)


def _nothing() -> None:
    """Stand in for an action on a rank that has none."""
