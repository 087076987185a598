"""The plan of batches: one canvas a batch, every image its share, any batch from its number alone."""

from __future__ import annotations

import collections
import itertools
import pickle

import numpy as np
import pytest

from pfcn_jax.data.example import DataError
from pfcn_jax.data.plan import FILLER, BatchPlan, choose_canvases

CANVASES = ((64, 96), (96, 64), (64, 64))


def as_they_are(size):
    return size


def make_plan(counts=(7, 5, 2), *, batch_size=4, shuffle=True, seed=0):
    """`counts` images that need the landscape, portrait and square canvas, interleaved."""
    sizes = [size for size, count in zip(((60, 90), (90, 60), (60, 60)), counts) for _ in range(count)]
    order = np.random.default_rng(1).permutation(len(sizes))
    return BatchPlan(
        np.array(sizes, np.int32)[order], as_they_are, canvases=CANVASES, batch_size=batch_size, shuffle=shuffle,
        seed=seed,
    )  # fmt: skip


def test_the_smallest_canvas_that_holds_the_largest_result():
    sizes = np.array([[10, 20], [20, 10], [10, 10], [64, 96], [30, 33]])

    def doubled(size):
        return 2 * size[0], 2 * size[1]

    assert choose_canvases(sizes[:3], as_they_are, CANVASES).tolist() == [2, 2, 2]
    assert choose_canvases(sizes[[0, 4]], doubled, CANVASES).tolist() == [2, 0]
    with pytest.raises(DataError, match=r"64 x 96 .* becomes 128 x 192 and fits on no canvas of 64 x 96, 96 x 64"):
        choose_canvases(sizes, doubled, CANVASES)


@pytest.mark.parametrize("counts", [(7, 5, 2), (40, 11, 1), (1, 0, 0), (0, 0, 3), (8, 4, 0)])
@pytest.mark.parametrize("batch_size", [1, 4, 6])
def test_training_shows_every_image_equally_often(counts, batch_size):
    plan = make_plan(counts, batch_size=batch_size)
    epochs = 12
    number_of_batches = next(t for t in itertools.count() if plan.epoch_of(t) >= epochs)
    seen = collections.Counter()
    for t in range(number_of_batches):
        batch = plan[t]
        assert len(batch.examples) == batch_size and batch.number == t
        assert {plan.canvases[plan.canvas_of[i]] for i in batch.examples} == {batch.canvas}
        seen.update(batch.examples.tolist())
    expected = sum(epochs * count // batch_size for count in counts)
    assert number_of_batches == expected
    # Complete rounds, but for the images that wait for their batch to be full.
    for group in plan.groups:
        shown = [seen[int(i)] for i in group]
        if len(group) and epochs * len(group) >= batch_size:
            assert epochs - 1 - batch_size // len(group) <= min(shown) <= max(shown) <= epochs
            assert max(shown) - min(shown) <= 1


def test_each_round_of_a_canvas_is_a_new_permutation():
    plan = make_plan((8, 0, 0), batch_size=4)
    rounds = [np.concatenate([plan[2 * e + j].examples for j in range(2)]) for e in range(6)]
    # The two batches of an epoch are one permutation, in either order.
    assert all(sorted(r.tolist()) == list(range(8)) for r in rounds)
    assert len({tuple(r.tolist()) for r in rounds}) == 6


def test_canvases_are_mixed_within_an_epoch():
    plan = make_plan((200, 200, 0), batch_size=4)
    canvases = [plan[t].canvas for t in range(100)]
    changes = sum(a != b for a, b in itertools.pairwise(canvases))
    assert canvases.count((64, 96)) == 50 and 30 < changes < 70


def test_a_batch_follows_from_its_number_and_the_seed():
    plan, again, other = make_plan(), pickle.loads(pickle.dumps(make_plan())), make_plan(seed=1)
    backwards = {t: again[t].examples.tolist() for t in reversed(range(40))}
    assert all(plan[t].examples.tolist() == backwards[t] for t in range(40))
    assert any(other[t].examples.tolist() != backwards[t] for t in range(10))
    assert plan[10**9].number == 10**9  # no walk through all epochs before


def test_the_fingerprint_changes_with_whatever_changes_a_batch():
    plans = [make_plan(), make_plan(seed=1), make_plan(batch_size=2), make_plan((7, 4, 3)), make_plan(shuffle=False)]
    assert len({plan.fingerprint() for plan in plans}) == len(plans)
    assert make_plan().fingerprint() == plans[0].fingerprint()


@pytest.mark.parametrize("counts", [(7, 5, 2), (1, 0, 0), (8, 4, 4)])
def test_evaluation_loses_and_repeats_nothing(counts):
    plan = make_plan(counts, shuffle=False)
    batches = [plan[t] for t in range(plan.num_batches)]
    shown = np.concatenate([batch.examples for batch in batches])
    assert sorted(shown[shown != FILLER].tolist()) == list(range(sum(counts)))
    assert len(batches) == sum(-(-count // 4) for count in counts)
    for batch in batches:
        own = batch.examples[batch.examples != FILLER]
        assert len(own) and (np.diff(own) > 0).all()
        assert (batch.examples[len(own) :] == FILLER).all()
        assert {plan.canvases[plan.canvas_of[i]] for i in own} == {batch.canvas}
    with pytest.raises(IndexError):
        plan[plan.num_batches]


def test_unusable_plans_are_refused():
    with pytest.raises(ValueError, match="a training plan is infinite"):
        _ = make_plan().num_batches
    with pytest.raises(IndexError):
        make_plan()[-1]
    with pytest.raises(ValueError, match="batch size 0"):
        make_plan(batch_size=0)
    with pytest.raises(ValueError, match="seed -1"):
        make_plan(seed=-1)
    with pytest.raises(DataError, match="no images"):
        make_plan((0, 0, 0))
