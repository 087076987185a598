"""One worker of `bulk`: loads the model once, then segments shard after shard and writes the results."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import io
import json
import os
import pathlib
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from pfcn_jax.apps.bulk import layout
from pfcn_jax.checkpoints.loading import load_with_config
from pfcn_jax.codec import encode_id_png
from pfcn_jax.data.decode import decode_image
from pfcn_jax.data.example import DataError
from pfcn_jax.data.store import Store
from pfcn_jax.inference.input_files import decode_ahead
from pfcn_jax.inference.predictor import Predictor
from pfcn_jax.inference.result import make_result
from pfcn_jax.panoptic.predict import Prediction
from pfcn_jax.parallel.sharding import data_mesh

DEATHS = 2  # after so many, a shard is taken image by image, and an image is given up
_READERS, _WRITERS = 4, 4  # threads
_UNFINISHED = 8  # predictions that wait to be encoded


@dataclasses.dataclass(frozen=True)
class Job:
    """Settings that all workers of a run share; crosses processes."""

    checkpoint: str
    config_argv: list[str]
    source: str
    output: str
    accelerator: str  # cpu, gpu or tpu
    batch_size: int  # 0: 1 on CPUs, 8 a device elsewhere
    overlay: bool
    upright: bool


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One image: what will be written, or why there is nothing."""

    name: str
    error: str = ""
    record: dict[str, Any] = dataclasses.field(default_factory=dict)
    png: bytes = b""
    overlay: bytes = b""


class Segmenter:
    """Segments shards. Everything it writes may be written again by another worker, with the same bytes."""

    def __init__(self, job: Job):
        if job.accelerator == "cpu":
            jax.config.update("jax_platforms", "cpu")
        self._job = job
        self._source, self._output = Store(job.source, scratch=layout.TMP), Store(job.output, scratch=layout.TMP)
        self._attempts = Attempts(self._output)
        loaded = load_with_config(pathlib.Path(job.checkpoint), job.config_argv)
        devices = jax.device_count()  # those that Ray left visible
        batch_size = job.batch_size or (1 if jax.default_backend() == "cpu" else 8 * devices)
        mesh = data_mesh() if devices > 1 and batch_size > 1 else None
        self._classes = loaded.classes
        self._predictor = Predictor(loaded, loaded.config, batch_size=batch_size, mesh=mesh)
        self._pool = concurrent.futures.ThreadPoolExecutor(_WRITERS)
        host, pid = socket.gethostname(), os.getpid()
        note = {"host": host, "pid": pid, "devices": [str(device) for device in jax.devices()], "started": time.time()}
        self._output.put(f"{layout.WORKERS}/{host}-{pid}.json", json.dumps(note).encode())

    def __call__(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """Segments one shard and writes its results; returns (name, error) of each, the error empty if it is done.

        Raises:
          OSError: a result cannot be written. Whatever is wrong with an image is its own failure, never an exception.
        """
        shard = layout.shard_name(names)
        if self._attempts.begin(shard) < DEATHS:
            try:
                outcomes = self._segment(names)
            except Exception:  # of one of them: find out which
                outcomes = self._one_by_one(names)
            else:
                self._write(shard, outcomes)
        else:
            outcomes = self._one_by_one(names)
        self._attempts.end(shard)
        return [(outcome.name, outcome.error) for outcome in outcomes]

    def _segment(self, names: Sequence[str]) -> list[Outcome]:
        """The images of a shard, decoded ahead and encoded behind the device by threads."""
        outcomes: list[Outcome] = []
        encoding: collections.deque[concurrent.futures.Future[Outcome]] = collections.deque()

        def images() -> Iterator[tuple[str, np.ndarray]]:
            for name, image in decode_ahead(names, self._read, threads=_READERS):
                if isinstance(image, str):
                    outcomes.append(Outcome(name, error=image))
                else:
                    yield name, image

        for name, image, prediction in self._predictor.stream(images()):
            encoding.append(self._pool.submit(self._encode, name, image, prediction))
            if len(encoding) > _UNFINISHED:
                outcomes.append(encoding.popleft().result())
        outcomes += [future.result() for future in encoding]
        return sorted(outcomes, key=lambda outcome: outcome.name)

    def _one_by_one(self, names: Sequence[str]) -> list[Outcome]:
        """A shard that raised, or over which workers died: each image alone, the guilty ones named."""
        outcomes = []
        for name in names:
            if self._output.exists(layout.map_name(name)):
                outcomes.append(Outcome(name))
                continue
            alone = layout.shard_name([name])
            deaths = self._attempts.begin(alone)
            if deaths >= DEATHS:
                outcome = Outcome(name, error=f"{self._source.where}/{name}: {deaths} workers died over it")
            else:
                try:
                    (outcome,) = self._segment([name])
                except Exception as error:
                    outcome = Outcome(name, error=f"{self._source.where}/{name}: {type(error).__name__}: {error}")
            self._write(alone, [outcome])
            self._attempts.end(alone)
            outcomes.append(outcome)
        return outcomes

    def _read(self, name: str) -> np.ndarray | str:
        shown = f"{self._source.where}/{name}"
        try:
            return decode_image(self._source.read(name), shown, upright=self._job.upright)
        except DataError as error:
            return str(error)
        except OSError as error:
            return f"{shown}: {error.strerror or error}"
        except Exception as error:  # a decoder may fail in any way on some file of a million
            return f"{shown}: broken image ({type(error).__name__}: {error})"

    def _encode(self, name: str, image: np.ndarray, prediction: Prediction) -> Outcome:
        result = make_result(image, prediction.panoptic, self._classes, name=name)
        height, width = result.size
        record = {
            "image": {"id": name, "file_name": f"{self._source.where}/{name}", "height": height, "width": width},
            "annotation": result.to_coco(name, f"{name}.png"),
        }
        drawing = io.BytesIO()
        if self._job.overlay:
            result.overlay().save(drawing, format="PNG")
        return Outcome(name, "", record, encode_id_png(result.segment_map), drawing.getvalue())

    def _write(self, shard: str, outcomes: Sequence[Outcome]) -> None:
        """Records first, id maps last: where a map is, everything else is, too."""
        done = [outcome for outcome in outcomes if not outcome.error]
        failed = [{"image_id": outcome.name, "reason": outcome.error} for outcome in outcomes if outcome.error]
        if failed:
            self._output.put(f"{layout.FAILURES}/{shard}.jsonl", _lines(failed))
        if not done:
            return
        self._output.put(f"{layout.RECORDS}/{shard}.jsonl", _lines([outcome.record for outcome in done]))
        if self._job.overlay:
            list(self._pool.map(lambda o: self._output.put(layout.overlay_name(o.name), o.overlay), done))
        list(self._pool.map(lambda o: self._output.put(layout.map_name(o.name), o.png), done))


class Attempts:
    """Counts how often a shard was begun and not ended, in files, because whoever counts may die over it."""

    def __init__(self, output: Store):
        self._output = output

    def begin(self, shard: str) -> int:
        """Notes a beginning; returns how many there were before that came to no end."""
        name = f"{layout.ATTEMPTS}/{shard}"
        try:
            before = int(self._output.read(name) or b"0")
        except FileNotFoundError:
            before = 0
        self._output.put(name, str(before + 1).encode())
        return before

    def end(self, shard: str) -> None:
        self._output.remove(f"{layout.ATTEMPTS}/{shard}")


def _lines(entries: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(entry) + "\n" for entry in entries).encode()
