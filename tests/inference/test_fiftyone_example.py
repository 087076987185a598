"""The FiftyOne example of docs/predict.md reads what `predict` writes; a fake replaces FiftyOne and its MongoDB."""

from __future__ import annotations

import pathlib
import sys
import types

import numpy as np

from pfcn_jax.inference.formats import make_writer
from pfcn_jax.inference.formats.registry import ImageEntry
from tests.documents import ROOT, fences
from tests.inference.drawn import CLASSES, drawn_result


class Sample(dict):
    def save(self) -> None:
        self["saved"] = True


def test_the_example_reads_the_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {name: drawn_result(mirrored=name == "b") for name in "ab"}
    for form in ("coco-panoptic", "coco-instances"):
        writer = make_writer(form, pathlib.Path("out"), CLASSES)
        for number, (name, result) in enumerate(names.items(), start=1):
            writer.add(ImageEntry(name, number, name, f"photos/{name}.png"), result)
        writer.finish("ab")
    samples = {str(tmp_path.resolve() / "photos" / f"{name}.png"): Sample() for name in names}
    dataset = type("Dataset", (), {"__getitem__": lambda self, path: samples[path]})()
    given = {}
    app = types.SimpleNamespace(wait=lambda: None)
    stand_in = types.SimpleNamespace(
        Dataset=types.SimpleNamespace(from_dir=lambda **flags: given.update(flags) or dataset),
        Segmentation=lambda mask: mask,
        launch_app=lambda shown: app,
        types=types.SimpleNamespace(COCODetectionDataset="coco"),
    )
    monkeypatch.setitem(sys.modules, "fiftyone", stand_in)
    (code,) = (code for _, code in fences((ROOT / "docs/predict.md").read_text()) if "fiftyone" in code)
    exec(compile(code, "docs/predict.md", "exec"), {})

    assert pathlib.Path(given["labels_path"]).is_file()
    assert dataset.mask_targets == {"panoptic": dict(enumerate(CLASSES.names, start=1))}
    for sample, result in zip(samples.values(), names.values(), strict=True):
        assert sample["saved"]
        number_of = np.array([0, *(segment.class_id + 1 for segment in result.segments)])
        np.testing.assert_array_equal(sample["panoptic"], number_of[result.segment_map])
