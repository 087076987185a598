"""File layout of the output of `bulk`, and the progress that follows from it: done, failed, left.

panoptic/NAME.png       ids as colors; NAME is the image's whole relative path, so that x.jpg and x.png, or a/x.jpg
                        and b/x.jpg, are never one file. It is written last: an image is done when it is there.
overlay/NAME.png        the drawing, if asked for
panoptic.json, classes.csv, failures.jsonl      of all images, made at the end
state/settings.json     what the results were made with
state/records/*.jsonl   one line an image, one file a shard (the images that a worker takes at a time)
state/failures/*.jsonl  the same, of images that could not be segmented
state/attempts/*        a number while a shard is being worked on: how often somebody began
state/workers/*.json    who works or worked in this run: host, process id, devices
state/tmp/*             files that are being written
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pfcn_jax.data.image_files import SUFFIXES
from pfcn_jax.data.store import Store
from pfcn_jax.errors import UserError

PANOPTIC, OVERLAY = "panoptic", "overlay"
PANOPTIC_JSON, CLASSES_CSV, FAILURES_JSONL = "panoptic.json", "classes.csv", "failures.jsonl"
SETTINGS = "state/settings.json"
RECORDS, FAILURES, ATTEMPTS, WORKERS, TMP = (
    f"state/{name}" for name in ("records", "failures", "attempts", "workers", "tmp")
)


def map_name(name: str) -> str:
    """Path of an image's id map; one to one."""
    return f"{PANOPTIC}/{name}.png"


def overlay_name(name: str) -> str:
    """Path of an image's overlay; one to one."""
    return f"{OVERLAY}/{name}.png"


def shard_name(names: Sequence[str]) -> str:
    """A name that follows from the images of a shard: whoever repeats it writes over the same file."""
    return hashlib.blake2b("\n".join(names).encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()


def find_images(source: Store, output: Store) -> Iterator[str]:
    """Names of all images below the input, folder by folder, without those of the output."""
    skip = output.path() if source.same_files(output) else ""
    return (name for name, _ in source.list(skip=skip) if name.lower().endswith(SUFFIXES))


def find_done(output: Store) -> set[str]:
    """Names of images that have their result: one listing, no question for each. An empty file is no result (a
    machine that lost its power may leave one)."""
    start, end = len(PANOPTIC) + 1, -len(".png")
    return {name[start:end] for name, size in output.list(PANOPTIC) if name.endswith(".png") and size > 0}


def read_failures(output: Store) -> dict[str, str]:
    """Images that could not be segmented, with the reason; some may have been done since."""
    failed = {}
    for file, _ in sorted(output.list(FAILURES)):
        for line in output.read(file).splitlines():
            entry = json.loads(line)
            failed[entry["image_id"]] = entry["reason"]
    return failed


def shards(names: Iterable[str], size: int) -> Iterator[list[str]]:
    """The names in groups of `size`."""
    group: list[str] = []
    for name in names:
        group.append(name)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def check_settings(output: Store, settings: dict[str, Any]) -> None:
    """Keeps the settings with the results, so that no output mixes two kinds of them.

    Raises:
      UserError: results are there that were made with other settings; it names the first that differs.
    """
    wanted = json.loads(json.dumps(settings))
    try:
        made = json.loads(output.read(SETTINGS))
    except FileNotFoundError:
        output.put(SETTINGS, (json.dumps(wanted, indent=2) + "\n").encode())
        return
    there, now = _flat(made), _flat(wanted)
    for key in sorted(there.keys() | now.keys()):
        if there.get(key) != now.get(key):
            raise UserError(
                f"{output.where}: the results there were made with {key} = {there.get(key)!r}, now it is "
                f"{now.get(key)!r}; name another --output, or delete this one"
            )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
