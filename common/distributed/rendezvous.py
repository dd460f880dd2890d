"""Lets the ranks of one launch find each other, without ranks of an earlier launch or of another one."""

import datetime
import itertools
import logging
from collections.abc import Iterable, Mapping

import torch.distributed as dist

from common.distributed.roll_call import Claim, answer_roll, call_roll, close_roll
from common.distributed.store import ANSWER_LIMIT_IN_S, connect, first_line, within
from common.errors import RendezvousError, UserError
from common.process.environment import launcher_hosts_store, launcher_run_id, master_address

_MAX_RANKS_IN_MESSAGE = 20

logger = logging.getLogger(__name__)


def meet(rank: int, size: int, timeout: datetime.timedelta, identity: Mapping[str, str] | None = None) -> dist.Store:
    """Wait for all ranks of this launch and return a store that only they use. Collective.

    Args:
      rank: rank of this process.
      size: number of processes (>= 2).
      timeout: longest time to wait for the store, and then for the other ranks.
      identity: facts that all ranks of this launch share and other launches do not, for messages. The number of
        processes and torchrun's --rdzv-id are added.

    Raises:
      RendezvousError: this rank cannot reach the others, belongs to another launch, or was started twice.
      UserError: some ranks did not join in time. The message names them. Raised on all ranks that did.
    """
    launch = {**(identity or {}), "WORLD_SIZE": str(size), "--rdzv-id": launcher_run_id()}
    limit_in_s = timeout.total_seconds()
    address = master_address()
    store: dist.Store = connect(rank, timeout)
    own: dist.Store | None
    try:
        if rank == 0:
            # The store itself may stop answering.
            own, missing = within(limit_in_s + ANSWER_LIMIT_IN_S, lambda: _gather(store, size, launch, limit_in_s))
        else:
            claim = Claim(rank, launch)
            own, missing = within(2 * limit_in_s + ANSWER_LIMIT_IN_S, lambda: _join(store, claim, limit_in_s))
    except RendezvousError as error:
        raise RendezvousError(
            f"rank {rank} cannot join at {address} (MASTER_ADDR and MASTER_PORT): {error}. Give each launch on a "
            "machine its own MASTER_PORT (torchrun --standalone finds a free one), and all ranks of a launch the same "
            "command, directory and number of processes"
        ) from error
    except (TimeoutError, dist.DistError) as error:
        raise RendezvousError(
            f"rank {rank} has lost the connection to {address} (MASTER_ADDR and MASTER_PORT): {first_line(error)}. See "
            "the output of rank 0"
        ) from error
    if own is None:
        raise RendezvousError(_missing_ranks(f"rank 0 of {size} did not join at {address}", limit_in_s))
    if missing:
        raise UserError(_missing_ranks(f"rank(s) {missing} of {size} did not join at {address}", limit_in_s))
    return own


def _gather(store: dist.Store, size: int, launch: Mapping[str, str], limit_in_s: float) -> tuple[dist.Store, str]:
    """Wait for the other ranks, and send each the missing ranks, separated by commas. Called on rank 0."""
    roll = call_roll(store, size, launch, limit_in_s, _log_refusal)
    missing = _shorten(rank for rank in range(1, size) if rank not in roll.present)
    if not missing:
        # torchrun keeps its store for restarted ranks, of which there can be fewer.
        close_roll(store, roll, launch, {"WORLD_SIZE"} if launcher_hosts_store() else None)
    roll.store.set("missing", missing)
    return roll.store, missing


def _log_refusal(claim: Claim, refusal: str) -> None:
    logger.warning("refused %s as rank %d, because it is of another launch: %s", claim.process, claim.rank, refusal)


def _join(store: dist.Store, claim: Claim, limit_in_s: float) -> tuple[dist.Store | None, str]:
    """Join rank 0, and return what _gather() returned there. None stands for no answer."""
    own = answer_roll(store, claim, limit_in_s)
    return own, "" if own is None else own.get("missing").decode()


def _shorten(ranks: Iterable[int]) -> str:
    """Return the first ranks, separated by commas, and "..." if there are others."""
    first = list(itertools.islice(ranks, _MAX_RANKS_IN_MESSAGE + 1))
    shown = map(str, first[:_MAX_RANKS_IN_MESSAGE])
    return ", ".join([*shown, *(["..."] if len(first) > _MAX_RANKS_IN_MESSAGE else [])])


def _missing_ranks(what_happened: str, limit_in_s: float) -> str:
    return (
        f"{what_happened} within runtime.process_group_timeout_in_s ({limit_in_s:g} s). Check the output of the "
        "missing ranks: are they still opening data, or did they fail or hang? With several machines, check that all "
        "of them run torchrun with the same --nnodes and --rdzv-endpoint and can reach each other."
    )
