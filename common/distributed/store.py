"""Connects to the store in which the ranks of a launch meet.

torch's own client never returns if a service at that address accepts connections but stays silent, and it prints stack
traces for minutes if there is no store. Here, every wait is bounded, and every failure is one message.
"""

import datetime
import functools
import re
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple, TypeVar

import torch.distributed as dist

from common.errors import RendezvousError
from common.process.environment import Address, launcher_hosts_store, master_address

T = TypeVar("T")

_POLL_IN_S = 0.1

# Longest time in which a store answers a request. A service that takes longer is not a store.
ANSWER_LIMIT_IN_S = 20.0

# Longest time for which a name may be unknown: other machines of a cluster may still be registering theirs.
_RESOLVE_LIMIT_IN_S = 30.0

# Longest time in which torch's client connects to a store that answers. It looks up names of hosts, and a query that is
# lost costs it 5 s.
_CLIENT_LIMIT_IN_S = 60.0

# Longest time of an attempt to connect.
_CONNECT_LIMIT_IN_S = 5.0

_CHECK_RANK_0 = (
    "See the output of rank 0: is it still opening data, or did it fail? The wait ends after "
    "runtime.process_group_timeout_in_s"
)

# A request of torch's TCPStore: the number and the magic number of VALIDATE, then the number of PING and a nonce. The
# store answers with the nonce.
_PING = struct.Struct("=BIBI")
_VALIDATE, _MAGIC, _PING_NUMBER = 0, 0x3C85F7CE, 13


class _Problem(NamedTuple):
    """A reason why no store answers, and what the user can do."""

    what: str
    advice: str


def connect(rank: int, timeout: datetime.timedelta) -> dist.Store:
    """Connect to the store of this launch at MASTER_ADDR and MASTER_PORT. Rank 0 hosts it unless torchrun does.

    Args:
      rank: rank of this process.
      timeout: longest time to wait for the store to appear, and for keys in it.

    Raises:
      RendezvousError: nothing listens there in time, something else does, or this rank cannot host the store.
    """
    address = master_address()
    hosted = _host(address.port) if rank == 0 and not launcher_hosts_store() else None
    limit_in_s = timeout.total_seconds()
    if hosted is not None:
        limit_in_s = min(limit_in_s, ANSWER_LIMIT_IN_S)
    problem = _wait_for_store(address, limit_in_s)
    if problem is None:
        try:
            store = within(
                _CLIENT_LIMIT_IN_S,
                lambda: dist.TCPStore(address.host, address.port, wait_for_workers=False),
            )
            store.set_timeout(timeout)
            if hosted is None or _is_same(store, hosted):
                return store
            problem = _Problem("another process answers there", "")
        except (TimeoutError, dist.DistError) as error:
            problem = _Problem(first_line(error), _CHECK_RANK_0)
    at = f"{address} (MASTER_ADDR and MASTER_PORT)"
    if hosted is not None:
        raise RendezvousError(
            f"rank 0 listens on MASTER_PORT {address.port}, but cannot reach itself at {at}: {problem.what}. "
            "MASTER_ADDR must be the name or the address of the machine of rank 0"
        )
    raise RendezvousError(f"rank {rank} cannot reach the rendezvous at {at}: {problem.what}. {problem.advice}")


def within(limit_in_s: float, act: Callable[[], T]) -> T:
    """Return what `act` returns, or raise TimeoutError if it takes too long. It then keeps running in a thread."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(act())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="rendezvous", daemon=True).start()
    try:
        return future.result(limit_in_s)
    except TimeoutError:
        if future.done():
            raise
        raise TimeoutError(f"no answer within {limit_in_s:g} s") from None


def first_line(error: Exception) -> str:
    """Return the first line of torch's message, without the stack of C++ functions and a final period."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


@functools.cache  # keeps the store until this process ends
def _host(port: int) -> dist.Store:
    try:
        return dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    except dist.DistError as error:
        reason = re.sub(r".*message: ", "", first_line(error))
        raise RendezvousError(
            f"rank 0 cannot listen on MASTER_PORT {port}: {reason}. Another launch or service on this machine may be "
            "using the port; give each launch its own (torchrun --standalone finds a free one)"
        ) from error


def _is_same(store: dist.Store, hosted: dist.Store) -> bool:
    """Return True if a connection leads to the store that this process hosts."""
    key = f"host/{secrets.token_hex(8)}"
    hosted.add(key, 1)  # waits for the store, unlike set()
    return store.check([key])


def _wait_for_store(address: Address, limit_in_s: float) -> _Problem | None:
    """Return None as soon as a store answers, or the problem if none does in time."""
    began = time.monotonic()
    connected_at: float | None = None
    while True:
        try:
            with socket.create_connection(address, timeout=min(_CONNECT_LIMIT_IN_S, limit_in_s)) as connection:
                connected_at = connected_at or time.monotonic()
                if _is_store(connection):
                    return None
                problem = _Problem("a service there is not a rendezvous of torch", "Choose another MASTER_PORT")
                deadline = connected_at + ANSWER_LIMIT_IN_S
        except socket.gaierror as error:
            problem = _Problem(f"the name does not resolve ({error.strerror})", "Correct MASTER_ADDR")
            deadline = began + min(limit_in_s, _RESOLVE_LIMIT_IN_S)
        except OSError as error:
            problem = _Problem(error.strerror or str(error), _CHECK_RANK_0)
            deadline = began + limit_in_s
        if time.monotonic() >= deadline:
            break
        time.sleep(_POLL_IN_S)
    if connected_at is not None and not _own_store_answers():
        return None  # another version of torch speaks another protocol, so nothing is known about the service
    return problem._replace(what=f"{problem.what}, for {time.monotonic() - began:.0f} s")


def _is_store(connection: socket.socket) -> bool:
    """Return True if the other end answers a request as a TCPStore does."""
    nonce = secrets.randbits(32)
    connection.settimeout(ANSWER_LIMIT_IN_S)
    try:
        connection.sendall(_PING.pack(_VALIDATE, _MAGIC, _PING_NUMBER, nonce))
        answer = b""
        while len(answer) < 4 and (received := connection.recv(4 - len(answer))):
            answer += received
    except OSError:
        return False
    return answer == struct.pack("=I", nonce)


def _own_store_answers() -> bool:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with socket.create_connection(("127.0.0.1", store.port), timeout=_CONNECT_LIMIT_IN_S) as connection:
        return _is_store(connection)
