"""`bulk` without Ray: names, what is left to do, what one worker writes, and how all of it becomes one result."""

from __future__ import annotations

import csv
import importlib.util
import json
import pathlib
import socket
import uuid

import jax
import numpy as np
import pytest
from PIL import Image

from pfcn_jax import main as front_door
from pfcn_jax.apps.bulk import cluster, layout
from pfcn_jax.apps.bulk.command import find_work
from pfcn_jax.apps.bulk.merge import merge, sort_records
from pfcn_jax.apps.bulk.worker import Attempts, Job, Segmenter
from pfcn_jax.data.datasets.scenes import Scenes, class_table
from pfcn_jax.data.store import Store
from pfcn_jax.errors import UserError
from tests.support.tiny import write_tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def write_images(folder: pathlib.Path, names: list[str]) -> None:
    scenes = Scenes("val", size=(48, 64))
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scenes[index].image).save(folder / name)


# ------------------------------------------------------------------------------------------------ names and listings


def test_no_two_images_have_one_result():
    names = ["x.jpg", "x.png", "a/x.jpg", "b/x.jpg", "x.jpg.png", "x", "x.JPG"]
    assert len({layout.map_name(name) for name in names}) == len(names)
    assert layout.map_name("a/x.jpg") == "panoptic/a/x.jpg.png"


def test_a_shard_is_named_by_its_images_alone():
    assert layout.shard_name(["a", "b"]) == layout.shard_name(["a", "b"])
    assert len({layout.shard_name(names) for names in (["a", "b"], ["ab"], ["b", "a"], ["a"])}) == 4
    assert list(layout.shards("abcde", 2)) == [["a", "b"], ["c", "d"], ["e"]]


def test_what_is_left_follows_from_two_listings(tmp_path):
    names = ["a.jpg", "b/a.jpg", "b/c.PNG", "b/d.webp", "e.gif"]
    for name in (*names, "notes.txt", "b/film.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    source, output = Store(str(tmp_path)), Store(str(tmp_path / "out"))  # the output lies inside the input
    assert sorted(find_work(source, output, retry_failed=False).todo) == names
    output.put("panoptic/b/a.jpg.png", b"a map")
    output.put("panoptic/a.jpg.png", b"")  # a machine lost its power: no result
    output.put("panoptic/gone.jpg.png", b"of an image that is not there any more")
    output.put("state/failures/1.jsonl", b'{"image_id": "e.gif", "reason": "broken"}\n')
    work = find_work(source, output, retry_failed=False)
    assert sorted(work.todo) == ["a.jpg", "b/c.PNG", "b/d.webp"]
    assert (work.done, work.failed, work.found) == (1, 1, 5)
    assert sorted(find_work(source, output, retry_failed=True).todo) == ["a.jpg", "b/c.PNG", "b/d.webp", "e.gif"]


def test_input_without_images_is_an_error(tmp_path):
    output = Store(str(tmp_path / "out"))
    for folder, message in (("gone", "gone: no such folder"), (".", "nothing to segment in")):
        with pytest.raises(UserError, match=message):
            find_work(Store(str(tmp_path / folder)), output, retry_failed=False)


def test_an_output_takes_one_kind_of_results(tmp_path):
    output = Store(str(tmp_path / "out"))
    settings = {"parameters": "abc", "inference": {"merge_score": 0.2}, "sizes": ((64, 64),)}
    layout.check_settings(output, settings)
    layout.check_settings(output, settings)
    with pytest.raises(UserError, match=r"inference\.merge_score = 0\.2, now it is 0\.4; name another --output"):
        layout.check_settings(output, settings | {"inference": {"merge_score": 0.4}})


# ---------------------------------------------------------------------------------------------------------- one worker


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> pathlib.Path:
    with jax.numpy_dtype_promotion("standard"):
        return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_images(folder, ["x.png", "a/x.png", "a/x.bmp", "b/y.png"])
    (folder / "bad.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def segmenter(checkpoint, source) -> Segmenter:
    pytest.importorskip("fsspec", reason="fsspec opens memory://")
    output = f"memory://{uuid.uuid4().hex}/out"
    return Segmenter(Job(str(checkpoint), [], str(source), output, "cpu", 0, overlay=True, upright=True))


def content(output: Store, below: str) -> dict[str, bytes]:
    return {name: output.read(name) for name, _ in output.list(below)}


def test_a_worker_writes_what_predict_writes(segmenter, checkpoint, source, tmp_path, capsys):
    output = segmenter._output
    outcomes = segmenter(["x.png", "bad.jpg", "a/x.png", "a/x.bmp"]) + segmenter(["b/y.png"])
    assert {name: bool(error) for name, error in outcomes} == {
        "x.png": False, "bad.jpg": True, "a/x.png": False, "a/x.bmp": False, "b/y.png": False,
    }  # fmt: skip
    assert not list(output.list(layout.ATTEMPTS)) and not list(output.list(layout.TMP))
    (worker,) = content(output, layout.WORKERS).values()
    assert json.loads(worker)["pid"] > 0 and json.loads(worker)["devices"][0].lower().startswith(("cpu", "tfrt_cpu"))

    written, failed, counts = merge(output, class_table())
    assert written == 4 and list(failed) == ["bad.jpg"] and "bad.jpg: broken image" in failed["bad.jpg"]
    assert [json.loads(line) for line in output.read(layout.FAILURES_JSONL).splitlines()] == [
        {"image_id": "bad.jpg", "reason": failed["bad.jpg"]}
    ]
    plain = tmp_path / "plain"
    argv = ["predict", "--checkpoint", str(checkpoint), "--output", str(plain), str(source)]
    assert front_door.main(argv) == 1
    assert counts.summary() in capsys.readouterr().out
    ours, theirs = json.loads(output.read("panoptic.json")), json.loads((plain / "panoptic.json").read_text())
    assert [image["id"] for image in ours["images"]] == ["a/x.bmp", "a/x.png", "b/y.png", "x.png"]
    assert ours["categories"] == theirs["categories"]
    assert output.read("classes.csv") == (plain / "classes.csv").read_bytes()
    by_maps = {}  # names of `predict` have no suffix, so its maps say whose they are
    for annotation in theirs["annotations"]:
        maps, drawing = ((plain / folder / annotation["file_name"]).read_bytes() for folder in ("panoptic", "overlay"))
        by_maps[maps] = annotation["segments_info"], drawing
    assert len(by_maps) == 4  # all different
    for annotation in ours["annotations"]:
        segments, drawing = by_maps[output.read(f"panoptic/{annotation['file_name']}")]
        assert annotation["segments_info"] == segments
        assert output.read(f"overlay/{annotation['image_id']}.png") == drawing


def test_a_shard_that_is_done_twice_leaves_the_same_files(segmenter):
    output = segmenter._output
    segmenter(["a/x.png", "b/y.png"])
    before = content(output, "panoptic") | content(output, layout.RECORDS)
    segmenter(["a/x.png", "b/y.png"])
    assert content(output, "panoptic") | content(output, layout.RECORDS) == before


def test_an_image_over_which_workers_die_is_given_up(segmenter):
    """Two beginnings without an end: the next worker goes image by image, and leaves out the one that killed."""
    output, shard = segmenter._output, ["b/y.png", "x.png"]
    attempts = Attempts(output)
    for name in (layout.shard_name(shard), layout.shard_name(["x.png"])):
        assert attempts.begin(name) == 0 and attempts.begin(name) == 1
    for name in shard:
        output.remove(layout.map_name(name))
    outcomes = dict(segmenter(shard))
    assert outcomes["b/y.png"] == "" and output.exists(layout.map_name("b/y.png"))
    assert outcomes["x.png"].endswith("x.png: 2 workers died over it") and not output.exists(layout.map_name("x.png"))
    assert "x.png" in layout.read_failures(output) and not list(output.list(layout.ATTEMPTS))


def test_an_image_that_cannot_be_predicted_costs_no_other(segmenter, monkeypatch):
    output, shard = segmenter._output, ["a/x.bmp", "b/y.png", "x.png"]
    for name in shard:
        output.remove(layout.map_name(name))
    prepare = segmenter._predictor.prepare
    victim = segmenter._read("b/y.png")

    def failing(image):
        if np.array_equal(image, victim):
            raise MemoryError("too large for this device")
        return prepare(image)

    monkeypatch.setattr(segmenter._predictor, "prepare", failing)
    outcomes = dict(segmenter(shard))
    assert outcomes["b/y.png"].endswith("y.png: MemoryError: too large for this device")
    assert [output.exists(layout.map_name(name)) for name in shard] == [True, False, True]


# -------------------------------------------------------------------------------------------------------- one result


def record(name: str, area: int = 5) -> bytes:
    segments = [{"id": 1, "category_id": class_table().category_ids[0], "area": area}]
    annotation = {"image_id": name, "file_name": f"{name}.png", "segments_info": segments}
    return json.dumps({"image": {"id": name}, "annotation": annotation}).encode() + b"\n"


@pytest.fixture
def written(tmp_path) -> Store:
    """Shards that overlap, as after a kill, out of order, with a record whose map was never written."""
    output = Store(str(tmp_path / "out"))
    shards = {"1": ["c.jpg", "a.jpg"], "2": ["a.jpg", "b/x.jpg", "lost.jpg"], "3": ["b.jpg", "c.jpg"]}
    for shard, names in shards.items():
        output.put(f"state/records/{shard}.jsonl", b"".join(record(name) for name in names))
    for name in ("a.jpg", "b.jpg", "b/x.jpg", "c.jpg"):
        output.put(layout.map_name(name), b"a map")
    failures = [{"image_id": "z.jpg", "reason": "late"}, {"image_id": "d.jpg", "reason": "broken"}]
    failures.append({"image_id": "a.jpg", "reason": "is done since"})
    output.put("state/failures/1.jsonl", "".join(json.dumps(entry) + "\n" for entry in failures).encode())
    return output


def test_every_image_is_in_the_result_once_and_sorted(written):
    images, failed, _ = merge(written, class_table())
    result = json.loads(written.read("panoptic.json"))
    assert images == 4 and [image["id"] for image in result["images"]] == ["a.jpg", "b.jpg", "b/x.jpg", "c.jpg"]
    assert [entry["image_id"] for entry in result["annotations"]] == ["a.jpg", "b.jpg", "b/x.jpg", "c.jpg"]
    assert list(failed) == ["d.jpg", "z.jpg"]
    first = next(iter(csv.DictReader(written.read("classes.csv").decode().splitlines())))
    assert (first["segments"], first["pictures"], first["pixels"]) == ("4", "4", "20")
    before = {name: written.read(name) for name in ("panoptic.json", "classes.csv", "failures.jsonl")}
    merge(written, class_table())
    assert before == {name: written.read(name) for name in before}


def test_records_are_sorted_on_disk_where_memory_is_small(written, tmp_path):
    done = layout.find_done(written)
    in_memory = list(sort_records(written, done, tmp_path))
    assert len(in_memory) == 4 and not list(tmp_path.glob("run*"))
    assert list(sort_records(written, done, tmp_path, run_bytes=1)) == in_memory
    assert len(list(tmp_path.glob("run*"))) == 3


def test_a_result_of_nothing_is_still_a_file(tmp_path):
    output = Store(str(tmp_path / "out"))
    assert merge(output, class_table())[0] == 0
    assert json.loads(output.read("panoptic.json"))["annotations"] == []


# ------------------------------------------------------------------------------------------------------------ the verb


def test_without_ray_it_says_what_to_install(monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else find_spec(name))
    assert front_door.main(["bulk", "in", "--checkpoint", "c", "--output", "out"]) == 2
    message = capsys.readouterr().err
    assert "ray" in message and "pip install -r requirements-bulk.txt" in message


def test_a_worker_for_each_accelerator():
    resources = {"CPU": 16.0, "GPU": 4.0, "memory": 1e9}
    assert cluster._choose(resources, 0, "auto") == ("gpu", 4)
    assert cluster._choose(resources, 3, "auto") == ("gpu", 3)
    assert cluster._choose(resources, 0, "cpu") == ("cpu", 4)
    assert cluster._choose({"CPU": 2.0}, 0, "auto") == ("cpu", 1)
    assert cluster._choose({"CPU": 2.0, "TPU": 8.0}, 0, "auto") == ("tpu", 8)
    for workers, accelerator, message in ((0, "tpu", "Ray sees none"), (5, "gpu", "Ray sees 4 GPUs")):
        with pytest.raises(UserError, match=message):
            cluster._choose(resources, workers, accelerator)


def test_a_cluster_that_does_not_answer_is_said_at_once():
    with socket.socket() as nobody:  # bound, but nobody listens
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        with pytest.raises(UserError, match=f"--address 127.0.0.1:{port}: no Ray cluster answers there"):
            cluster._check_reachable(f"127.0.0.1:{port}")
    cluster._check_reachable("auto")
