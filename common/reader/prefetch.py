"""Runs an iterator ahead of its consumer in a background thread."""

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

# Seconds the thread waits for room in the queue before it checks whether it should stop.
_POLL_IN_S = 0.1


class _End:
    """Marks the end of the items, and holds the exception that ended them, if any."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Prefetcher(Generic[T]):
    """Yields the items of `source` in order, and computes them ahead of the consumer.

    If `source` raises an exception, the consumer gets it in place of the next item.
    """

    def __init__(self, source: Iterator[T], depth: int) -> None:
        """Start the thread.

        Args:
          source: the iterator to run; the thread closes it at the end if it is a generator.
          depth: maximum number of items kept ready, at least 1.
        """
        self._source = source
        self._ready: queue.Queue[T | _End] = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._stopped.is_set():
            raise StopIteration
        item = self._ready.get()
        if isinstance(item, _End):
            self._stopped.set()
            if item.error is not None:
                raise item.error
            raise StopIteration
        return item

    def close(self) -> None:
        """Stop the thread, drop the items that are ready, and wait until `source` has finished its current item."""
        self._stopped.set()
        self._thread.join()
        # Wakes a consumer in another thread that is waiting for an item. If the queue is full, none is waiting.
        with contextlib.suppress(queue.Full):
            self._ready.put_nowait(_End(None))

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._source:
                if not self._put(item):
                    return
        except BaseException as raised:
            error = raised
        finally:
            if isinstance(self._source, Generator):
                self._source.close()
        self._put(_End(error))

    def _put(self, item: T | _End) -> bool:
        while not self._stopped.is_set():
            try:
                self._ready.put(item, timeout=_POLL_IN_S)
            except queue.Full:
                continue
            return True
        return False


def next_or_error(items: Iterator[T]) -> T | Exception | None:
    """Return the next item, the exception raised in its place, or None at the end.

    Used by loops that must inform other ranks before they stop.
    """
    try:
        return next(items, None)
    except Exception as error:
        return error
