"""Lets the ranks of one launch find each other, without confusing them with ranks of an earlier launch.

When torchrun restarts workers (--max-restarts, or a machine that came back), it gives them the store of the previous
workers, including everything they left in it. gloo would then connect to the addresses of dead processes and wait for
them. Therefore, each launch gets its own store.
"""

import datetime
import os
import secrets
import time

import torch.distributed as dist

from common.errors import UserError

_POLL_IN_S = 0.01


def meet(rank: int, size: int, timeout: datetime.timedelta) -> dist.Store:
    """Wait for all ranks of this launch and return a store that only they use. Collective.

    Rank 0 picks a random name for the launch. It sends the name to each other rank under a random key that the other
    rank has picked, so that no rank can mistake a value from an earlier launch for the answer.

    Args:
      rank: rank of this process.
      size: number of processes (>= 2).
      timeout: longest time to wait for the other ranks.

    Raises:
      UserError: some ranks did not join in time. The message names them.
    """
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store: dist.Store = next(dist.rendezvous("env://", rank, size, timeout=timeout))[0]
        if rank == 0:
            launch = _Launch(store, secrets.token_hex(8))
            missing = launch.gather(size, time.monotonic() + timeout.total_seconds())
        else:
            answer_key = secrets.token_hex(8)
            store.set(f"here/{rank}", answer_key)
            launch = _Launch(store, store.get(f"start/{answer_key}").decode())
            missing = launch.join(rank)
    except dist.DistError as error:
        who = f"rank 0 of {size} did not join" if rank > 0 else f"not all of {size} ranks joined"
        raise _missing_ranks(f"{who} at {address}", timeout, str(error).splitlines()[0].rstrip(".")) from error
    if missing:
        raise _missing_ranks(f"rank(s) {missing} of {size} did not join at {address}", timeout)
    return launch.store


class _Launch:
    """The keys of one launch in the store that all launches share."""

    def __init__(self, shared_store: dist.Store, name: str) -> None:
        self._shared_store = shared_store
        self._name = name
        self.store = dist.PrefixStore(name, shared_store)

    def gather(self, size: int, deadline: float) -> str:
        """Send the launch's name to the other ranks. Called on rank 0.

        Returns:
          The ranks that did not join before the deadline, separated by commas; "" if all joined.
        """
        absent = list(range(1, size))
        while absent and time.monotonic() < deadline:
            for rank in absent:
                if self._shared_store.check([f"here/{rank}"]):
                    answer_key = self._shared_store.get(f"here/{rank}").decode()
                    self._shared_store.set(f"start/{answer_key}", self._name)
            time.sleep(_POLL_IN_S)
            absent = [rank for rank in absent if not self.store.check([f"here/{rank}"])]
        missing = ", ".join(map(str, absent))
        self.store.set("missing", missing)
        return missing

    def join(self, rank: int) -> str:
        """Join the launch on a rank other than 0, and return what gather() returned on rank 0."""
        self.store.set(f"here/{rank}", "")
        return self.store.get("missing").decode()


def _missing_ranks(what_happened: str, timeout: datetime.timedelta, detail: str = "") -> UserError:
    cause = f": {detail}" if detail else ""
    return UserError(
        f"{what_happened} within runtime.process_group_timeout_in_s ({timeout.total_seconds():g} s){cause}. Check the "
        "output of the missing ranks: are they still opening data, or did they fail or hang? With several machines, "
        "check that all of them run torchrun with the same --nnodes and --rdzv-endpoint and can reach each other."
    )
