"""Lets rank 0 find the other ranks of its launch in a store that dead processes and strangers may have used too.

When torchrun restarts workers (--max-restarts, or a machine that came back), it gives them the store of the previous
workers, including everything they left in it. And if two launches use one MASTER_PORT, ranks of one reach the store of
the other. Therefore:

- Each rank adds a claim to a list: its number, a random token, and facts that all ranks of its launch share.
- Rank 0 answers each claim under the claim's token: with the random name of this roll call, or with a refusal.
- A rank that receives the name takes its number by an atomic operation. The first one gets it, and others are refused.

Dead processes take no number, and no rank mistakes a value from an earlier roll call for an answer.
"""

import dataclasses
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Collection, Mapping

import torch.distributed as dist

from common.errors import RendezvousError

_POLL_IN_S = 0.02
_NUM_CLAIMS, _CLOSED = "number of claims", "closed"

_PROCESS_TOKEN = secrets.token_hex(8)


@dataclasses.dataclass(frozen=True)
class Claim:
    """A process that wants to join a launch under a rank.

    Attributes:
      rank: number of the rank.
      launch: facts that all ranks of the launch share and other launches do not, for messages.
      process: describes the process, for messages.
      process_token: distinguishes the process from all others.
      token: distinguishes the claim from all others.
    """

    rank: int
    launch: Mapping[str, str]
    process: str = f"process {os.getpid()} on {socket.gethostname()}"
    process_token: str = _PROCESS_TOKEN
    token: str = dataclasses.field(default_factory=lambda: secrets.token_hex(8))

    def to_json(self) -> str:
        """Return the claim as one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    def refusal_by(self, launch: Mapping[str, str], ignored: Collection[str] = ()) -> str | None:
        """Describe the differences between the claim's launch and another, or return None if they are equal."""
        keys = sorted({*launch, *self.launch} - {*ignored})
        found = [
            f"{key} is {self.launch.get(key) or 'not set'} here and {launch.get(key) or 'not set'} there"
            for key in keys
            if self.launch.get(key) != launch.get(key)
        ]
        return "; ".join(found) or None


@dataclasses.dataclass(frozen=True)
class Roll:
    """The result of a roll call on rank 0.

    Attributes:
      store: a store that only the ranks of this roll call use.
      present: the other ranks that answered in time.
    """

    store: dist.Store
    present: set[int]


def call_roll(
    store: dist.Store,
    size: int,
    launch: Mapping[str, str],
    limit_in_s: float,
    on_refusal: Callable[[Claim, str], None] = lambda _claim, _refusal: None,
) -> Roll:
    """Wait for all other ranks. Called on rank 0.

    Args:
      store: the store that all ranks have reached.
      size: number of ranks.
      launch: facts that all ranks of the launch share.
      limit_in_s: longest time to wait.
      on_refusal: called for each process that belongs to another launch, with the differences.
    """
    deadline = time.monotonic() + limit_in_s
    name = secrets.token_hex(8)
    own = dist.PrefixStore(name, store)
    # Not deleted, because a rank that has seen the key would wait for its next value, and rank 0 for that rank.
    store.set(_CLOSED, json.dumps(None))
    unread: set[int] = set()
    num_claims = 0
    answered: set[int] = set()
    present: set[int] = set()
    while len(present) < size - 1 and time.monotonic() < deadline:
        num_read, num_claims = num_claims, store.add(_NUM_CLAIMS, 0)
        unread.update(range(num_read + 1, num_claims + 1))
        for number in [number for number in unread if store.check([f"claim/{number}"])]:
            unread.remove(number)
            claim = Claim(**json.loads(store.get(f"claim/{number}")))
            refusal = claim.refusal_by(launch)
            if refusal is None:
                answered.add(claim.rank)
            else:
                on_refusal(claim, refusal)
            store.set(f"answer/{claim.token}", json.dumps({"name": name, "refusal": refusal}))
        time.sleep(_POLL_IN_S)
        present |= {rank for rank in answered - present if own.check([f"rank/{rank}"])}
    return Roll(own, present)


def close_roll(store: dist.Store, roll: Roll, launch: Mapping[str, str], changing: Collection[str] | None) -> None:
    """Record that all ranks are present, so that strangers who come later are refused at once. Called on rank 0.

    Args:
      store: the store that all ranks have reached.
      roll: the result of the roll call.
      launch: facts that all ranks of the launch share.
      changing: facts that can change if the launcher restarts all ranks and they meet in the same store again. None if
        it never does.
    """
    members = {rank: roll.store.get(f"rank/{rank}").decode() for rank in roll.present}
    restarted = {"can_restart": changing is not None, "changing": sorted(changing or ())}
    store.set(_CLOSED, json.dumps({"launch": dict(launch), "members": members, **restarted}))


def answer_roll(store: dist.Store, claim: Claim, limit_in_s: float) -> dist.Store | None:
    """Join the launch of rank 0. Called on the other ranks.

    Returns:
      A store that only the ranks of this roll call use, or None if rank 0 did not answer in time.

    Raises:
      RendezvousError: rank 0 belongs to another launch, or another process has taken the rank.
    """
    deadline = time.monotonic() + limit_in_s
    store.set(f"claim/{store.add(_NUM_CLAIMS, 1)}", claim.to_json())
    answer_key = f"answer/{claim.token}"
    while not store.check([answer_key]):
        _check_open(store, claim)
        if time.monotonic() >= deadline:
            return None
        time.sleep(_POLL_IN_S)
    answer = json.loads(store.get(answer_key))
    if answer["refusal"] is not None:
        raise _another_launch(answer["refusal"])
    own = dist.PrefixStore(answer["name"], store)
    holder = own.compare_set(f"rank/{claim.rank}", "", claim.to_json()).decode()
    if holder != claim.to_json():
        raise _taken(Claim(**json.loads(holder)))
    return own


def _check_open(store: dist.Store, claim: Claim) -> None:
    """Raise RendezvousError if all ranks of another launch have joined, or this claim's rank is taken for good."""
    if not store.check([_CLOSED]):
        return
    closed = json.loads(store.get(_CLOSED))
    if closed is None:
        return
    members = {int(rank): Claim(**json.loads(line)) for rank, line in closed["members"].items()}
    if any(member.process_token == claim.process_token for member in members.values()):
        return  # the same ranks meet again, and rank 0 is late
    refusal = claim.refusal_by(closed["launch"], closed["changing"])
    if refusal is not None:
        raise _another_launch(refusal)
    if not closed["can_restart"]:
        raise _taken(members[claim.rank])


def _another_launch(refusal: str) -> RendezvousError:
    return RendezvousError(f"another launch uses this address: {refusal}")


def _taken(holder: Claim) -> RendezvousError:
    return RendezvousError(f"rank {holder.rank} is already taken by {holder.process}")
