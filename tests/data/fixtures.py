"""A tiny dataset in the COCO-panoptic layout, written from drawn scenes; other tests may use it too."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from pfcn_jax.data.datasets.scenes import Scenes, class_table
from pfcn_jax.data.example import Example
from pfcn_jax.data.segments import find_runs
from pfcn_jax.data.write import write_coco_folder

SIZES = ((96, 128), (128, 96), (112, 112), (80, 144))


def tiny_examples(count: int, *, split: str = "train", crowd: bool = True) -> list[Example]:
    """`count` scenes of four sizes; with `crowd`, the first thing of every third one is a crowd, and void is there."""
    examples = []
    for index in range(count):
        example = Scenes(split, size=SIZES[index % len(SIZES)], length=count)[index]
        is_crowd = example.is_crowd.copy()
        segment_map = example.segment_map.copy()
        if crowd and index % 3 == 0 and (example.class_id < 5).any():
            is_crowd[0] = True
        segment_map[-3:, :7] = 0
        kept = np.isin(np.arange(len(is_crowd)) + 1, segment_map)
        assert kept.all(), "the void corner hides a whole segment: take another scene"
        examples.append(dataclasses.replace(example, runs=find_runs(segment_map), is_crowd=is_crowd))
    return examples


def write_tiny_coco(
    root: pathlib.Path, *, splits: dict[str, int] | None = None, picture_format: str = "jpg"
) -> pathlib.Path:
    """Writes splits (name -> number of images; default 6 of "train", 4 of "val") and returns the root."""
    for split, count in (splits or {"train": 6, "val": 4}).items():
        write_coco_folder(root, split, tiny_examples(count, split=split), class_table(), picture_format=picture_format)
    return root
