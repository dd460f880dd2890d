"""Reaching a store: services that are none, addresses that are wrong. tests/distributed/ starts real launches."""

import contextlib
import datetime
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
import torch.distributed as dist

from common.distributed import store as store_module
from common.distributed.store import connect, within
from common.errors import RendezvousError
from tests.support.ranks import free_port

SHORT = datetime.timedelta(seconds=0.3)
LONG = datetime.timedelta(seconds=20)


@pytest.fixture(autouse=True)
def launch(monkeypatch: pytest.MonkeyPatch) -> int:
    """An environment as torchrun would set it, with short limits. Returns the port, on which nothing listens."""
    port = free_port()
    variables = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    for name in ("LOCAL_WORLD_SIZE", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("ANSWER_LIMIT_IN_S", "_RESOLVE_LIMIT_IN_S", "_CONNECT_LIMIT_IN_S"):
        monkeypatch.setattr(store_module, name, 0.3)
    return port


@contextlib.contextmanager
def service(port: int, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """Listen on a port, and pass each connection to `serve`, until the `with` block ends."""
    opened: list[socket.socket] = []

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                opened.append(connection)
                with contextlib.suppress(OSError):
                    serve(connection)

    with socket.create_server(("127.0.0.1", port)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in opened:
                connection.close()


def stay_silent(_: socket.socket) -> None:
    """Accept a connection and never answer."""


def greet(connection: socket.socket) -> None:
    connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")


def refuse_request(connection: socket.socket) -> None:
    connection.recv(64)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    connection.close()


def echo(connection: socket.socket) -> None:
    connection.sendall(connection.recv(64))


def hang_up(connection: socket.socket) -> None:
    connection.close()


@pytest.mark.parametrize("serve", [stay_silent, greet, refuse_request, echo, hang_up])
def test_a_service_that_is_not_a_store_is_one_message_in_bounded_time(
    serve: Callable[[socket.socket], None], launch: int, capfd: pytest.CaptureFixture[str]
) -> None:
    facts = rf"rank 1 .*127\.0\.0\.1:{launch} \(MASTER_ADDR and MASTER_PORT\).*not a rendezvous of torch.*MASTER_PORT$"
    with service(launch, serve), pytest.raises(RendezvousError, match=facts):
        connect(1, LONG)
    assert capfd.readouterr().err == ""  # torch's client would print stacks of C++ functions


def test_a_listener_that_never_accepts_is_the_same(launch: int) -> None:
    with socket.create_server(("127.0.0.1", launch)), pytest.raises(RendezvousError, match="not a rendezvous of torch"):
        connect(1, LONG)


def test_another_protocol_of_torch_itself_is_not_held_against_a_service(
    launch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If torch changes its protocol, only torch's own client can tell what a store is."""
    monkeypatch.setattr(store_module, "_PING_NUMBER", 99)
    hosted = dist.TCPStore("127.0.0.1", launch, is_master=True, wait_for_workers=False)
    hosted.set("key", "value")
    assert connect(1, LONG).get("key") == b"value"


def test_nothing_listens(launch: int, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RendezvousError, match=rf"rank 1 .*:{launch} .*refused.*output of rank 0"):
        connect(1, SHORT)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_name_that_does_not_resolve(
    rank: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "nowhere.invalid")
    with pytest.raises(RendezvousError, match=rf"rank {rank} .*nowhere\.invalid.*does not resolve.*MASTER_ADDR"):
        connect(rank, LONG)
    assert capfd.readouterr().err == ""


def test_a_port_that_is_in_use_on_rank_0(launch: int) -> None:
    facts = rf"rank 0 cannot listen on MASTER_PORT {launch}: address already in use\. .*--standalone"
    with service(launch, stay_silent), pytest.raises(RendezvousError, match=facts):
        connect(0, LONG)


def test_an_address_of_another_machine_on_rank_0(launch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second store stands in for the other machine."""
    monkeypatch.setattr(store_module, "_host", lambda _: dist.TCPStore("127.0.0.1", 0, is_master=True))
    other = dist.TCPStore("127.0.0.1", launch, is_master=True, wait_for_workers=False)
    with pytest.raises(RendezvousError, match=r"rank 0 listens .*another process answers.*machine of rank 0"):
        connect(0, LONG)
    del other


def test_ranks_reach_the_store_that_rank_0_hosts_also_if_they_come_first() -> None:
    found: list[bytes] = []

    def late() -> None:
        found.append(connect(1, LONG).get("key"))

    thread = threading.Thread(target=late)
    thread.start()
    connect(0, LONG).set("key", "value")
    thread.join(20)
    assert found == [b"value"]


def test_a_wait_is_bounded_and_keeps_results_and_errors() -> None:
    release = threading.Event()
    with pytest.raises(TimeoutError, match=r"0\.1 s"):
        within(0.1, release.wait)
    release.set()
    a_day = 86_400  # longer than a test may take
    assert within(a_day, lambda: "result") == "result"
    with pytest.raises(ZeroDivisionError):
        within(a_day, lambda: 1 // 0)
