"""Batches on their way to the device while a step runs, and how long the steps waited for them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

_PATIENCE_SECONDS = 60.0  # how long closing waits for an iterator that does not answer
_LISTEN_SECONDS = 0.5  # how often a waiting consumer looks whether it is to stop
_POLL_SECONDS = 0.002  # how often a waiting consumer looks whether the device has become idle


class Interrupted(Exception):
    """`stop` was asked for while nothing was ready."""


class DevicePrefetch(Iterator[Any]):
    """Runs ahead of its consumer: a thread takes items from an iterator, applies `put` and keeps up to `depth` results.

    `put` starts the copy to the device; `depth` results and the one in the thread's hands lie there beside the
    consumer's. The iterator is read by the thread alone until `close`: it is ahead of the consumer, so a saved position
    has to count what was consumed. An error in the thread is raised by `__next__`, with the thread's traceback, after
    everything that was ready before it.

    Attributes:
      idle_after: an array (`jax.Array`) that the consumer's latest step computes. Waiting counts only once it is
        there: before, the device was busy anyway (JAX runs ahead of it). None: all waiting counts.
      waited_seconds: how long the consumer has waited for input in all.
    """

    def __init__(
        self,
        items: Iterator[Any],
        put: Callable[[Any], Any] = lambda item: item,
        *,
        depth: int = 2,
        limit: int | None = None,
        stop: object | None = None,
    ):
        """Starts the thread.

        Args:
          depth: results that wait at most, at least 1.
          limit: the thread stops after so many items; None: when the iterator ends.
          stop: becomes true when the consumer is not to wait any longer: `__next__` then raises Interrupted unless
            something is ready.
        """
        if depth < 1:
            raise ValueError(f"depth {depth}: at least 1")
        self.idle_after: Any = None
        self.waited_seconds = 0.0
        self._items, self._put, self._left, self._stop = items, put, limit, stop
        self._ready: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
        self._closing = threading.Event()
        self._finished = False
        self._thread = threading.Thread(target=self._fill, name="device-prefetch", daemon=True)
        self._thread.start()

    def __next__(self) -> Any:
        if self._finished:
            raise StopIteration
        kind, value = self._take()
        if kind == "item":
            return value
        self._finished = True
        if kind == "error":
            raise value
        raise StopIteration

    def close(self) -> None:
        """Ends the thread; results that were not consumed are dropped. The iterator is then free for others.

        A thread that waits for its iterator longer than `_PATIENCE_SECONDS` is left behind (it ends with the process).
        """
        self._finished = True
        self._closing.set()
        end = time.monotonic() + _PATIENCE_SECONDS
        while self._thread.is_alive() and time.monotonic() < end:
            try:  # room for the one in the thread's hands
                self._ready.get(timeout=0.05)
            except queue.Empty:
                continue

    def __enter__(self) -> DevicePrefetch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self) -> tuple[str, Any]:
        """The next result; waiting with an idle device is added to `waited_seconds`."""
        try:
            return self._ready.get_nowait()
        except queue.Empty:
            pass
        while self.idle_after is not None and not self.idle_after.is_ready():
            try:
                return self._ready.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
        begin = time.monotonic()
        try:
            return self._wait()
        finally:
            self.waited_seconds += time.monotonic() - begin

    def _wait(self) -> tuple[str, Any]:
        while True:
            try:
                return self._ready.get(timeout=_LISTEN_SECONDS)
            except queue.Empty:
                if self._stop:
                    raise Interrupted from None

    def _fill(self) -> None:
        try:
            while not self._closing.is_set() and self._left != 0:
                try:
                    item = next(self._items)
                except StopIteration:
                    break
                self._ready.put(("item", self._put(item)))
                if self._left is not None:
                    self._left -= 1
            last: tuple[str, Any] = ("end", None)
        except BaseException as error:
            last = ("error", error)
        if not self._closing.is_set():
            self._ready.put(last)
