"""Batches for an evaluation: the images of the training pipeline's recipe, the original labels beside them."""

from __future__ import annotations

import numpy as np
import pytest

from pfcn_jax.data.augment import ResizeShortSide
from pfcn_jax.data.datasets.coco import CocoFolder
from pfcn_jax.data.pipeline import Pipeline
from pfcn_jax.data.plan import BatchPlan
from pfcn_jax.data.scoring import ScoringBatch, ScoringPipeline
from tests.data.fixtures import write_tiny_coco

CANVASES = ((64, 96), (96, 64))
RECIPE = ResizeShortSide((64,), 96)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return CocoFolder(write_tiny_coco(tmp_path_factory.mktemp("tiny"), splits={"val": 7}), "val")


def scoring(source, batch_size=4, **options) -> ScoringPipeline:
    plan = BatchPlan(source.sizes(), RECIPE.largest_size, canvases=CANVASES, batch_size=batch_size, shuffle=False)
    return ScoringPipeline(source, RECIPE, plan, **{"process": (0, 1), **options})


def all_batches(pipeline: ScoringPipeline) -> list[ScoringBatch]:
    with iter(pipeline) as batches:
        return [
            ScoringBatch(*(np.array(part) for part in (b.image, b.size, b.original_size, b.image_id)), b.examples)
            for b in batches
        ]


def test_images_are_those_of_the_pipeline_with_labels(source):
    with_labels = Pipeline(source, RECIPE, scoring(source).plan, process=(0, 1), max_segments=16)
    ours = all_batches(scoring(source))
    with iter(with_labels) as batches:
        expected = [(np.array(b.image), b.size, b.original_size, b.image_id, b.valid) for b in batches]
    assert len(ours) == len(expected) == len(scoring(source))
    for batch, arrays in zip(ours, expected):
        for mine, theirs in zip((batch.image, batch.size, batch.original_size, batch.image_id, batch.valid), arrays):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("with_images", [False, True])
def test_labels_arrive_as_they_were_read(source, workers, with_images):
    seen = 0
    for batch in all_batches(scoring(source, workers=workers, with_images=with_images)):
        for index, example in zip(batch.image_id[batch.valid].tolist(), batch.examples, strict=True):
            original = source[index]
            np.testing.assert_array_equal(example.segment_map, original.segment_map)
            np.testing.assert_array_equal(example.class_id, original.class_id)
            np.testing.assert_array_equal(example.is_crowd, original.is_crowd)
            assert (example.image_id, example.file_name) == (original.image_id, original.file_name)
            np.testing.assert_array_equal(example.image, original.image if with_images else original.image[:0, :0])
            seen += 1
    assert seen == len(source)


def test_processes_share_the_rows_of_a_batch(source):
    whole = all_batches(scoring(source))
    parts = [all_batches(scoring(source, process=(index, 2))) for index in range(2)]
    for batch, *shares in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(batch.image, np.concatenate([share.image for share in shares]))
        names = [example.file_name for share in shares for example in share.examples]
        assert names == [example.file_name for example in batch.examples]


def test_settings_of_training_are_refused(source):
    plan = scoring(source).plan
    with pytest.raises(ValueError, match="one short side"):
        ScoringPipeline(source, ResizeShortSide((48, 64), 96), plan, process=(0, 1))
    with pytest.raises(ValueError, match="batch size 4 on process 0 of 3"):
        ScoringPipeline(source, RECIPE, plan, process=(0, 3))
