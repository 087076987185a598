"""Shared memory of batches: it is there as a whole, or its absence is an error."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from grain.multiprocessing import SharedMemoryArray

from pfcn_jax.data.buffers import shared_array, shared_arrays

SHARED = pathlib.Path("/dev/shm")


def wait_until_freed(name: str) -> None:
    """Grain frees in a thread once it has started a worker in this process."""
    deadline = time.monotonic() + 10.0
    while (SHARED / name).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


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
    wait_until_freed(name)


def test_shared_arrays_of_a_block_that_fails_are_freed():
    names = []
    with pytest.raises(KeyError), shared_arrays() as take:
        names += [take((10,), np.uint8).metadata.name, take((20,), np.int32).metadata.name]
        raise KeyError("broken image")
    for name in names:
        wait_until_freed(name)
    with shared_arrays() as take:
        kept = take((10,), np.uint8)
    assert not SHARED.is_dir() or (SHARED / kept.metadata.name).exists()
    kept.unlink_on_del()


SMALL = """
import os
from pfcn_jax.data.buffers import shared_arrays
from pfcn_jax.errors import UserError
try:
    with shared_arrays() as take:
        take((1 << 19,), "uint8")
        take((1 << 21,), "uint8")
except UserError as error:
    print(error)
print(len(os.listdir("/dev/shm")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what another system does is not known")
def test_too_little_shared_memory_is_an_error_and_not_the_end_of_the_process():
    """As in a container, whose shared memory has 64 MB unless it is told otherwise."""
    if tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) < (5, 14) or shutil.which("unshare") is None:
        pytest.skip("needs Linux 5.14 and unshare")
    shell = 'mount -t tmpfs -o size=1m none /dev/shm && exec "$0" -c "$1"'
    command = ["unshare", "--mount", "sh", "-c", shell, sys.executable, SMALL]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=pathlib.Path(__file__).parents[2])
    if "permitted" in ran.stderr or "denied" in ran.stderr:
        pytest.skip(f"only root may mount a small disk ({ran.stderr.strip()})")
    assert ran.returncode == 0, ran.stderr
    assert "no 2 MB of shared memory for a batch" in ran.stdout and "--config.data.workers=0" in ran.stdout
    assert ran.stdout.splitlines()[-1] == "0" and "leaked" not in ran.stderr
