"""From the files of all workers to one result: sorted by name, every image once, whatever was written twice.

The records of a million images are gigabytes. They are sorted on disk: in runs that fit memory, then merged.
"""

from __future__ import annotations

import heapq
import itertools
import json
import pathlib
import tempfile
from collections.abc import Iterable, Iterator

from pfcn_jax.apps.bulk import layout
from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.store import Store
from pfcn_jax.inference.class_counts import ClassCounts

_RUN = 64 * 2**20  # bytes of records that are sorted in memory


def merge(output: Store, classes: ClassTable) -> tuple[int, dict[str, str], ClassCounts]:
    """Writes panoptic.json, classes.csv and failures.jsonl from what lies in the output; any number of times.

    Returns:
      How many images are done; those that failed, with the reason; the class table.
    """
    done = layout.find_done(output)
    counts = ClassCounts(classes)
    with tempfile.TemporaryDirectory(prefix="pfcn_bulk_") as folder:
        ordered = pathlib.Path(folder) / "ordered.jsonl"
        with ordered.open("w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in sort_records(output, done, pathlib.Path(folder)))
        written = _write_panoptic(output, classes, ordered, counts, pathlib.Path(folder) / "panoptic.json")
    output.put(layout.CLASSES_CSV, counts.to_csv().encode())
    failed = {name: reason for name, reason in sorted(layout.read_failures(output).items()) if name not in done}
    lines = (json.dumps({"image_id": name, "reason": reason}) + "\n" for name, reason in failed.items())
    output.put(layout.FAILURES_JSONL, "".join(lines).encode())
    return written, failed, counts


def sort_records(output: Store, done: set[str], folder: pathlib.Path, *, run_bytes: int = _RUN) -> Iterator[str]:
    """The records (JSON lines) of the images in `done`, by name, each once.

    Args:
      folder: a local one for the runs.
      run_bytes: how much is sorted in memory.
    """
    runs: list[pathlib.Path] = []
    held: list[tuple[str, str]] = []
    size = 0
    for file, length in sorted(output.list(layout.RECORDS)):
        for line in output.read(file).decode().splitlines():
            name = json.loads(line)["image"]["id"]
            if name in done:
                held.append((name, line))
        size += length
        if size >= run_bytes:
            runs.append(_write_run(folder / f"run{len(runs)}", held))
            held, size = [], 0
    ordered = heapq.merge(*(_read_run(run) for run in runs), sorted(held))
    for _, same in itertools.groupby(ordered, key=lambda entry: entry[0]):
        yield next(same)[1]


def _write_run(path: pathlib.Path, entries: list[tuple[str, str]]) -> pathlib.Path:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(line + "\n" for _, line in sorted(entries))
    return path


def _read_run(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["image"]["id"], line.rstrip("\n")


def _write_panoptic(
    output: Store, classes: ClassTable, ordered: pathlib.Path, counts: ClassCounts, local: pathlib.Path
) -> int:
    """panoptic.json, entry by entry, and the counts on the way; returns the number of images."""
    class_ids = {category: index for index, category in enumerate(classes.category_ids)}
    written = 0

    def images() -> Iterator[str]:
        nonlocal written
        with ordered.open(encoding="utf-8") as file:
            for line in file:
                record = json.loads(line)
                segments = record["annotation"]["segments_info"]
                counts.add((class_ids[segment["category_id"]], segment["area"]) for segment in segments)
                written += 1
                yield json.dumps(record["image"])

    def annotations() -> Iterator[str]:
        with ordered.open(encoding="utf-8") as file:
            for line in file:
                yield json.dumps(json.loads(line)["annotation"])

    with local.open("w", encoding="utf-8") as file:
        file.write('{"images": [')
        file.writelines(_separated(images()))
        file.write('],\n"annotations": [')
        file.writelines(_separated(annotations()))
        file.write(f'],\n"categories": {json.dumps(classes.to_coco())}}}\n')
    output.put_file(layout.PANOPTIC_JSON, local)
    return written


def _separated(entries: Iterable[str]) -> Iterator[str]:
    for index, entry in enumerate(entries):
        yield (",\n" if index else "\n") + entry
