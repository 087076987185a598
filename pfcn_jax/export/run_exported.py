"""Segments an image with a file that `export` wrote. It needs jax, flatbuffers, numpy and pillow, nothing else.

python run_exported.py model.pfcn photo.jpg segments.png
"""

import functools
import json
import re
import sys

import jax.export
import numpy as np
from PIL import Image, ImageOps


def choose(meta, original):
    """The size (height, width) that an image gets on its canvas, and the cheapest program with room for it."""
    short, long = meta["resize_to"]
    size = [short if side == min(original) else short / min(original) * side for side in original]
    size = [max(1, int(side * min(1, long / max(size)) + 0.5)) for side in size]
    for program in meta["programs"]:  # the cheapest comes first
        if all(side <= room for side, room in zip([*size, *original], program["canvas"] + program["output"])):
            return size, program
    raise ValueError(f"an image of {original} (height, width) fits into none of {meta['programs']}")


def segment(meta, run, pixels):
    """RGB uint8 [h, w, 3] -> int32 [h, w], 0 = no segment, and a list of segments."""
    original = pixels.shape[:2]
    size, program = choose(meta, original)
    image = np.zeros((program["batch"], *program["canvas"], 3), np.uint8)
    wide = Image.fromarray(pixels).resize((size[1], original[0]), Image.Resampling.BILINEAR)
    image[:, : size[0], : size[1]] = wide.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    sizes = [np.array([value] * len(image), np.int32) for value in (size, original)]
    found = {name: np.asarray(value)[0] for name, value in run(program, image, *sizes).items()}
    segments = [
        {"id": int(row) + 1, "score": float(found["score"][row]), "area": int(found["area"][row])}
        | {"class_id": int(found["class_id"][row]), "class": meta["classes"][found["class_id"][row]]["name"]}
        for row in np.flatnonzero(found["valid"])
    ]
    return found["segment_map"][: original[0], : original[1]], segments


def load(path):
    """Metadata and programs of a model. Reading the file executes nothing."""
    file = np.load(path)  # arrays, programs as bytes, and meta.json
    weights = jax.device_put({name: file[name] for name in file.files if name.startswith("weights/")})
    compiled = functools.cache(lambda name: jax.jit(jax.export.deserialize(bytearray(file[name])).call))
    return json.loads(file["meta.json"]), lambda program, *arrays: compiled(program["file"])(weights, *arrays)


def read(path):
    """An image file as upright RGB uint8 [h, w, 3]; one of more than 8 bits a channel is refused."""
    with Image.open(path) as picture:
        if picture.mode[0] in "IF" or re.search(";16[BLN]", str(picture.tile)):
            raise ValueError(f"an image of mode {picture.mode} with more than 8 bits a channel; convert it to 8 bits")
        return np.array(ImageOps.exif_transpose(picture).convert("RGB"))


if __name__ == "__main__":
    model, photo, output = sys.argv[1:]
    try:
        picture = read(photo)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        sys.exit(f"error: {photo}: {error}")
    meta, run = load(model)
    segment_map, segments = segment(meta, run, picture)
    colors = np.zeros((segment_map.max() + 1, 3), np.uint8)
    for entry in segments:
        colors[entry["id"]] = meta["classes"][entry["class_id"]]["color"]
        print(f"{entry['id']:4d} {entry['class']:24s} score {entry['score']:.3f} {entry['area']:9d} pixels")
    Image.fromarray(colors[segment_map]).save(output)
