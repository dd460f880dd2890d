import itertools
import threading
from collections.abc import Iterator

import pytest

from common.errors import UserError
from common.reader.prefetch import Prefetcher, next_or_error

LONG_IN_S = 30  # only a failing test waits this long


@pytest.fixture(autouse=True)
def _no_thread_remains():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) - before == set()


def start_thread(function) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def failing(after: int, error: BaseException) -> Iterator[int]:
    yield from range(after)
    raise error


@pytest.mark.parametrize("depth", [1, 2, 7, 100])
def test_items_keep_their_order(depth):
    assert list(Prefetcher(iter(range(50)), depth)) == list(range(50))


def test_nothing_follows_the_end():
    items = Prefetcher(iter([1]), 2)
    assert next(items) == 1
    assert [next(items, None), next(items, None)] == [None, None]
    items.close()


def test_empty_source():
    assert list(Prefetcher(iter(()), 2)) == []


def test_none_is_an_item():
    assert list(Prefetcher(iter([None, None]), 1)) == [None, None]


@pytest.mark.parametrize("after", [0, 1, 5])
@pytest.mark.parametrize("depth", [1, 3])
def test_exception_is_raised_where_its_item_would_have_been(after, depth):
    items = Prefetcher(failing(after, UserError("bad row")), depth)
    assert [next(items) for _ in range(after)] == list(range(after))
    with pytest.raises(UserError, match="bad row"):
        next(items)
    assert next(items, None) is None, "it has ended"
    items.close()


def test_source_runs_ahead_by_depth_and_no_further():
    produced: list[int] = []
    enough = threading.Event()

    def source() -> Iterator[int]:
        for number in itertools.count():
            produced.append(number)
            if number == 3:
                enough.set()
            yield number

    items = Prefetcher(source(), 3)
    assert enough.wait(LONG_IN_S), "three items are ready, and the fourth waits for room"
    items.close()
    assert produced == [0, 1, 2, 3]


def test_close_while_full_joins_the_thread():
    full = threading.Event()

    def source() -> Iterator[int]:
        yield 0
        full.set()
        yield from itertools.count()

    items = Prefetcher(source(), 1)
    assert full.wait(LONG_IN_S)
    items.close()
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())
    assert next(items, None) is None, "ready items are dropped"


def test_close_twice_and_after_the_end():
    items = Prefetcher(iter(range(3)), 1)
    items.close()
    items.close()
    ended = Prefetcher(iter(()), 1)
    assert list(ended) == []
    ended.close()
    ended.close()


def test_close_waits_until_the_source_has_finished_its_item():
    entered, resume = threading.Event(), threading.Event()

    def source() -> Iterator[int]:
        entered.set()
        assert resume.wait(LONG_IN_S)
        yield from itertools.count()

    items = Prefetcher(source(), 1)
    assert entered.wait(LONG_IN_S)
    closer = start_thread(items.close)
    assert closer.is_alive()
    resume.set()
    closer.join(LONG_IN_S)
    assert not closer.is_alive()


def test_close_does_not_leave_a_consumer_in_another_thread_hanging():
    entered, resume, waiting = threading.Event(), threading.Event(), threading.Event()

    def source() -> Iterator[int]:
        entered.set()
        assert resume.wait(LONG_IN_S)
        yield 0

    items = Prefetcher(source(), 1)
    assert entered.wait(LONG_IN_S)
    received: list[int] = []

    def consume() -> None:
        waiting.set()
        received.extend(items)

    consumer = start_thread(consume)
    assert waiting.wait(LONG_IN_S)
    closer = start_thread(items.close)
    assert items._stopped.wait(LONG_IN_S), "close() has asked the thread to stop before the source resumes"
    resume.set()
    closer.join(LONG_IN_S)
    consumer.join(LONG_IN_S)
    assert not consumer.is_alive()
    assert received == []


def test_next_or_error():
    items = Prefetcher(failing(1, UserError("bad row")), 1)
    assert next_or_error(items) == 0
    error = next_or_error(items)
    assert isinstance(error, UserError)
    assert str(error) == "bad row"
    assert next_or_error(items) is None
    items.close()


def test_next_or_error_returns_any_exception():
    error = ZeroDivisionError()
    assert next_or_error(failing(0, error)) is error
