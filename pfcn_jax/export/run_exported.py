"""Segments an image with a file that `export` wrote: `.pfcn` with JAX, `.onnx` with ONNX Runtime and without JAX.

python run_exported.py model.pfcn photo.jpg segments.png

It needs numpy, pillow, and either jax and flatbuffers or onnxruntime; nothing else. An ONNX file is the network up to
the kernels of things and stuff; `paste` makes segments of them, in NumPy.
"""

import functools
import json
import re
import sys

import numpy as np
from PIL import Image, ImageOps

KERNELS = 16  # that are applied to the feature at a time
BAND = 64  # output lines that are resampled at a time: each reads a few lines of the map only


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
    found = run(program, image, *sizes)
    segments = [
        {"id": int(row) + 1, "score": float(found["score"][row]), "area": int(found["area"][row])}
        | {"class_id": int(found["class_id"][row]), "class": meta["classes"][found["class_id"][row]]["name"]}
        for row in np.flatnonzero(found["valid"])
    ]
    return found["segment_map"][: original[0], : original[1]], segments


def load(path):
    """Metadata of a model, and the function (program, image, size, original size) -> arrays of the first image."""
    if str(path).lower().endswith(".onnx"):
        return load_onnx(path)
    import jax.export

    file = np.load(path)  # arrays, programs as bytes, and meta.json. Reading it executes nothing
    weights = jax.device_put({name: file[name] for name in file.files if name.startswith("weights/")})
    compiled = functools.cache(lambda name: jax.jit(jax.export.deserialize(bytearray(file[name])).call))

    def run(program, *arrays):
        found = compiled(program["file"])(weights, *arrays)
        return {name: np.asarray(value)[0] for name, value in found.items()}

    return json.loads(file["meta.json"]), run


def load_onnx(path):
    """`load` for an ONNX model, in ONNX Runtime on the CPU. With another runtime, call `paste` with its outputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    meta = json.loads(session.get_modelmeta().custom_metadata_map["pfcn_jax"])
    names = [output.name for output in session.get_outputs()]

    def run(program, image, size, original):
        kernels = dict(zip(names, session.run(names, {"image": image, "size": size})))
        return paste(meta, kernels, size[0], original[0])

    return meta, run


# ----------------------------------------------------------------------------------- from kernels to segments, in NumPy
def paste(meta, kernels, size, original):
    """The segments of one image from the outputs of the ONNX model.

    Args:
      kernels: the model's outputs by name.
      size, original: (height, width) of the image on the canvas, and of the result.

    Returns:
      segment_map int32 [height, width]: 0 = no segment, i = row i - 1 of class_id, is_thing, score, area, valid.
    """
    options = meta["config"]["inference"]
    cells = [-(-int(side) // 32) * 8 for side in size]  # the image is padded to 32 pixels, of 4 for each cell
    feature = np.ascontiguousarray(kernels["feature"][: cells[0], : cells[1]])
    axes = [Axis(int(o), int(s), c) for o, s, c in zip(original, size, cells)]
    class_id, score, maps = rescore(kernels, feature, options)
    segment_map, rows = place_things(maps, class_id, score, axes, options)
    stuff = np.flatnonzero(kernels["stuff_valid"])
    best, channel = np.full(segment_map.shape, -1, np.float32), np.zeros(segment_map.shape, np.int32)
    for index, probability in zip(stuff, probabilities(kernels["stuff_weight"][stuff], feature)):
        value = upsample(probability, *axes)
        better = value > best
        best[better], channel[better] = value[better], index
    num_things = sum(bool(entry["isthing"]) for entry in meta["classes"])
    of_things = len(kernels["stuff_valid"]) - (len(meta["classes"]) - num_things)  # region channels that are no stuff
    free = np.bincount(channel[segment_map == 0], minlength=len(kernels["stuff_valid"]))
    ids = np.zeros(len(free), np.int32)
    for index in stuff[stuff >= of_things]:
        if free[index] >= max(1, options["min_stuff_area"]):
            rows.append((num_things - of_things + index, False, kernels["stuff_score"][index], free[index]))
            ids[index] = len(rows)
    segment_map = np.where(segment_map == 0, ids[channel], segment_map)
    columns = list(zip(*rows)) or [()] * 4
    found = {"class_id": np.int32, "is_thing": bool, "score": np.float32, "area": np.int32}
    table = {name: np.array(column, dtype) for (name, dtype), column in zip(found.items(), columns)}
    return {"segment_map": segment_map, **table, "valid": np.ones(len(rows), bool)}


def probabilities(weights, feature):
    """Mask probabilities [h, w] of kernels [N, E] applied to the feature [h, w, E], one after the other."""
    columns = feature.reshape(-1, feature.shape[2]).T
    for start in range(0, len(weights), KERNELS):
        logits = weights[start : start + KERNELS] @ columns
        np.exp(np.minimum(-logits, 88, out=logits), out=logits)
        yield from (1 / (1 + logits)).reshape(-1, *feature.shape[:2])


def rescore(kernels, feature, options):
    """Classes, scores and masks of the things whose score x mean mask probability is high enough, best first."""
    valid = np.flatnonzero(kernels["thing_valid"])
    weights, class_id = kernels["thing_weight"][valid], kernels["thing_class"][valid]
    score, kept_maps = np.zeros(len(valid), np.float32), {}
    for index, probability in enumerate(probabilities(weights, feature)):
        inside = probability[probability > options["mask_threshold"]]
        score[index] = kernels["thing_score"][valid[index]] * inside.sum() / max(1, inside.size)
        if score[index] > options["min_score"]:
            kept_maps[index] = probability
    order = [index for index in np.argsort(-score, kind="stable") if index in kept_maps]
    if options["mask_nms"]:
        order = suppress(order, class_id, kept_maps, options)
    order = order[: options["max_things"]]
    return class_id[order], score[order], [kept_maps[index] for index in order]


def suppress(order, class_id, maps, options):
    """The slots of `order` whose mask overlaps no better kept one of their class by too large an IoU."""
    masks = {index: maps[index] > options["mask_threshold"] for index in order}
    kept: list[int] = []
    for index in order:
        for other in kept:
            if class_id[index] == class_id[other]:
                both = np.count_nonzero(masks[index] & masks[other])
                union = np.count_nonzero(masks[index]) + np.count_nonzero(masks[other]) - both
                if both / np.maximum(1, union) > options["mask_nms_threshold"]:
                    break
        else:
            kept.append(index)
    return kept


def place_things(maps, class_id, score, axes, options):
    """The segment map of the things, best first, and a row (class, is_thing, score, area) for each that has a place."""
    segment_map, rows = np.zeros([axis.length for axis in axes], np.int32), []
    for probability, thing_class, thing_score in zip(maps, class_id, score):
        hot = probability > options["mask_threshold"] - 1e-6
        if thing_score < options["merge_score"] or not hot.any():
            continue
        box = [axis.readers(hot.any(axis=other)) for axis, other in zip(axes, (1, 0))]
        if any(span.start >= span.stop for span in box):  # smaller than a pixel of the result
            continue
        mask = upsample(probability, *axes, *box) > options["mask_threshold"]
        part = segment_map[box[0], box[1]]
        free = mask & (part == 0)
        area, new = np.count_nonzero(mask), np.count_nonzero(free)
        if new and (area - new) / area <= options["merge_overlap"]:
            rows.append((thing_class, True, thing_score, new))
            part[free] = len(rows)
    return segment_map, rows


class Axis:
    """Weights by which lines of the result read the map at 1/4 resolution: x4, cut to the image, resized; bilinear."""

    def __init__(self, length, size, cells):
        self.length = length
        lines = np.arange(length)
        self.matrix = np.zeros((length, cells), np.float32)
        reads = []
        for fine, weight in taps(length, size, size / length):
            for coarse, share in taps(4 * cells, cells, 0.25):
                self.matrix[lines, coarse[fine]] += weight * share[fine]
                reads.append(coarse[fine])
        self.first, self.last = np.min(reads, axis=0), np.max(reads, axis=0)

    def readers(self, hot):
        """The lines that read any of the cells between the first and the last hot one."""
        at = np.flatnonzero(hot)
        return slice(np.searchsorted(self.last, at[0]), np.searchsorted(self.first, at[-1], side="right"))

    def bands(self, lines):
        """The matrix in bands: the cells that the lines of each read, and its part for them."""
        for start in range(lines.start, lines.stop, BAND):
            stop = min(start + BAND, lines.stop)
            cells = slice(self.first[start], self.last[stop - 1] + 1)
            yield cells, self.matrix[start:stop, cells]


def taps(length, in_size, scale):
    """Two (index, weight) of bilinear resampling, half-pixel centers, the last of `in_size` positions repeated."""
    source = np.maximum((np.arange(length, dtype=np.float32) + 0.5) * np.float32(scale) - 0.5, 0)
    low = np.minimum(source.astype(np.int32), in_size - 1)
    share = np.clip(source - low, 0, 1)
    return (low, 1 - share), (np.minimum(low + 1, in_size - 1), share)


def upsample(probability, rows, columns, ys=None, xs=None):
    """A map on the lines `ys` and `xs` of the result; None: all of them."""
    ys, xs = ys or slice(0, rows.length), xs or slice(0, columns.length)
    tall = np.concatenate([matrix @ probability[cells] for cells, matrix in rows.bands(ys)])
    return np.concatenate([tall[:, cells] @ matrix.T for cells, matrix in columns.bands(xs)], axis=1)


def read(path):
    """An image file as upright RGB uint8 [h, w, 3]; one of more than 8 bits a channel is refused."""
    with Image.open(path) as image:
        if image.mode[0] in "IF" or re.search(";16[BLN]", str(image.tile)):
            raise ValueError(f"an image of mode {image.mode} with more than 8 bits a channel; convert it to 8 bits")
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


if __name__ == "__main__":
    model, photo, output = sys.argv[1:]
    try:
        pixels = read(photo)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        sys.exit(f"error: {photo}: {error}")
    meta, run = load(model)
    segment_map, segments = segment(meta, run, pixels)
    colors = np.zeros((segment_map.max() + 1, 3), np.uint8)
    for entry in segments:
        colors[entry["id"]] = meta["classes"][entry["class_id"]]["color"]
        print(f"{entry['id']:4d} {entry['class']:24s} score {entry['score']:.3f} {entry['area']:9d} pixels")
    Image.fromarray(colors[segment_map]).save(output)
