"""The front door in a process that imports everything first and starts when it reads a line, so that a test that starts
it twenty times need not wait for the imports. Scores are not computed: they have tests of their own.

Usage: kill_worker.py [--stand-in] ARGUMENTS OF pfcn_jax.main ...     (--stand-in: the step of fake_training.py)
"""

from __future__ import annotations

import functools
import sys

from pfcn_jax import main as front_door
from pfcn_jax.commands import train
from pfcn_jax.training.collaborators import Collaborators
from tests.training.fake_training import stand_in, zero_scores

if __name__ == "__main__":
    words = sys.argv[1:]
    collaborators = Collaborators(evaluate=zero_scores)
    if words[0] == "--stand-in":
        words, collaborators = words[1:], stand_in()
    if not sys.stdin.readline():
        sys.exit("not needed")
    args = front_door.parse(words)
    args.run = functools.partial(train.main, collaborators=collaborators)
    sys.exit(front_door.run(args))
