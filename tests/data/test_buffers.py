"""Memory of batches: used again when nobody holds it, never before."""

from __future__ import annotations

import pickle
import threading

import numpy as np

from pfcn_jax.data.buffers import BufferPool


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_a_block_is_given_again_only_when_no_view_is_left():
    pool = BufferPool(1000)
    first = pool.take()
    assert first.shape == (1000,) and first.dtype == np.uint8
    where = address(first)
    view = first[100:500].view(np.int32).reshape(10, 10)[2:4]
    del first
    other = pool.take()
    assert address(other) != where  # `view` still looks into the first block
    view[:] = 7
    other[:] = 0
    assert (view == 7).all()
    del view
    assert address(pool.take()) == where and len(pool) == 2


def test_a_copy_in_another_process_has_its_own_memory():
    pool = BufferPool(64)
    block = pool.take()
    copy = pickle.loads(pickle.dumps(pool))
    assert len(copy) == 0 and copy.take().shape == block.shape


def test_threads_never_share_a_block():
    pool, wrong = BufferPool(256), []

    def work(number: int) -> None:
        for _ in range(300):
            block = pool.take()
            block[:] = number
            part = block[10:20]
            del block
            if (part != number).any():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(pool) <= 8
