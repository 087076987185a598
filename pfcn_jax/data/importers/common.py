"""The common part of the label importers: their flags, the images they found, and the summary of what was written.

An importer lists images, and gives a function `(image, size) -> Labelled`; `write_dataset` does the rest.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.example import DataError
from pfcn_jax.data.image_files import SUFFIXES, is_image, list_unreadable
from pfcn_jax.data.importers.writer import (
    Counts,
    Labeller,
    WriteOptions,
    read_image,
    require_unique_stems,
    write_splits,
)
from pfcn_jax.utils.progress import ProgressDisplay

FORMAT = "have a format that is not decoded (convert them to JPEG or PNG)"
# Names that tools give to splits, in lower case -> ours.
SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Found:
    """Images with labels that an importer found.

    Fields:
      images: split -> its images; one split named "" if the format has none.
      label: the labels of an image.
      left_out: reason -> images without labels, or that are not decoded ("N images REASON").
      notes: further lines of the summary.
      skip_bad: leave out objects that cannot be used, and count them.
      read: the bytes of an image, where they are not in the file of its name.
    """

    classes: ClassTable
    images: Mapping[str, Sequence[pathlib.Path]]
    label: Labeller
    left_out: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    skip_bad: bool = False
    read: Callable[[pathlib.Path], bytes] = read_image


def add_label_flags(parser: argparse.ArgumentParser, *, own_splits: bool = False) -> None:
    """Adds the flags of formats with objects of named classes that say themselves where their images are."""
    add_kind_flags(parser)
    add_skip_bad_flag(parser)
    add_background_flag(parser)
    add_output_flags(parser, images=False, own_splits=own_splits)


def add_output_flags(parser: argparse.ArgumentParser, *, images: bool = True, own_splits: bool = False) -> None:
    """Adds the flags that `write_dataset` reads.

    Args:
      images: with `--images`, for formats that do not say where their images are.
      own_splits: the format has splits, which are used unless a flag says otherwise.
    """
    if images:
        parser.add_argument("--images", metavar="DIR", required=True, help="folder of images")
    parser.add_argument("--output", required=True, help="folder to write; data.root of the training")
    where = parser.add_mutually_exclusive_group(required=not own_splits)
    default = " (default: the splits that the labels come in)" if own_splits else ""
    where.add_argument("--split", help=f"write all images as this split, as train or val{default}")
    where.add_argument("--val", type=float, help="write splits train and val, this fraction held out by name")
    if own_splits:
        parser.add_argument("--only", nargs="+", metavar="SPLIT", help="read these of the labels' splits alone")
    parser.add_argument("--upright", action="store_true", help="turn images as their EXIF orientation says")
    parser.add_argument("--dry-run", action="store_true", help="read and count everything, write nothing")
    parser.add_argument("--workers", type=int, default=4, help="threads (default: 4)")


def add_background_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--background", default="background", help="stuff class of all other pixels; '' leaves them void"
    )


def add_skip_bad_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out objects that cannot be used and count them; else an error"
    )


@runtime_checkable
class Kinds(Protocol):
    """Names of classes that are things, and of those that are stuff; as the flags of `add_kind_flags`."""

    @property
    def things(self) -> Sequence[str]: ...

    @property
    def stuff(self) -> Sequence[str]: ...


def add_kind_flags(parser: argparse.ArgumentParser, default: str = "all") -> None:
    """Adds the flags that `choose_kinds` reads."""
    parser.add_argument(
        "--things",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"the countable classes, others are stuff (default: {default})",
    )
    parser.add_argument(
        "--stuff", nargs="+", default=[], metavar="NAME", help="classes that are not countable, others are things"
    )


def choose_kinds(
    args: Kinds, names: Sequence[str], *, background: str = "", is_complete: bool = True
) -> tuple[list[str], list[str]]:
    """The things and the stuff among `names`: all are things; or those of `--things` alone; or all but `--stuff`.

    Args:
      names: that the labels have.
      background: class of the pixels without a label; a label class of this name is stuff. Empty: none.
      is_complete: False if the labels may lack some of their classes; names that only the flags have become classes,
        too, so that two runs can have the same ones.

    Raises:
      DataError: a name is in both flags, or with both of them a name of the labels is in neither; a name of the flags
        is not in `names`, which are complete; or the background is in `--things`.
    """
    things, stuff = list(dict.fromkeys(args.things)), list(dict.fromkeys(args.stuff))
    if background and background in things:
        raise background_is_thing(background)
    both = [name for name in things if name in stuff]
    stuff += [name for name in names if name == background and name not in stuff]
    neither = [name for name in names if name not in things and name not in stuff]
    unknown = [name for name in (*things, *stuff) if name not in names] if is_complete else []
    if unknown:
        raise DataError(
            f"--things, --stuff: no class is called {unknown[0]!r} (there are {', '.join(map(repr, names))})",
            kind="category-unknown",
        )
    if both or (things and args.stuff and neither):
        wrong = f"{both[0]!r} is in both" if both else f"{', '.join(map(repr, neither))} of the labels in neither"
        raise DataError(f"--things and --stuff: {wrong}", kind="category-invalid")
    return (things, stuff + neither) if things else (neither, stuff)


def background_is_thing(name: str) -> DataError:
    """The error of a class that is marked as a thing, but is called like the background."""
    return DataError(
        f"class {name!r} is a thing and the background, too; choose another name by --background NAME, or "
        "--background '' to leave pixels without a label void",
        kind="category-invalid",
    )


def sort_classes(
    args: argparse.Namespace, names: Sequence[str], *, is_complete: bool = True
) -> tuple[ClassTable, int | None]:
    """The classes of `choose_kinds` and the class id of the background (None: void).

    Args:
      args: with `things`, `stuff` and `background`.

    Raises:
      DataError: what `choose_kinds` refuses, or no class is a thing.
    """
    things, stuff = choose_kinds(args, names, background=args.background, is_complete=is_complete)
    return things_and_background(things, args.background, stuff)


def things_and_background(
    things: Sequence[str], background: str, stuff: Sequence[str] = ()
) -> tuple[ClassTable, int | None]:
    """Classes with category ids from 1 in the order given, and the class id of the background (None: void).

    Args:
      background: a stuff class, added unless `stuff` has it; empty for none.

    Raises:
      DataError: no thing, or a name twice.
    """
    more = [background] if background and background not in stuff else []
    entries = [{"name": name, "isthing": int(name in things)} for name in (*things, *stuff, *more)]
    if not things:
        raise DataError(f"classes {', '.join([*stuff, *more])}: at least one must be a thing", kind="no-thing")
    if background in things:
        raise background_is_thing(background)
    try:
        classes = ClassTable.from_coco([entry | {"id": i} for i, entry in enumerate(entries, start=1)])
    except ValueError as error:
        raise DataError(f"classes {', '.join(things)} and background {background!r}: {error}") from error
    return classes, classes.names.index(background) if background else None


def write_dataset(args: argparse.Namespace, found: Found) -> list[str]:
    """Writes the splits that the flags ask for, or with `--dry-run` nothing; returns the lines of the summary.

    Raises:
      DataError: no image, two of one stem in a split, or what `write_splits` refuses.
    """
    splits = _choose_splits(args, found.images)
    total = sum(len(part) for part in splits.values())
    if not total:
        raise nothing_labelled(found.left_out)
    for part in splits.values():
        require_unique_stems(part)
    display = ProgressDisplay(total, label="prepare")
    counts = write_splits(
        pathlib.Path(args.output),
        splits,
        found.classes,
        found.label,
        WriteOptions(args.workers, args.upright, found.skip_bad, args.dry_run, found.read),
        on_image=lambda done: display.update(done, "") if done % 50 == 0 or done == total else None,
    )
    display.close()
    return _summarize(args, found, splits, counts)


def _choose_splits(
    args: argparse.Namespace, images: Mapping[str, Sequence[pathlib.Path]]
) -> Mapping[str, Sequence[pathlib.Path]]:
    if only := getattr(args, "only", None):
        missing = [name for name in only if name not in images]
        if missing:
            raise DataError(f"--only {missing[0]}: no such split (there are {', '.join(images)})")
        images = {name: images[name] for name in only}
    everything = list(dict.fromkeys(path for part in images.values() for path in part))
    if args.split:
        return {args.split: everything}
    if args.val is not None:
        return hold_out(everything, args.val)
    splits: dict[str, list[pathlib.Path]] = {}
    for name, part in images.items():
        if part:
            splits.setdefault(SPLIT_NAMES.get(name, name), []).extend(part)
    return splits


def _summarize(
    args: argparse.Namespace, found: Found, splits: Mapping[str, Sequence[pathlib.Path]], counts: Counts
) -> list[str]:
    """The lines of the summary; images and objects add up."""
    parts = ", ".join(f"{name}: {len(part)} images" for name, part in splits.items())
    lines = [f"{args.output}: {parts}; {counts.segments} segments of {len(found.classes)} classes"]
    if args.dry_run:
        lines.insert(0, "dry run: nothing is written; without --dry-run this would be:")
    left_out = sum(len(names) for names in found.left_out.values())
    lines.append(f"images: {counts.images + left_out} found = {counts.images} written + {left_out} left out")
    lines += [f"{len(names)} images {reason}, as {names[0]}" for reason, names in found.left_out.items() if names]
    lost = sum(len(names) for names in counts.lost.values())
    lines.append(
        f"objects: {counts.found} found = {counts.written} written + {counts.left_out.total() + lost} left out + "
        f"{counts.joined} joined with others"
    )
    lines += [f"{count} objects {reason} and are left out" for reason, count in counts.left_out.items()]
    lines += [f"{len(names)} objects {why} and are left out, as {names[0]}" for why, names in counts.lost.items()]
    lines += [
        f"{len(names)} objects {why}; the rest of them is used, as {names[0]}" for why, names in counts.damaged.items()
    ]
    lines += [f"warning: {count} images: {note}" for note, count in counts.notes.items()]
    if counts.rotated:
        done = "turned upright" if args.upright else "copied as stored; if the labels belong to the upright: --upright"
        lines.append(f"warning: {counts.rotated} images have an EXIF orientation: {done}")
    empty = [name for index, name in enumerate(found.classes.names) if index not in counts.by_class]
    if empty:
        more = ", ..." if len(empty) > 3 else ""
        lines.append(f"warning: {len(empty)} classes have no object: {', '.join(map(repr, empty[:3]))}{more}")
    if not counts.instances:
        lines.append("warning: no instance to learn from (no-instances): every thing is a crowd, or there is none")
    if not args.split and args.val is None and "val" not in splits:
        lines.append("warning: no split to score on; --val 0.2 holds out one image in five")
    return [*lines, *found.notes]


def nothing_labelled(left_out: Mapping[str, Sequence[str]]) -> DataError:
    """The error of an input without any image that has labels, with the reasons why images were left out."""
    reasons = [f"{len(names)} images {reason}, as {names[0]}" for reason, names in left_out.items() if names]
    return DataError(f"no image with labels; {'; '.join(reasons) or 'none was found'}", kind="label-missing")


def list_images(
    folder: str | os.PathLike[str], *, deep: bool = False
) -> tuple[list[pathlib.Path], dict[str, list[str]]]:
    """The images inside a folder, in name order, and those of formats that are not decoded by the reason.

    Args:
      deep: in its subfolders, too.

    Raises:
      DataError: no such folder, or no image in it.
    """
    base = pathlib.Path(folder)
    if not base.is_dir():
        raise DataError(f"{base}: no such folder of images", kind="data-missing")
    files = sorted(base.rglob("*") if deep else base.iterdir())
    found = [path for path in files if is_image(path)]
    unreadable = [str(path) for path in list_unreadable(files)]
    if not found:
        more = f"; {len(unreadable)} {FORMAT}, as {unreadable[0]}" if unreadable else ""
        raise DataError(f"{base}: no images (looked for {', '.join(SUFFIXES)}){more}", kind="data-missing")
    return found, {FORMAT: unreadable} if unreadable else {}


def hold_out(images: Sequence[pathlib.Path], fraction: float) -> dict[str, list[pathlib.Path]]:
    """`train` and `val`: which image goes where follows from its name alone, so new images move no old ones.

    Raises:
      DataError: fewer than two images, or a fraction outside 0..1.
    """
    if len(images) < 2 or not 0.0 < fraction < 1.0:
        raise DataError(f"{len(images)} images with a fraction of {fraction} for validation: cannot be divided")
    place = {path: zlib.crc32(path.name.encode()) / 2**32 for path in images}
    val = {path for path in images if place[path] < fraction} or {min(images, key=place.__getitem__)}
    if len(val) == len(images):
        val.remove(max(images, key=place.__getitem__))
    return {"train": [p for p in images if p not in val], "val": [p for p in images if p in val]}


def pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    """(NAME, VALUE) of words `NAME=VALUE`.

    Raises:
      DataError: a word of another form, or a name twice.
    """
    found = [(name, value) for name, _, value in (word.partition("=") for word in words)]
    if not all(name and value for name, value in found) or len({name for name, _ in found}) < len(found):
        raise DataError(f"{' '.join(words)}: expected NAME=VALUE pairs with different names")
    return found
