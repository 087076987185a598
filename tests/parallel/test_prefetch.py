"""Prefetching: order, errors, shutdown, and what counts as waiting."""

from __future__ import annotations

import threading
import time
import traceback

import pytest

from pfcn_jax.parallel.prefetch import DevicePrefetch


class Recorder:
    """An endless iterator that remembers how far it was read."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Recorder:
        return self

    def __next__(self) -> int:
        self.read += 1
        return self.read - 1


def settled(items: Recorder, expected: int) -> int:
    """How far `items` was read once it was read so far, and a moment more: the thread may be late, but not ahead."""
    end = time.monotonic() + 30.0
    while items.read < expected and time.monotonic() < end:
        time.sleep(0.001)
    time.sleep(0.05)
    return items.read


def test_items_come_in_order_and_end():
    with DevicePrefetch(iter(range(7)), lambda i: i * i, depth=3) as prefetch:
        assert list(prefetch) == [i * i for i in range(7)]
        assert list(prefetch) == []
    with DevicePrefetch(Recorder(), limit=4) as prefetch:
        assert list(prefetch) == [0, 1, 2, 3]


def test_it_runs_ahead_only_so_far_and_stops_cleanly():
    items = Recorder()
    prefetch = DevicePrefetch(items, depth=2)
    assert settled(items, 3) == 3  # two wait, one is in the thread's hands
    assert next(prefetch) == 0
    assert settled(items, 4) == 4
    prefetch.close()
    assert not any(thread.name == "device-prefetch" for thread in threading.enumerate())
    read = items.read
    assert next(items) == read  # nobody else reads any more
    with pytest.raises(StopIteration):
        next(prefetch)
    prefetch.close()  # again is harmless


def test_an_error_comes_after_what_was_ready_and_names_its_place():
    def broken_image(i: int) -> int:
        if i == 2:
            raise OSError("image 2 is broken")
        return i

    with DevicePrefetch(iter(range(5)), broken_image) as prefetch:
        assert [next(prefetch), next(prefetch)] == [0, 1]
        with pytest.raises(OSError, match="image 2 is broken") as caught:
            next(prefetch)
        assert "broken_image" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
        with pytest.raises(StopIteration):
            next(prefetch)


class Pending:
    """An array of a step that ends when it is told to."""

    def __init__(self) -> None:
        self.done = threading.Event()

    def is_ready(self) -> bool:
        return self.done.is_set()


def test_only_waiting_with_an_idle_device_counts():
    gate, step = threading.Semaphore(0), Pending()

    def slow():
        while True:
            gate.acquire()
            yield 0

    with DevicePrefetch(slow()) as prefetch:
        prefetch.idle_after = step
        threading.Timer(0.2, gate.release).start()
        next(prefetch)
        assert prefetch.waited_seconds == 0.0  # the device was busy all the time
        threading.Timer(0.1, step.done.set).start()
        threading.Timer(1.0, gate.release).start()
        begin = time.monotonic()
        next(prefetch)
        assert 0.0 < prefetch.waited_seconds < time.monotonic() - begin
        before = prefetch.waited_seconds
        prefetch.idle_after = None
        threading.Timer(1.0, gate.release).start()
        next(prefetch)
        assert prefetch.waited_seconds > before
        for _ in range(5):  # more than the thread takes before it sees that it shall end
            gate.release()


def test_a_depth_below_one_is_refused():
    with pytest.raises(ValueError, match="depth 0"):
        DevicePrefetch(iter([]), depth=0)
