"""Prefetch of batches to the device while a step runs, and the time that steps wait for them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

_POLL_SECONDS = 0.002  # interval at which a waiting consumer checks whether the device has become idle


class Interrupted(Exception):
    """`stop` became true while no result was ready."""


class DevicePrefetch(Iterator[Any]):
    """Iterator that runs ahead: a thread reads items, applies `put` and buffers up to `depth` results.

    `put` starts the copy to the device, which then holds `depth` results, one more in the thread, and the consumer's.
    Only the thread reads the iterator until `close`; it is ahead of the consumer, so a saved position has to count
    consumed items. `__next__` raises an error of the thread, with its traceback, after all earlier results.

    Attributes:
      idle_after: an array (`jax.Array`) that the consumer's latest step computes. Waiting counts only once it is
        ready: before, the device was busy anyway (JAX dispatches asynchronously). None: all waiting counts.
      waited_seconds: total time that the consumer has waited for input.
    """

    def __init__(
        self,
        items: Iterator[Any],
        put: Callable[[Any], Any] = lambda item: item,
        *,
        depth: int = 2,
        limit: int | None = None,
        stop: object | None = None,
        listen_seconds: float = 0.5,
        close_seconds: float = 60.0,
    ):
        """Starts the thread.

        Args:
          depth: size of the buffer, at least 1.
          limit: number of items to read; None: to the end of the iterator.
          stop: once it is true, `__next__` raises Interrupted instead of waiting.
          listen_seconds: interval at which a waiting `__next__` checks `stop`.
          close_seconds: how long `close` waits for an iterator that does not return.
        """
        if depth < 1:
            raise ValueError(f"depth {depth}: at least 1")
        self.idle_after: Any = None
        self.waited_seconds = 0.0
        self._items, self._put, self._left, self._stop = items, put, limit, stop
        self._listen_seconds, self._close_seconds = listen_seconds, close_seconds
        self._ready: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
        self._closing = threading.Event()
        self._finished = False
        self._thread = threading.Thread(target=self._fill, name="device-prefetch", daemon=True)
        self._thread.start()

    def __next__(self) -> Any:
        if self._finished:
            raise StopIteration
        kind, value = self._next_result()
        if kind == "item":
            return value
        self._finished = True
        if kind == "error":
            raise value
        raise StopIteration

    def close(self) -> None:
        """Ends the thread and drops its results; afterwards others may read the iterator.

        A thread that waits for its iterator longer than `close_seconds` is abandoned (it ends with the process).
        """
        self._finished = True
        self._closing.set()
        end = time.monotonic() + self._close_seconds
        while self._thread.is_alive() and time.monotonic() < end:
            try:  # make room for the result that the thread holds
                self._ready.get(timeout=0.05)
            except queue.Empty:
                continue

    def __enter__(self) -> DevicePrefetch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next_result(self) -> tuple[str, Any]:
        """The next result. Adds the time of waiting with an idle device to `waited_seconds`."""
        try:
            return self._ready.get_nowait()
        except queue.Empty:
            pass
        while self.idle_after is not None and not self.idle_after.is_ready():
            try:
                return self._ready.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
        start = time.monotonic()
        try:
            return self._wait()
        finally:
            self.waited_seconds += time.monotonic() - start

    def _wait(self) -> tuple[str, Any]:
        while True:
            try:
                return self._ready.get(timeout=self._listen_seconds)
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
