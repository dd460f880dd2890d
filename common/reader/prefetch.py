"""An iterator that runs ahead of its consumer in a background thread."""

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

# How long the thread waits for room before it looks whether it should stop, in seconds.
_POLL_IN_S = 0.1


class _End:
    """What the thread leaves behind its last item: the exception that ended it, if any."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Prefetcher(Generic[T]):
    """Yields what `source` yields, in its order; an exception of `source` is raised where its item would have been."""

    def __init__(self, source: Iterator[T], depth: int) -> None:
        """Starts the thread, which keeps up to `depth` items ready (>= 1), and closes a generator at the end."""
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
        """Stops the thread and waits until `source` has made the item at hand; what was ready is dropped."""
        self._stopped.set()
        self._thread.join()
        # A consumer in another thread may wait for an item that will not come. It doesn't where the queue is full.
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
    """The next item, the exception that is in its place, or None at the end: for loops that must tell other ranks
    before they leave."""
    try:
        return next(items, None)
    except Exception as error:
        return error
