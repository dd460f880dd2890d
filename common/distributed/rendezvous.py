"""How the processes of a start find each other: all of them, and none that is dead.

torchrun gives workers that it starts again (--max-restarts, a host that came back) the store of those before them, with
all that they have left in it. gloo would take the addresses of the dead for those of the living, and wait for them.
"""

import datetime
import os
import secrets
import time

import torch.distributed as dist

from common.errors import UserError

_POLL_IN_S = 0.01


def meet(rank: int, size: int, timeout: datetime.timedelta) -> dist.Store:
    """A store that this start alone uses, on every rank, once all ranks are there. Collective.

    Rank 0 draws a name for the start. It tells it to every rank under a name that the rank has drawn itself, so that
    nothing which an earlier start has left is taken for an answer.

    Args:
      rank: of this process.
      size: number of processes (>= 2).
      timeout: longest wait for the others.

    Raises:
      UserError: a rank did not come in time; it says which.
    """
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store: dist.Store = next(dist.rendezvous("env://", rank, size, timeout=timeout))[0]
        if rank == 0:
            started = _PrefixedStart(store, secrets.token_hex(8))
            missing = started.gather(size, time.monotonic() + timeout.total_seconds())
        else:
            own = secrets.token_hex(8)
            store.set(f"here/{rank}", own)
            started = _PrefixedStart(store, store.get(f"start/{own}").decode())
            missing = started.join(rank)
    except dist.DistError as error:
        who = f"rank 0 of {size} did not come" if rank > 0 else f"not all of {size} ranks came"
        raise _absent(f"{who} to {place}", timeout, str(error).splitlines()[0].rstrip(".")) from error
    if missing:
        raise _absent(f"rank(s) {missing} of {size} did not come to {place}", timeout)
    return started.store


class _PrefixedStart:
    """What ranks say under the name of a start."""

    def __init__(self, store: dist.Store, name: str) -> None:
        self._shared = store
        self._name = name
        self.store = dist.PrefixStore(name, store)

    def gather(self, size: int, deadline: float) -> str:
        """On rank 0: tells all others the name; those that did not come until the deadline, "" where all did."""
        absent = list(range(1, size))
        while absent and time.monotonic() < deadline:
            for rank in absent:
                if self._shared.check([f"here/{rank}"]):
                    self._shared.set(f"start/{self._shared.get(f'here/{rank}').decode()}", self._name)
            time.sleep(_POLL_IN_S)
            absent = [rank for rank in absent if not self.store.check([f"here/{rank}"])]
        missing = ", ".join(map(str, absent))
        self.store.set("missing", missing)
        return missing

    def join(self, rank: int) -> str:
        """On the others: what gather() gives on rank 0."""
        self.store.set(f"here/{rank}", "")
        return self.store.get("missing").decode()


def _absent(what: str, timeout: datetime.timedelta, told: str = "") -> UserError:
    cause = f": {told}" if told else ""
    return UserError(
        f"{what} within runtime.process_group_timeout_in_s ({timeout.total_seconds():g} s){cause}. What they print may "
        "tell why: are they still opening data, did they fail or hang? On several machines: do all run torchrun, with "
        "the same --nnodes and --rdzv-endpoint, and can they reach each other?"
    )
