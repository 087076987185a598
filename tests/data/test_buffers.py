"""Memory of batches: used again when nobody holds it, never before; shared, it is there as a whole or an error."""

from __future__ import annotations

import pathlib
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
from grain.multiprocessing import SharedMemoryArray

from pfcn_jax.data.buffers import BufferPool, free_shared, shared_array

SHARED = pathlib.Path("/dev/shm")


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_a_block_is_given_again_only_when_no_view_is_left():
    pool = BufferPool(1000)
    first = pool.take((25, 10), np.float32)
    assert first.shape == (25, 10) and first.dtype == np.float32
    where = address(first)
    view = first[5:15].view(np.int32).reshape(5, 20)[2:4]
    del first
    other = pool.take((500,), np.uint16)
    assert address(other) != where  # `view` still looks into the first block
    view[:] = 7
    other[:] = 0
    assert (view == 7).all()
    del view
    assert address(pool.take((1,), bool)) == where and len(pool) == 2


def test_a_copy_in_another_process_has_its_own_memory():
    pool = BufferPool(64)
    block = pool.take((8, 8), np.uint8)
    copy = pickle.loads(pickle.dumps(pool))
    assert len(copy) == 0 and copy.take((8, 8), np.uint8).shape == block.shape


def test_threads_never_share_a_block():
    pool, wrong = BufferPool(256), []

    def work(number: int) -> None:
        for _ in range(300):
            block = pool.take((256,), np.uint8)
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


def test_a_shared_array_is_zeros_that_another_can_open_and_free():
    array = shared_array((3, 5000), np.uint16)
    name = array.metadata.name
    assert array.shape == (3, 5000) and array.dtype == np.uint16 and not array.any()
    np.asarray(array)[1] = 7
    received = SharedMemoryArray.from_metadata(array.metadata)
    received.unlink_on_del()
    del array
    assert (received == [[0], [7], [0]]).all()
    assert not SHARED.is_dir() or (SHARED / name).exists()
    del received
    assert not (SHARED / name).exists()


def test_a_shared_array_that_nobody_receives_is_freed():
    array = shared_array((10,), np.uint8)
    name = array.metadata.name
    free_shared([array, np.zeros(3)])
    assert not SHARED.is_dir() or (SHARED / name).exists()
    del array
    assert not (SHARED / name).exists()


SMALL = """
import os
from pfcn_jax.data.buffers import shared_array
from pfcn_jax.errors import UserError
shared_array((1 << 19,), "uint8")
try:
    shared_array((1 << 21,), "uint8")
except UserError as error:
    print(error)
print(len(os.listdir("/dev/shm")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what another system does is not known")
def test_too_little_shared_memory_is_an_error_and_not_the_end_of_the_process():
    """As in a container, whose shared memory has 64 MB unless it is told otherwise."""
    shell = 'mount -t tmpfs -o size=1m none /dev/shm && exec "$0" -c "$1"'
    command = ["unshare", "--mount", "sh", "-c", shell, sys.executable, SMALL]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=pathlib.Path(__file__).parents[2])
    if "permitted" in ran.stderr or "denied" in ran.stderr:
        pytest.skip(f"only root may mount a small disk ({ran.stderr.strip()})")
    assert ran.returncode == 0, ran.stderr
    assert "no 2 MB of shared memory for a batch" in ran.stdout and "--config.data.workers=0" in ran.stdout
    assert ran.stdout.splitlines()[-1] == "1"
