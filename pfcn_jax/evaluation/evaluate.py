"""Evaluation of a model over a data set: PQ, AP and mIoU."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from pfcn_jax.config.schema import Config
from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.inputs import eval_pipeline
from pfcn_jax.data.plan import output_shape
from pfcn_jax.data.sources import Example, Source
from pfcn_jax.metrics.ap import APResult, InstanceRecords, ap_result, encode_packed_masks
from pfcn_jax.metrics.miou import SemanticCounts, SemanticResult, semantic_counts, semantic_map, semantic_result
from pfcn_jax.metrics.pq import PQCounts, PQResult, pq_counts, pq_result
from pfcn_jax.metrics.transport import pack, unpack
from pfcn_jax.models.panoptic_fcn import PanopticFCN
from pfcn_jax.panoptic.options import PredictOptions, TTAOptions
from pfcn_jax.panoptic.predict import Prediction, crop_prediction
from pfcn_jax.parallel.prefetch import DevicePrefetch
from pfcn_jax.parallel.sharding import local_row, replicate, shard_batch, this_process, whole_rows
from pfcn_jax.steps import predict_step
from pfcn_jax.types import Batch
from pfcn_jax.utils.progress import ProgressDisplay

PyTree = Any
OnPicture = Callable[[Example, Prediction], None]
_SCORING_THREADS = 8


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation finds. AP and mIoU are None if they were not asked for."""

    pq: PQResult
    ap: APResult | None
    semantic: SemanticResult | None
    pictures: int
    seconds: float

    def to_dict(self, classes: ClassTable) -> dict[str, Any]:
        result: dict[str, Any] = self.pq.to_dict(classes.category_ids)
        if self.ap is not None:
            result["AP"] = self.ap.to_dict()
        if self.semantic is not None:
            result["mIoU"] = self.semantic.mIoU
        return {**result, "pictures": self.pictures, "seconds": round(self.seconds, 3)}


@dataclasses.dataclass
class Scores:
    """Running sums over pictures; exact over hosts. Pictures may be added by several threads."""

    pq: PQCounts
    semantic: SemanticCounts
    instances: InstanceRecords
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    @classmethod
    def zeros(cls, classes: ClassTable, thing_regions: int = 1) -> Scores:
        """Nothing counted yet; the first `thing_regions` of the semantic classes are things' (1: any thing)."""
        return cls(
            PQCounts.zeros(len(classes)),
            SemanticCounts.zeros(thing_regions + classes.num_stuff),
            InstanceRecords(classes.num_things),
        )

    def add(self, example: Example, prediction: Any, image_id: int, classes: ClassTable, detailed: bool) -> None:
        """Counts one picture: a `Prediction` cropped to its original size, with NumPy arrays."""
        panoptic = prediction.panoptic
        truth = example.segment_map
        counts = pq_counts(
            truth, example.class_id, example.is_crowd, panoptic.segment_map, panoptic.class_id, len(classes)
        )
        with self.lock:
            self.pq += counts
        if not detailed:
            return
        regions = self.semantic.num_classes
        first_stuff = regions - classes.num_stuff
        thing = np.minimum(example.class_id, first_stuff - 1)
        stuff = example.class_id - classes.num_things + first_stuff
        channel = np.where(example.class_id < classes.num_things, thing, stuff)
        nothing = -1  # what a prediction has beyond its picture; 255 may be a class
        labelled = semantic_map(truth, channel, ignore=nothing)
        pixels = semantic_counts(labelled, prediction.semantic_map, regions, ignore=nothing)
        with self.lock:
            self.semantic += pixels
        things = prediction.things
        kept = np.flatnonzero(things.valid)
        masks = encode_packed_masks(prediction.thing_masks[kept], truth.shape[1])
        self.instances.add(
            image_id, truth, example.class_id, example.is_crowd, masks, things.class_id[kept], things.score[kept]
        )

    def over_hosts(self) -> Scores:
        """The sums over all processes, exactly."""
        if jax.process_count() == 1:
            return self
        total = Scores(
            PQCounts.zeros(self.pq.num_classes),
            SemanticCounts.zeros(self.semantic.num_classes),
            InstanceRecords(self.instances.num_things),
        )
        for name in ("pq", "semantic", "instances"):
            part = getattr(self, name)
            for arrays in _all_gather(part.to_arrays()):
                setattr(total, name, getattr(total, name) + type(part).from_arrays(arrays))
        return total


@functools.lru_cache(maxsize=4)
def _compiled_step(
    model: PanopticFCN, inference: PredictOptions, tta: TTAOptions, mesh: Mesh, detailed: bool
) -> Callable[..., Prediction]:
    """The prediction program; the same object for each evaluation of a run, so that it is compiled once."""
    step = functools.partial(
        predict_step,
        model=model,
        config=inference,
        tta=tta,
        mesh=mesh,
        with_thing_masks=detailed,
        with_semantic_map=detailed,
    )
    return jax.jit(step, static_argnames="output_shape")


def evaluate_model(
    variables: PyTree,
    model: PanopticFCN,
    source: Source,
    config: Config,
    mesh: Mesh,
    *,
    detailed: bool = True,
    on_picture: OnPicture | None = None,
    show_progress: bool = True,
) -> EvaluationResult:
    """Predicts every picture of a source and scores it at its original size.

    Args:
      detailed: also AP and mIoU.
      on_picture: called with each example and its prediction (cropped, NumPy), on the host that read it.
    """
    begin = time.monotonic()
    variables = replicate(variables, mesh)  # a loaded checkpoint lies on one device
    pipeline = eval_pipeline(
        config.data, source, batch_size=whole_rows(config.train.eval_batch_size), process=this_process()
    )
    step = _compiled_step(model, config.inference, config.tta, mesh, detailed)
    sizes = source.sizes()
    shape_of = {
        canvas: output_shape(sizes[pipeline.plan.canvas_of == index])
        for index, canvas in enumerate(pipeline.plan.canvases)
    }
    scores, done = Scores.zeros(source.classes, model.thing_regions), 0
    display = ProgressDisplay(len(source), label="evaluate") if show_progress and jax.process_index() == 0 else None

    def predict(batch: Batch) -> tuple[Batch, Prediction]:
        canvas = (batch.image.shape[1], batch.image.shape[2])
        arrays = shard_batch((batch.image, batch.size, batch.original_size), mesh)
        return batch, step(variables, *arrays, output_shape=shape_of[canvas])

    def score(predicted: Prediction, row: int, index: int) -> tuple[Example, Prediction]:
        example = source[index]
        prediction = crop_prediction(local_row(predicted, row), example.segment_map.shape)
        scores.add(example, prediction, index, source.classes, detailed)
        return example, prediction

    # The device predicts while the host scores: the thread of the prefetch starts the next batch's program.
    with (
        contextlib.closing(display) if display else contextlib.nullcontext(),
        iter(pipeline) as loaded,
        DevicePrefetch(loaded, predict, depth=1) as batches,
        concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, _SCORING_THREADS)) as threads,
    ):
        for batch, predicted in batches:
            rows = np.flatnonzero(batch.valid).tolist()
            scored = [threads.submit(score, predicted, row, int(batch.image_id[row])) for row in rows]
            for future in scored:
                example, prediction = future.result()
                if on_picture is not None:
                    on_picture(example, prediction)
            done += len(rows) * jax.process_count()  # about; the others count theirs
            if display:
                display.update(min(done, len(source)), f"{done / (time.monotonic() - begin):.1f} images/s")
    total = scores.over_hosts()
    return EvaluationResult(
        pq=pq_result(total.pq, source.classes.is_thing),
        ap=ap_result(total.instances) if detailed else None,
        semantic=semantic_result(total.semantic) if detailed else None,
        pictures=len(source),
        seconds=time.monotonic() - begin,
    )


def _all_gather(arrays: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The arrays of every process, in order; as bytes, since their lengths differ."""
    data = pack(arrays)
    lengths = multihost_utils.process_allgather(np.array([data.size], np.int32)).reshape(-1)
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded).reshape(len(lengths), -1)
    return [unpack(row[:length]) for row, length in zip(rows, lengths)]
