"""The front door in a process of its own, which notes the training images that it reads, in order.

Usage: distributed_worker.py READS.json ARGUMENTS OF pfcn_jax.main ...
"""

from __future__ import annotations

import json
import pathlib
import sys

from pfcn_jax import main as front_door
from pfcn_jax.data.pipeline import BatchLoader

read: dict[int, list[int]] = {}
original = BatchLoader.__call__


def noting(self, number):
    arrays = original(self, number)
    if self.plan.shuffle:
        read[int(number)] = [int(index) for index in arrays["image_id"]]
    return arrays


if __name__ == "__main__":
    BatchLoader.__call__ = noting
    status = front_door.main(sys.argv[2:])
    pathlib.Path(sys.argv[1]).write_text(json.dumps([index for batch in sorted(read) for index in read[batch]]))
    sys.exit(status)
