"""`predict`: segments images and videos with a checkpoint.

Writes into --output: panoptic/NAME.png (ids as colors) and panoptic.json (COCO-panoptic), overlay/NAME.png,
classes.csv; for a video NAME: overlay/NAME.mp4 and frames/NAME.jsonl, one line a frame. --track keeps the ids of
segments over the frames of a video.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Mapping, Sequence

import jax

from pfcn_jax.checkpoints.loading import load_with_config
from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.decode import max_pixels, set_max_pixels
from pfcn_jax.data.example import DataError
from pfcn_jax.errors import UserError, with_code
from pfcn_jax.inference.class_counts import ClassCounts
from pfcn_jax.inference.formats import FORMATS, Writer, make_writer
from pfcn_jax.inference.formats.coco import CocoPanoptic
from pfcn_jax.inference.formats.registry import ImageEntry
from pfcn_jax.inference.input_files import Input, find_inputs, read_ahead
from pfcn_jax.inference.listed_ids import listed_ids
from pfcn_jax.inference.predictor import Predictor
from pfcn_jax.inference.result import Result, make_result
from pfcn_jax.inference.tracking import Tracker
from pfcn_jax.inference.video import FrameOutputs, Frames, segment_video
from pfcn_jax.parallel.sharding import data_mesh
from pfcn_jax.utils.progress import ProgressDisplay

_ACCELERATOR_BATCH = 8


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, help="a checkpoint or a working directory of `train`")
    parser.add_argument("--output", required=True, help="folder for everything that is written")
    parser.add_argument(
        "pictures", nargs="*", metavar="IMAGES", help="files, folders (with all below), globs; images and videos"
    )
    parser.add_argument("--frames", type=int, default=0, help="at most so many of a video (default: all)")
    parser.add_argument("--batch-size", type=int, default=0, help="default: 1 on CPU, 8 a device on accelerators")
    parser.add_argument("--no-overlay", action="store_true", help="draw nothing")
    parser.add_argument(
        "--format", action="append", metavar="NAME", help=f"what to write, may be repeated: {', '.join(FORMATS)}"
    )
    parser.add_argument("--no-maps", action="store_true", help="write no PNGs of ids")
    parser.add_argument(
        "--frame-maps",
        action="store_true",
        help="write a PNG of ids for every frame of a video, and panoptic_frames.json",
    )
    parser.add_argument(
        "--track", action="store_true", help="give a segment the same id and color in every frame of a video"
    )
    parser.add_argument(
        "--as-stored", action="store_true", help="ignore EXIF orientation, as the labels of COCO and others do"
    )
    parser.add_argument(
        "--max-megapixels", type=float, default=0.0, help=f"limit of an image (default: {max_pixels() / 1e6:.0f})"
    )
    parser.add_argument(
        "--ids-of",
        metavar="JSON",
        help="give the images the ids of this panoptic JSON (found by file name), so that `evaluate` can score them",
    )


class Outputs:
    """Writes results as they come, and at the end what all of them have in common."""

    def __init__(
        self,
        folder: pathlib.Path,
        classes: ClassTable,
        writers: Sequence[Writer],
        *,
        overlay: bool,
        ids: Mapping[str, int | str],
    ):
        """`ids`: what an image is called in the files, by its `image_id`; others keep that."""
        self._folder, self._writers, self._ids, self._overlay = folder, writers, ids, overlay
        self._counts, self._done = ClassCounts(classes), set[str]()
        self._frame_maps = CocoPanoptic(folder, classes, json_name="panoptic_frames.json")
        folder.mkdir(parents=True, exist_ok=True)

    def add_image(self, entry: Input, result: Result) -> None:
        image_id = self._ids.get(entry.image_id, entry.image_id)
        image = ImageEntry(entry.image_id, image_id, entry.name, str(entry.path))
        for writer in self._writers:
            writer.add(image, result)
        if self._overlay:
            path = self._folder / "overlay" / f"{entry.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            result.overlay().save(path)
        self._done.add(entry.image_id)
        self.count(result)

    def count(self, result: Result) -> None:
        """Adds the segments of an image or frame to the class table."""
        self._counts.add((segment.class_id, segment.area) for segment in result.segments)

    def of_video(self, name: str, *, maps: bool) -> FrameOutputs:
        return FrameOutputs(
            name=name,
            lines=self._folder / "frames" / f"{name}.jsonl",
            overlay=self._folder / "overlay" / f"{name}.mp4" if self._overlay else None,
            maps=self._frame_maps if maps else None,
        )

    def finish(self, order: Sequence[Input]) -> int:
        """Writes the files that all images share, in the given order, and classes.csv; returns the number of images."""
        keys = [entry.image_id for entry in order if entry.image_id in self._done]
        for writer in self._writers:
            writer.finish(keys)
        if frames := self._frame_maps.keys:
            self._frame_maps.finish(frames)
        with (self._folder / "classes.csv").open("w", newline="", encoding="utf-8") as file:
            file.write(self._counts.to_csv())
        return len(keys)

    def summary(self) -> str:
        """The most frequent classes, on one line."""
        return self._counts.summary()


def main(args: argparse.Namespace) -> int:
    inputs = _checked_inputs(args)
    ids = listed_ids(args.ids_of, inputs) if args.ids_of else {}
    loaded = load_with_config(pathlib.Path(args.checkpoint), args.config_argv)
    devices = jax.device_count()
    batch_size = args.batch_size or (1 if jax.default_backend() == "cpu" else _ACCELERATOR_BATCH * devices)
    mesh = data_mesh() if devices > 1 and batch_size > 1 else None
    predictor = Predictor(loaded, loaded.config, batch_size=batch_size, mesh=mesh)
    folder = pathlib.Path(args.output)
    writers = _writers(args, folder, loaded.classes)
    outputs = Outputs(folder, loaded.classes, writers, overlay=not args.no_overlay, ids=ids)
    broken: list[str] = []
    images = [entry for entry in inputs if not entry.is_video]
    _segment_images(images, predictor, outputs, broken, upright=not args.as_stored)
    videos = [entry for entry in inputs if entry.is_video]
    frames = 0
    for video in videos:
        paths = outputs.of_video(video.name, maps=args.frame_maps and not args.no_maps)
        tracker = Tracker(len(loaded.classes)) if args.track else None
        frames += _segment_video(video.path, args.frames, paths, predictor, tracker, outputs, broken)
    done = outputs.finish(images)
    of_videos = f" and {frames} frames of {len(videos)} video{'s' * (len(videos) > 1)}" if videos else ""
    print(f"{done} images{of_videos} segmented into {args.output}")
    print(outputs.summary())
    for message in broken:
        print(f"skipped: {message}", file=sys.stderr)
    if broken:
        print(f"{len(broken)} of {len(images) + len(videos)} could not be segmented (see above)", file=sys.stderr)
    return 1 if broken else 0


def _writers(args: argparse.Namespace, folder: pathlib.Path, classes: ClassTable) -> list[Writer]:
    """The formats asked for; COCO-panoptic if none is named."""
    writers = [make_writer(name, folder, classes) for name in dict.fromkeys(args.format or ["coco-panoptic"])]
    for writer in writers:
        if isinstance(writer, CocoPanoptic):
            writer.write_maps = not args.no_maps
    return writers


def _checked_inputs(args: argparse.Namespace) -> list[Input]:
    if args.max_megapixels < 0:
        raise UserError(f"--max-megapixels {args.max_megapixels}: must be above 0")
    if args.max_megapixels:
        set_max_pixels(int(args.max_megapixels * 1e6))
    if args.frames < 0 or args.batch_size < 0:
        raise UserError("--frames and --batch-size must not be negative")
    if not args.pictures:
        raise UserError("nothing to segment: name files, folders or globs")
    inputs = find_inputs(args.pictures, exclude=pathlib.Path(args.output))
    if args.track and not any(entry.is_video for entry in inputs):
        raise UserError("--track: no video to track in; images have no order in time")
    return inputs


def _segment_images(
    images: Sequence[Input], predictor: Predictor, outputs: Outputs, broken: list[str], *, upright: bool
) -> None:
    if not images:
        return
    display = ProgressDisplay(len(images), label="predict")
    results = predictor.stream(read_ahead(images, broken, upright=upright))
    for done, (entry, image, prediction) in enumerate(results, start=1):
        result = make_result(image, prediction.panoptic, predictor.loaded.classes, name=entry.name)
        outputs.add_image(entry, result)
        display.update(done + len(broken), f"{entry.path.name}: {len(result.segments)} segments")
    display.close()


def _segment_video(
    source: pathlib.Path,
    limit: int,
    paths: FrameOutputs,
    predictor: Predictor,
    tracker: Tracker | None,
    outputs: Outputs,
    broken: list[str],
) -> int:
    """Segments one video and returns the number of its frames. A broken one is noted and skipped."""
    done = 0
    try:
        frames = Frames(source, limit=limit)
        display = ProgressDisplay(frames.expected, label="predict")

        def on_frame(count: int, result: Result) -> None:
            nonlocal done
            done = count
            outputs.count(result)
            display.update(count, f"{frames.name}: {len(result.segments)} segments")

        try:
            segment_video(frames, predictor, paths, on_frame, tracker=tracker)
        finally:
            display.close()
    except DataError as error:
        broken.append(with_code(error))
    return done
