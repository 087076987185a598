"""The front door in a process that imports everything first and begins when it reads a line: so that a test that starts
it twenty times need not wait for the imports. Scores are not computed: they have tests of their own.

Usage: kill_worker.py [--stand-in] ARGUMENTS OF pfcn_jax.main ...     (--stand-in: the step of fake_training.py)
"""

from __future__ import annotations

import sys

from pfcn_jax import main as front_door
from pfcn_jax.evaluation.evaluate import EvaluationResult
from pfcn_jax.metrics.pq import PQCounts, pq_result
from pfcn_jax.training import restore as starting
from pfcn_jax.training import trainer as train


def without_predicting(self, step, *, everything, stop=None):
    self.checkpoints.score(step, 0.0)
    is_thing = self.source.classes.is_thing
    pq = pq_result(PQCounts.zeros(len(is_thing)), is_thing)
    return EvaluationResult(pq=pq, ap=None, semantic=None, pictures=0, seconds=0.0)


def without_network() -> None:
    from tests.training.fake_training import Fake, small_state

    begin = train.Trainer.__init__

    def begin_with_stand_in(self, config, workdir):
        begin(self, config, workdir)
        self.step = Fake()

    train.build_model = train.build_optimizer = lambda *_: None
    starting.create_state = small_state
    train.Trainer.__init__ = begin_with_stand_in


if __name__ == "__main__":
    train.Trainer.evaluate = without_predicting
    words = sys.argv[1:]
    if words[0] == "--stand-in":
        without_network()
        words = words[1:]
    if not sys.stdin.readline():
        sys.exit("not needed")
    sys.exit(front_door.main(words))
