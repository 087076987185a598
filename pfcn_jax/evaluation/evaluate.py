"""Evaluation of a model over a data set: predicts every image and scores it by the configured metrics."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh

from pfcn_jax.config.schema import Config
from pfcn_jax.data.example import Example, Source
from pfcn_jax.data.inputs import scoring_pipeline
from pfcn_jax.data.plan import output_shape
from pfcn_jax.data.scoring import ScoringBatch
from pfcn_jax.evaluation.scores import Scores
from pfcn_jax.metrics.pq import PanopticQuality, PQResult
from pfcn_jax.metrics.protocol import Metric, Summary, Task
from pfcn_jax.metrics.registry import find_metrics
from pfcn_jax.models.panoptic_fcn import PanopticFCN
from pfcn_jax.panoptic.options import OutputSpec, PredictOptions, TTAOptions
from pfcn_jax.panoptic.predict import Prediction, crop_prediction
from pfcn_jax.parallel.prefetch import DevicePrefetch
from pfcn_jax.parallel.sharding import local_row, replicate, shard_batch, this_process, whole_rows
from pfcn_jax.steps import predict_step
from pfcn_jax.utils.progress import ProgressDisplay

PyTree = Any
OnImage = Callable[[Example, Prediction], None]
_SCORING_THREADS = 8


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """The sums of every metric over all images, by name; PQ (`pq`) is always among them."""

    metrics: Mapping[str, Metric]
    images: int
    seconds: float

    @property
    def pq(self) -> PQResult:
        return cast(PanopticQuality, self.metrics["pq"]).result()

    @functools.cached_property
    def summaries(self) -> dict[str, Summary]:
        """The result of each metric, by its name."""
        return {name: metric.summary() for name, metric in self.metrics.items()}

    @property
    def figures(self) -> dict[str, float]:
        """The few numbers for curves, reports and tables: PQ, PQ_th, PQ_st, SQ, RQ, AP, AP50, mIoU, ..."""
        return {key: value for summary in self.summaries.values() for key, value in summary.figures.items()}

    def other_figures(self) -> dict[str, float]:
        """The figures without those of PQ."""
        return {key: value for key, value in self.figures.items() if key not in self.summaries["pq"].figures}

    def lines(self) -> list[str]:
        """The result as text for the terminal."""
        return [line for summary in self.summaries.values() for line in summary.lines]

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values.

        Raises:
          ValueError: two metrics use the same key.
        """
        result: dict[str, Any] = {}
        entries = [(f"metric {name!r}", summary.values) for name, summary in self.summaries.items()]
        entries += [("the evaluation itself", {"pictures": self.images, "seconds": round(self.seconds, 3)})]
        for origin, values in entries:
            if both := result.keys() & values.keys():
                raise ValueError(f"{origin} writes {min(both)!r}, which another metric has written")
            result |= values
        return result


@functools.lru_cache(maxsize=4)
def _compiled_step(
    model: PanopticFCN, inference: PredictOptions, tta: TTAOptions, mesh: Mesh
) -> Callable[..., Prediction]:
    """The prediction program; the same object for each evaluation of a run, so that it is compiled once."""
    step = functools.partial(predict_step, model=model, config=Config(inference=inference, tta=tta), mesh=mesh)
    return jax.jit(step, static_argnames="output")


def configured_metrics(config: Config, *, detailed: bool = True) -> dict[str, type[Metric]]:
    """PQ, by which checkpoints are compared, and (`detailed`) the further metrics of the config.

    Raises:
      ConfigError: no metric has a configured name.
    """
    return find_metrics(["pq", *config.evaluation.metrics] if detailed else ["pq"])


def evaluate_model(
    variables: PyTree,
    model: PanopticFCN,
    source: Source,
    config: Config,
    mesh: Mesh,
    *,
    detailed: bool = True,
    on_image: OnImage | None = None,
    with_images: bool = True,
) -> EvaluationResult:
    """Predicts every image of a source and scores it at its original size. Each example is read once.

    Args:
      detailed: all metrics of the config, not PQ alone.
      on_image: called with each example and its prediction (cropped, NumPy), on the host that read it.
      with_images: the examples for `on_image` hold their image, not their labels alone.
    """
    begin = time.monotonic()
    metrics = configured_metrics(config, detailed=detailed)
    variables = replicate(variables, mesh)  # a loaded checkpoint lies on one device
    pipeline = scoring_pipeline(
        config.data,
        source,
        batch_size=whole_rows(config.train.eval_batch_size),
        process=this_process(),
        with_images=on_image is not None and with_images,
    )
    outputs = frozenset(output for metric in metrics.values() for output in metric.needs)
    step = _compiled_step(model, config.inference, config.tta, mesh)
    sizes, plan = source.sizes(), pipeline.plan
    output_of = {
        canvas: OutputSpec(
            output_shape(sizes[plan.canvas_of == index]), "thing_masks" in outputs, "semantic_map" in outputs
        )
        for index, canvas in enumerate(plan.canvases)
    }
    scores, done = Scores(metrics, Task(source.classes, model.regions.things)), 0

    def predict(batch: ScoringBatch) -> tuple[ScoringBatch, Prediction]:
        canvas = (batch.image.shape[1], batch.image.shape[2])
        arrays = shard_batch((batch.image, batch.size, batch.original_size), mesh)
        return batch, step(variables, *arrays, output=output_of[canvas])

    def score(predicted: Prediction, row: int, index: int, example: Example) -> tuple[Example, Prediction]:
        prediction = crop_prediction(local_row(predicted, row), example.size)
        scores.add(index, example, prediction)
        return example, prediction

    # The device predicts while the host scores: the thread of the prefetch starts the next batch's program.
    with (
        contextlib.closing(ProgressDisplay(len(source), label="evaluate")) as display,
        iter(pipeline) as loaded,
        DevicePrefetch(loaded, predict, depth=1) as batches,
        concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, _SCORING_THREADS)) as threads,
    ):
        for batch, predicted in batches:
            rows = np.flatnonzero(batch.valid).tolist()
            scored = [
                threads.submit(score, predicted, row, int(batch.image_id[row]), example)
                for row, example in zip(rows, batch.examples, strict=True)
            ]
            for future in scored:
                example, prediction = future.result()
                if on_image is not None:
                    on_image(example, prediction)
            done += len(rows) * jax.process_count()  # about; the others count theirs
            display.update(min(done, len(source)), f"{done / (time.monotonic() - begin):.1f} images/s")
    return EvaluationResult(scores.total(), images=len(source), seconds=time.monotonic() - begin)
