"""What a rank could decide alone, decided by all at the same step: the consensus flags and errors.

Without it one rank would leave (a signal, a bad row in its lanes, its clock) and the others would wait in a collective.
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
    """What ranks tell each other beside a step."""

    NONE = 0
    STOP = 1
    """A signal asked this rank to stop."""
    BAD_DATA = 2
    """This rank's next batch can't be had."""
    TIME_UP = 4
    """This rank's clock has passed a limit."""
    NONFINITE = 8
    """This rank knows of too many steps in a row whose numbers were not finite."""


class RankConsensus:
    """The flags of all ranks, joined. begin() sends this rank's, result() waits for everybody's.

    Pairs of them nest: an evaluation has words of its own while the one about the next training step is under way.
    """

    def __init__(self, timeout: datetime.timedelta | None = None) -> None:
        """Makes a group of its own, so that consensus flagss never queue behind gradients. Collective.

        timeout: longest wait for the other ranks; None: torch's default.
        """
        self._group = dist.new_group(backend="gloo", timeout=timeout) if dist.is_initialized() else None
        self._begun: list[tuple[RankFlag, int] | tuple[torch.Tensor, dist.Work]] = []

    def begin(self, own: RankFlag, pace: int = 1) -> None:
        """Starts to reduce, in the background, without waiting.

        pace: >= 1; rank 0's goes to all ranks with the word.
        """
        if self._group is None:
            self._begun.append((own, pace))
            return
        word = int(own)
        values = [word >> bit & 1 for bit in range(len(RankFlag))]
        joined = torch.tensor([*values, pace if dist.get_rank() == 0 else 0], dtype=torch.int32)
        self._begun.append((joined, dist.all_reduce(joined, op=dist.ReduceOp.MAX, group=self._group, async_op=True)))

    def result(self) -> RankFlag:
        """The flags that any rank has set since the last begin() without a result. The same on all ranks."""
        return self.result_and_pace()[0]

    def result_and_pace(self) -> tuple[RankFlag, int]:
        """As result(), with the pace that rank 0 gave to begin()."""
        joined, begun = self._begun.pop()
        if isinstance(joined, RankFlag):
            assert isinstance(begun, int)
            return joined, begun
        assert isinstance(begun, dist.Work)
        begun.wait()
        *flags, pace = joined.tolist()
        return RankFlag(sum(is_set << bit for bit, is_set in enumerate(flags))), pace

    def raise_on_all_ranks(self, error: Exception | None) -> None:
        """Raises on every rank the UserError of the lowest rank that has one; returns where none has. Collective.

        An exception of another kind is raised as it is on its own rank, and as a RankFailedError on the others.
        """
        sent = error
        if error is not None and not isinstance(error, UserError):
            rank = dist.get_rank() if self._group is not None else 0
            sent = RankFailedError(f"rank {rank} failed, its output has the traceback: {type(error).__name__}: {error}")
        first = next((e for e in self.gather(sent) if e is not None), None)
        if isinstance(sent, RankFailedError):
            assert error is not None
            raise error
        if first is not None:
            raise first

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, by rank, on every rank; they must be picklable. Collective."""
        values = [value]
        if self._group is not None:
            values *= dist.get_world_size()
            dist.all_gather_object(values, value, group=self._group)
        return values

    def broadcast_from_rank_zero(self, read: Callable[[], T]) -> T:
        """What `read` gives on rank 0, on every rank; it must be picklable. A UserError there is raised on every rank.
        Collective."""
        value: T | None = None

        def read_on_main() -> None:
            nonlocal value
            value = read()

        self.on_rank_zero(read_on_main)
        box = [value]
        if self._group is not None:
            dist.broadcast_object_list(box, src=0, group=self._group)
        return cast(T, box[0])

    def on_rank_zero(self, action: Callable[[], None]) -> None:
        """Runs `action` on rank 0; its user's mistake is raised on every rank. Collective."""
        self.on_all_ranks(action if self._group is None or dist.get_rank() == 0 else lambda: None)

    def on_all_ranks(self, action: Callable[[], None]) -> None:
        """Runs `action` on this rank; a user's mistake on any rank, or what the operating system refuses there, is
        raised on every rank as a UserError, another exception as by raise_on_all_ranks(). Collective."""
        error: Exception | None = None
        try:
            action()
        except OSError as raised:
            error = UserError(f"{raised.filename or 'the file system'}: {raised.strerror or raised}")
        except Exception as raised:
            error = raised
        self.raise_on_all_ranks(error)
