"""Which split is read, examples that stay in memory, and what the config does to images."""

from __future__ import annotations

import json
import pathlib
import pickle
import shutil

import jax
import numpy as np
import pytest

from pfcn_jax.config.schema import Config, TrainOptions
from pfcn_jax.data.example import DataError
from pfcn_jax.data.inputs import eval_pipeline, open_evaluation, open_training, train_pipeline, training_recipe
from pfcn_jax.data.options import DataOptions
from pfcn_jax.data.registry import list_splits
from pfcn_jax.data.sources import CachedExamples
from pfcn_jax.parallel.sharding import whole_rows
from tests.data import layout_fixtures as layouts
from tests.data.fixtures import write_tiny_coco


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    return write_tiny_coco(tmp_path / "own", splits={"train2020": 3, "val2020": 2})


def test_a_data_directory_is_enough(root):
    config = DataOptions(root=str(root))
    assert len(open_training(config)) == 3 and len(open_evaluation(config, 0)) == 2
    assert len(open_evaluation(config, 1)) == 1
    assert len(open_evaluation(config, 0, split="train2020")) == 3
    assert len(open_training(DataOptions(root=str(root), train_split="val2020", train_examples=1))) == 1


def test_splits_that_cannot_be_guessed_are_an_error_with_the_way_out(root):
    shutil.copytree(root / "train2020", root / "training")
    shutil.copy(root / "annotations/panoptic_train2020.json", root / "annotations/panoptic_training.json")
    shutil.copytree(root / "annotations/panoptic_train2020", root / "annotations/panoptic_training")
    with pytest.raises(DataError, match=r"2 splits start with 'train' .*--config\.data\.train_split=NAME"):
        open_training(DataOptions(root=str(root)))
    (root / "annotations/panoptic_val2020.json").rename(root / "annotations/panoptic_dev.json")
    with pytest.raises(DataError, match=r"no split starts with 'val' \(there are dev, train2020, training\)"):
        open_evaluation(DataOptions(root=str(root)), 0)
    with pytest.raises(DataError, match="no such data directory"):
        open_training(DataOptions(root=str(root / "nowhere")))
    with pytest.raises(DataError, match="no split of a 'coco' data set found"):
        open_training(DataOptions(root=str(root / "annotations" / "panoptic_train2020")))


def test_a_split_with_other_classes_is_refused(root):
    config = DataOptions(root=str(root))
    classes = open_training(config).classes
    assert open_evaluation(config, 0, classes=classes).classes == classes
    path = root / "annotations/panoptic_val2020.json"
    content = json.loads(path.read_text())
    for change, message in (
        (lambda entry: entry | {"color": [1, 2, 3]}, ""),
        (lambda entry: entry | {"name": f"{entry['name']} 2"}, "class 0 is .* here, .* 2' .* there"),
        (lambda entry: entry | {"isthing": 0}, "class 0 is .* here, .* there"),
    ):
        first, *others = content["categories"]
        path.write_text(json.dumps(content | {"categories": [change(first), *others]}))
        if message:
            with pytest.raises(DataError, match=f"split 'val2020': its classes are not those of the model .*{message}"):
                open_evaluation(config, 0, classes=classes)
        else:
            open_evaluation(config, 0, classes=classes)


def test_a_single_split_serves_both_and_says_so(tmp_path, capsys):
    root = write_tiny_coco(tmp_path, splits={"all": 2})
    config = DataOptions(root=str(root))
    assert len(open_training(config)) == len(open_evaluation(config, 0)) == 2
    assert "'all' is the only split" in capsys.readouterr().err


def test_splits_of_the_owners_layouts(tmp_path):
    for split in ("train", "val"):
        layouts.write_cityscapes(tmp_path / "c", split=split, count=1)
    for split in ("training", "validation"):
        layouts.write_mapillary(tmp_path / "m", split=split, count=1, panoptic=False)
        layouts.write_ade20k(tmp_path / "a", split=split, count=1, panoptic=False)
    assert list_splits("cityscapes", tmp_path / "c") == ["train", "val"]
    assert list_splits("mapillary", tmp_path / "m") == ["training", "validation"]
    assert list_splits("ade20k", tmp_path / "a") == ["training", "validation"]
    assert list_splits("ade20k", tmp_path / "a/ADEChallengeData2016") == ["training", "validation"]
    assert list_splits("scenes", "") == ["train", "val"]
    for source in ("cityscapes", "mapillary", "ade20k"):
        config = DataOptions(source=source, root=str(tmp_path / source[0]))
        assert len(open_training(config)) == len(open_evaluation(config, 0)) == 1


def test_cached_examples_are_read_once_and_cannot_be_changed(root):
    source = open_training(DataOptions(root=str(root), cache=True))
    assert isinstance(source, CachedExamples)
    first = source[0]
    shutil.rmtree(root / "train2020")
    assert source[0] is first
    with pytest.raises(ValueError, match="read-only"):
        first.image[0, 0] = 0
    with pytest.raises(DataError, match="cannot be read"):
        pickle.loads(pickle.dumps(source))[0]  # a worker starts with an empty memory
    plain = open_training(DataOptions(root=str(root), train_split="val2020"))
    cached = CachedExamples(plain)
    np.testing.assert_array_equal(cached[1].image, plain[1].image)
    assert cached.info(1) == plain.info(1) and cached.classes == plain.classes and len(cached) == len(plain)


def test_training_recipe_follows_the_config(root):
    source = open_training(DataOptions(root=str(root)))
    plain = DataOptions(short_sides=(64, 96), max_long_side=120)
    example = source[0]
    sizes = {training_recipe(plain, source.classes)(example, np.random.default_rng(i)).size for i in range(8)}
    assert sizes == {(64, 85), (90, 120)}
    jitter = DataOptions(crop=(64, 64), jitter=(0.1, 2.0), crop_with_instance=True, flip=0.0)
    recipe = training_recipe(jitter, source.classes)
    assert recipe.largest_size((96, 128)) == (64, 64) and recipe.resized_range((96, 128)) == ((5, 6), (96, 128))
    sizes = {recipe(example, np.random.default_rng(i)).size for i in range(40)}
    assert len(sizes) > 20 and min(sizes)[0] < 10 and (64, 64) in sizes


def test_jitter_reaches_the_batches(root):
    data = DataOptions(root=str(root), crop=(64, 64), jitter=(0.25, 2.0), canvases=((64, 64),), workers=0)
    config = Config(data=data, train=TrainOptions(batch_size=2))
    with iter(
        train_pipeline(
            config.data, open_training(data), batch_size=config.train.batch_size, seed=config.seed, process=(0, 1)
        )
    ) as batches:
        sizes = np.concatenate([next(batches).size for _ in range(8)])
    assert sizes.min() < 32 and sizes.max() == 64 and len(np.unique(sizes, axis=0)) > 6


def test_an_evaluation_batch_divides_over_the_devices(root):
    data = DataOptions(root=str(root), eval_short_side=64, eval_max_long_side=96, eval_canvases=((96, 96),), workers=0)
    config = Config(data=data, train=TrainOptions(eval_batch_size=3))
    pipeline = eval_pipeline(
        config.data, open_evaluation(data, 0), batch_size=whole_rows(config.train.eval_batch_size), process=(0, 1)
    )
    assert jax.device_count() == 2 and pipeline.plan.batch_size == 4
    (batch,) = pipeline
    assert batch.valid.tolist() == [True, True, False, False]
