"""Evaluation: what it counts does not depend on batches or threads, and it keeps little of each image."""

from __future__ import annotations

import dataclasses
import pathlib
import tracemalloc

import jax
import numpy as np
import pytest

from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.config.schema import Config
from pfcn_jax.data.example import DataError
from pfcn_jax.data.inputs import open_evaluation
from pfcn_jax.data.sources import FirstExamples
from pfcn_jax.evaluation.evaluate import EvaluationResult, _compiled_step, evaluate_model
from pfcn_jax.models.build import build_model
from pfcn_jax.parallel.sharding import data_mesh, replicate
from tests.support.tiny import EAGER_FLAGS, TINY, tiny_variables

KEPT_BYTES = 1024  # of each image, at most: 16 detections of 32 bytes, and what Python needs to know the image


class Repeated:
    """A few examples over and over, from memory."""

    def __init__(self, source: FirstExamples, length: int):
        self.examples = [source[i] for i in range(len(source))]
        self.source, self.length, self.classes = source, length, source.classes

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int):
        return self.examples[index % len(self.examples)]

    def info(self, index: int):
        return self.source.info(index % len(self.examples))

    def sizes(self) -> np.ndarray:
        return np.resize(self.source.sizes(), (self.length, 2))


def evaluate(config: Config, source, **options) -> EvaluationResult:
    mesh, model = data_mesh(), build_model(config.model, *source.classes.counts)
    return evaluate_model(replicate(tiny_variables(model), mesh), model, source, config, mesh, **options)


def assert_same_arrays(one: dict, other: dict) -> None:
    """Equal to the bit, detections in the order of their images (which thread was first decides nothing)."""
    assert one.keys() == other.keys()
    for name, array in one.items():
        order = np.argsort(array["image"], kind="stable") if array.dtype.names else ...
        other_order = np.argsort(other[name]["image"], kind="stable") if array.dtype.names else ...
        np.testing.assert_array_equal(array[order], other[name][other_order])


class Counting(Repeated):
    """Counts how often each example is read, in the file of its index: workers are other processes."""

    def __init__(self, source: FirstExamples, folder: pathlib.Path):
        super().__init__(source, len(source))
        self.folder = folder

    def __getitem__(self, index: int):
        with (self.folder / str(index)).open("a") as file:
            file.write(".")
        return super().__getitem__(index)

    def reads(self) -> dict[int, int]:
        return {int(file.name): len(file.read_text()) for file in self.folder.iterdir()}


@pytest.mark.parametrize("workers", [0, 1])
def test_every_example_is_read_once(tmp_path, workers):
    config = from_command_line([*TINY, *EAGER_FLAGS, f"--config.data.workers={workers}"])
    plain = open_evaluation(config.data, 3)
    source, drawn = Counting(plain, tmp_path), []
    result = evaluate(config, source, on_image=lambda example, _: drawn.append(example))
    assert source.reads() == {0: 1, 1: 1, 2: 1}
    for index, example in enumerate(drawn):
        np.testing.assert_array_equal(example.image, plain[index].image)
        np.testing.assert_array_equal(example.segment_map, plain[index].segment_map)
    counts = result.pq.counts
    assert counts.tp.sum() + counts.fn.sum() == sum(len(example.class_id) for example in drawn) > 0


@pytest.mark.slow
def test_batches_change_nothing_and_filler_does_not_count():
    config = from_command_line([*TINY, *EAGER_FLAGS])
    source = open_evaluation(config.data, 5)
    results, seen = [], []
    for batch_size in (2, 4):
        changed = dataclasses.replace(config, train=dataclasses.replace(config.train, eval_batch_size=batch_size))
        images: list[str] = []
        results.append(evaluate(changed, source, on_image=lambda e, _, p=images: p.append(e.file_name)))
        seen.append(images)
    first, second = results
    assert seen[0] == seen[1] == [source.info(i).file_name for i in range(5)]  # each once, in order
    assert first.images == 5 and list(first.metrics) == ["pq", "ap", "miou"]
    jax.tree.map(np.testing.assert_array_equal, first.pq.counts.to_arrays(), second.pq.counts.to_arrays())
    assert first.pq.counts.tp.sum() + first.pq.counts.fn.sum() == sum(len(source[i].class_id) for i in range(5))
    for name, metric in first.metrics.items():
        assert_same_arrays(metric.to_arrays(), second.metrics[name].to_arrays())
    assert first.figures == pytest.approx(second.figures, abs=0.0, nan_ok=True)
    values = first.to_dict()
    assert list(values) == ["All", "Things", "Stuff", "per_class", "AP", "mIoU", "mIoU_over", "pictures", "seconds"]
    assert values["pictures"] == 5 and values["mIoU_over"] == "any thing as one class, and stuff classes"


@pytest.mark.slow
def test_the_next_evaluation_takes_the_compiled_program_of_the_one_before():
    config = from_command_line(TINY)
    source = open_evaluation(config.data, 2)
    _compiled_step.cache_clear()
    for detailed in (False, True, False, True):
        evaluate(config, source, detailed=detailed)
    assert _compiled_step.cache_info()[:2] == (3, 1)  # hits and misses: one function; jit compiles it for each output


def test_an_image_that_cannot_be_read_stops_the_evaluation():
    config = from_command_line([*TINY, *EAGER_FLAGS])
    source = Repeated(open_evaluation(config.data, 3), 3)

    def broken(example, prediction) -> None:
        raise DataError("label 2 is broken")

    with pytest.raises(DataError, match="label 2 is broken"):
        evaluate(config, source, on_image=broken)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images():
    config = from_command_line([*TINY, *EAGER_FLAGS, "--config.train.eval_batch_size=4"])
    source = Repeated(open_evaluation(config.data, 3), 400)
    held, detections, done = {}, 0, 0

    def on_image(example, prediction) -> None:
        nonlocal detections, done
        done += 1
        detections += int(prediction.things.valid.sum())
        if done == 100:
            tracemalloc.start()  # what lives from here on: the program is compiled, the buffers are filled
        if done in (200, 400):
            held[done] = tracemalloc.get_traced_memory()[0]

    evaluate(config, source, on_image=on_image)
    tracemalloc.stop()
    assert detections > 400
    assert (held[400] - held[200]) / 200 < KEPT_BYTES
