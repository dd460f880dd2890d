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
from typing import TypeVar

import torch.distributed as dist

from common.errors import RendezvousError
from common.process.environment import Address, launcher_hosts_store, master_address

T = TypeVar("T")

_POLL_IN_S = 0.1

# Longest time in which a store answers a request. A service that takes longer is not a store.
ANSWER_LIMIT_IN_S = 20.0

# Longest time for which a name may be unknown: other machines of a cluster may still be registering theirs.
_RESOLVE_LIMIT_IN_S = 30.0

# Longest time of an attempt to connect.
_CONNECT_LIMIT_IN_S = 5.0

# A request of torch's TCPStore: the number and the magic number of VALIDATE, then the number of PING and a nonce. The
# store answers with the nonce.
_PING = struct.Struct("=BIBI")
_VALIDATE, _MAGIC, _PING_NUMBER = 0, 0x3C85F7CE, 13


def connect(rank: int, timeout: datetime.timedelta) -> dist.Store:
    """Connect to the store of this launch at MASTER_ADDR and MASTER_PORT. Rank 0 hosts it unless torchrun does.

    Args:
      rank: rank of this process.
      timeout: longest time to wait for the store to appear, and for keys in it.

    Raises:
      RendezvousError: nothing listens there in time, something else does, or this rank cannot host the store.
    """
    address = master_address()
    hosted: dist.Store | None = None
    if rank == 0 and not launcher_hosts_store():
        hosted = _host(address.port)
    limit = timeout.total_seconds()
    try:
        _wait_for_store(address, limit if hosted is None else min(limit, ANSWER_LIMIT_IN_S))
        store = within(
            ANSWER_LIMIT_IN_S,
            lambda: dist.TCPStore(address.host, address.port, timeout=timeout, wait_for_workers=False),
        )
        key = f"host/{secrets.token_hex(8)}"
        if hosted is not None:
            hosted.set(key, "")
            if not store.check([key]):
                raise RendezvousError(f"another process answers at {address}")
    except (TimeoutError, dist.DistError) as error:
        raise RendezvousError(f"the store at {address} does not answer: {first_line(error)}") from error
    except RendezvousError as error:
        if hosted is None:
            raise
        raise RendezvousError(
            f"rank 0 listens on MASTER_PORT {address.port}, but {error}; MASTER_ADDR must be the name or the address "
            "of the machine of rank 0"
        ) from error
    return store


def within(limit_in_s: float, act: Callable[[], T]) -> T:
    """Return what `act` returns, or raise TimeoutError if it takes too long. It then stays behind in a thread."""
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


def _wait_for_store(address: Address, limit_in_s: float) -> None:
    """Return as soon as a store answers."""
    began = time.monotonic()
    connected_at: float | None = None
    while True:
        try:
            with socket.create_connection(address, timeout=min(_CONNECT_LIMIT_IN_S, limit_in_s)) as connection:
                connected_at = connected_at or time.monotonic()
                if _is_store(connection):
                    return
                problem = f"a service at {address} accepts connections, but it is not a rendezvous of torch"
                deadline = connected_at + ANSWER_LIMIT_IN_S
        except socket.gaierror as error:
            problem = f"the name {address.host} (MASTER_ADDR) does not resolve to an address: {error.strerror}"
            deadline = began + min(limit_in_s, _RESOLVE_LIMIT_IN_S)
        except OSError as error:
            problem = f"no connection to {address} (MASTER_ADDR and MASTER_PORT): {error.strerror or error}"
            deadline = began + limit_in_s
        if time.monotonic() >= deadline:
            break
        time.sleep(_POLL_IN_S)
    if connected_at is not None and not _own_store_answers():
        return  # another version of torch speaks another protocol, so nothing is known about the service
    raise RendezvousError(f"{problem} (gave up after {time.monotonic() - began:.0f} s)")


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
