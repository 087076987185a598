"""What every source promises, tested for each: features, dtypes, ids, determinism, threads, hosts, no TensorFlow."""

from __future__ import annotations

import concurrent.futures
import json
import pathlib
import pickle
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from pfcn_jax.data.augment import ResizeShortSide
from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.datasets import tfds as tfds_source
from pfcn_jax.data.datasets.coco import CocoFolder
from pfcn_jax.data.datasets.scenes import Scenes
from pfcn_jax.data.example import Source
from pfcn_jax.data.pipeline import Pipeline
from pfcn_jax.data.plan import BatchPlan
from pfcn_jax.data.registry import BUILT_IN, list_splits, open_source
from pfcn_jax.data.segments import find_runs, tight_boxes
from pfcn_jax.data.sources import CachedExamples, FirstExamples
from tests.data import layout_fixtures as layouts
from tests.data.fixtures import write_tiny_coco

COUNT = 5
CANVASES = ((64, 96), (96, 64))


def _tfds(root: pathlib.Path) -> tuple[str, pathlib.Path, str]:
    write_tiny_coco(root / "folder", splits={"train": COUNT})
    return "tfds", tfds_source.prepare(root / "tfds", {"train": CocoFolder(root / "folder", "train")}), "train"


def _street(name: str, split: str, write: Callable[..., object], **options: object):
    def make(root: pathlib.Path) -> tuple[str, pathlib.Path, str]:
        write(root, split=split, count=COUNT, **options)
        return name, root, split

    return make


# A way to write a data set of each kind; it returns (name of the source, root, split).
MAKERS: dict[str, Callable[[pathlib.Path], tuple[str, pathlib.Path, str]]] = {
    "coco": lambda root: ("coco", write_tiny_coco(root, splits={"train": COUNT}), "train"),
    "tfds": _tfds,
    "cityscapes": _street("cityscapes", "train", layouts.write_cityscapes),
    "mapillary_instances": _street("mapillary", "training", layouts.write_mapillary, panoptic=False),
    "mapillary_panoptic": _street("mapillary", "training", layouts.write_mapillary, panoptic=True),
    "ade20k_annotations": _street("ade20k", "training", layouts.write_ade20k, panoptic=False),
    "ade20k_panoptic": _street("ade20k", "training", layouts.write_ade20k, panoptic=True),
    "scenes": lambda root: ("scenes", root, "train"),
}


def opened(name: str, root: pathlib.Path, split: str) -> Source:
    return Scenes(split, size=(64, 96), length=COUNT) if name == "scenes" else open_source(name, root, split)


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, tuple[str, pathlib.Path, str]]:
    return {kind: make(tmp_path_factory.mktemp(kind)) for kind, make in MAKERS.items()}


@pytest.fixture(params=[*MAKERS, "first", "cached"])
def source(request, places) -> Source:
    if request.param == "first":
        return FirstExamples(opened(*places["coco"]), COUNT)
    if request.param == "cached":
        return CachedExamples(opened(*places["cityscapes"]))
    return opened(*places[request.param])


def assert_equal_examples(ours, theirs) -> None:
    assert (ours.image_id, ours.file_name) == (theirs.image_id, theirs.file_name)
    for field in ("image", "segment_map", "class_id", "is_crowd"):
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))


def test_every_registered_source_is_here(places):
    assert {name for name, _, _ in places.values()} == set(BUILT_IN)


def test_features_dtypes_and_ids(source):
    assert isinstance(source.classes, ClassTable) and len(source) == COUNT
    sizes = source.sizes()
    assert sizes.shape == (COUNT, 2) and sizes.dtype == np.int32
    names = set()
    for index in range(COUNT):
        example, info = source[index], source.info(index)
        height, width = info.size
        assert example.image.shape == (height, width, 3) and example.image.dtype == np.uint8
        assert example.segment_map.shape == (height, width) and example.segment_map.dtype == np.int32
        count = len(example.class_id)
        assert example.class_id.shape == example.is_crowd.shape == (count,)
        assert example.class_id.dtype == np.int32 and example.is_crowd.dtype == bool
        # Every row has pixels, every pixel has a row or is void, every class is in the table.
        assert sorted(set(np.unique(example.segment_map).tolist()) - {0}) == list(range(1, count + 1))
        assert set(example.class_id.tolist()) <= set(range(len(source.classes)))
        stuff = [c for c in example.class_id.tolist() if not source.classes.is_thing[c]]
        assert len(stuff) == len(set(stuff)), "a stuff class has one segment"
        assert not any(
            example.is_crowd[row] for row, c in enumerate(example.class_id) if not source.classes.is_thing[c]
        )
        np.testing.assert_array_equal(example.box, tight_boxes(find_runs(example.segment_map), count))
        assert (info.image_id, info.file_name) == (example.image_id, example.file_name)
        assert isinstance(example.image_id, (int, str)) and tuple(sizes[index]) == info.size
        names.add((example.image_id, example.file_name))
    assert len(names) == COUNT
    for index in (-1, COUNT):
        with pytest.raises(IndexError):
            source[index]


def test_classes_are_ordered_named_coloured_and_survive_json(source):
    table = source.classes
    assert sorted(table.is_thing, reverse=True) == list(table.is_thing) and table.num_things and table.num_stuff
    assert len(set(table.names)) == len(set(table.category_ids)) == len(table) == len(table.colors)
    assert ClassTable.from_json(json.loads(json.dumps(table.to_json()))) == table
    assert ClassTable.from_coco(table.to_coco()) == table


def test_reading_again_in_any_order_thread_or_process_gives_the_same(source):
    first = [source[index] for index in range(COUNT)]
    copy = pickle.loads(pickle.dumps(source))
    for index in reversed(range(COUNT)):
        assert_equal_examples(copy[index], first[index])
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for index, example in zip([3, 0, 3, 1, 4, 2], pool.map(source.__getitem__, [3, 0, 3, 1, 4, 2])):
            assert_equal_examples(example, first[index])


def pipeline(source: Source, *, shuffle: bool, host: int, hosts: int) -> Pipeline:
    recipe = ResizeShortSide((40, 48, 64), 96, flip=0.5) if shuffle else ResizeShortSide((64,), 96)
    plan = BatchPlan(source.sizes(), recipe.largest_size, canvases=CANVASES, batch_size=6, shuffle=shuffle, seed=1)
    return Pipeline(source, recipe, plan, process=(host, hosts), max_segments=16)


@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_hosts_share_an_evaluation_without_loss_or_repeat(source, hosts):
    seen = [
        index
        for host in range(hosts)
        for batch in pipeline(source, shuffle=False, host=host, hosts=hosts)
        for index in batch.image_id[batch.valid].tolist()
    ]
    assert sorted(seen) == list(range(COUNT))


def test_hosts_share_each_training_batch(source):
    def batches(host: int, hosts: int):
        with iter(pipeline(source, shuffle=True, host=host, hosts=hosts)) as iterator:
            return [next(iterator) for _ in range(3)]

    whole, parts = batches(0, 1), [batches(host, 3) for host in range(3)]
    for number, batch in enumerate(whole):
        for name in ("image", "segment_map", "size", "image_id"):
            joined = np.concatenate([np.asarray(getattr(part[number], name)) for part in parts])
            np.testing.assert_array_equal(joined, getattr(batch, name))


def test_no_source_ever_loads_tensorflow(places):
    listed = [(name, str(root), split) for name, root, split in places.values() if name != "scenes"]
    code = (
        "import sys; from pfcn_jax.data.registry import open_source\n"
        "from pfcn_jax.commands import browse, predict, validate_data\n"
        "from pfcn_jax.evaluation import evaluate\n"
        "from pfcn_jax.training import trainer\n"
        f"for name, root, split in {listed!r}: open_source(name, root, split)[0]\n"
        "sys.exit(sum(name.split('.')[0] in ('tensorflow', 'torch') for name in sys.modules))"
    )
    root = pathlib.Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=300).returncode == 0


def test_splits_are_found(places):
    for name, root, split in places.values():
        assert split in list_splits(name, root)
    name, root, split = places["tfds"]
    assert list_splits(name, root.parents[2]) == [split]
