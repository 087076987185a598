"""Checks after every step: non-finite losses, broken training examples, dropped positives and segments.

The compiled step packs what the host needs into one small integer array (`make_report`). The host reads the array of a
step while the next step runs, so nothing waits; before a checkpoint it also reads the last one. The array is the same
on every process, so all of them decide alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from pfcn_jax.config.schema import Config
from pfcn_jax.data.example import DataError, Source
from pfcn_jax.data.plan import FILLER, BatchPlan
from pfcn_jax.errors import UserError
from pfcn_jax.utils.stderr import print_lines

_COUNTED = ("skipped", "dropped_positives", "dropped_segments")  # scalars of a step that are whole numbers


class NonFiniteError(UserError):
    """A loss or gradient is not finite; the step was not applied."""

    code = "not-finite"


def make_report(
    scalars: Mapping[str, Array], image_id: Int[Array, " batch"], stop: Int[Array, " devices"]
) -> Int[Array, " 4+batch"]:
    """Packs on the device: skipped (0 or 1), dropped positives, dropped segments, stop requested, image ids."""
    counted = [scalars[name].astype(jnp.int32) for name in _COUNTED]
    return jnp.concatenate([jnp.stack([*counted, jnp.max(stop)]), image_id.astype(jnp.int32)])


class StepMonitor:
    """Reads the report of every step, applies the limits of the config, and counts over the whole run.

    Attributes:
      stop: some process was asked to stop, as of the last report that was read.
    """

    def __init__(self, config: Config, source: Source, plan: BatchPlan, counts: Mapping[str, Any] | None = None):
        """Resumes from the counts of a checkpoint.

        Args:
          counts: `to_json()` at that checkpoint.

        Raises:
          DataError: more examples are known to be broken than the config allows.
        """
        self.config, self._source, self._plan = config, source, plan
        counts = counts or {}
        self._totals = {name: int(counts.get(name, 0)) for name in _COUNTED}
        self._broken = {int(index) for index in counts.get("broken", ())}
        self._unread: tuple[int, Mapping[str, Array], Array] | None = None
        self.stop = False
        self._check_broken("")

    def add(self, step: int, scalars: Mapping[str, Array], report: Array) -> None:
        """Queues the results of a step (from 1), which may still be running, and reads those of the step before.

        Raises:
          NonFiniteError, DataError: see `read`.
        """
        before, self._unread = self._unread, (step, scalars, report)
        self._process(before)

    def read(self) -> None:
        """Waits for the last step and reads its report.

        Raises:
          NonFiniteError: a loss or gradient is not finite, with `train.on_nonfinite="stop"` or more than
            `train.max_skipped` times.
          DataError: more broken examples than `data.max_broken`.
        """
        last, self._unread = self._unread, None
        self._process(last)

    def _process(self, at: tuple[int, Mapping[str, Array], Array] | None) -> None:
        if at is None:
            return
        step, scalars, report = at
        values = np.asarray(jax.device_get(report))
        for name, value in zip(_COUNTED, values):
            self._totals[name] += int(value)
        self.stop = bool(values[len(_COUNTED)])
        images = values[len(_COUNTED) + 1 :]
        self._find_broken(step, images)
        if values[0]:
            self._not_finite(step, scalars, images)

    def totals(self) -> dict[str, float]:
        """Counts since the first step of the run, for the metrics."""
        return {
            "skipped_steps": float(self._totals["skipped"]),
            "broken_pictures": float(len(self._broken)),
            "total_dropped_positives": float(self._totals["dropped_positives"]),
            "total_dropped_segments": float(self._totals["dropped_segments"]),
        }

    def to_json(self) -> dict[str, Any]:
        """The counts, as JSON for a checkpoint."""
        return {**self._totals, "broken": sorted(self._broken)}

    def _find_broken(self, step: int, images: Int[np.ndarray, " batch"]) -> None:
        """Finds examples that could not be read: the pipeline put another one in their place."""
        planned = self._plan[step - 1].examples
        new = [i for i in planned[(planned != images) & (planned != FILLER)].tolist() if i not in self._broken]
        last = ""
        for index in dict.fromkeys(new):
            self._broken.add(index)
            if jax.process_index() == 0:
                why = self._describe(index)
                print_lines(f"broken image {len(self._broken)}, another one stands in: {why}")
                last = f", the last: {why}"
        if new:
            self._check_broken(last)

    def _describe(self, index: int) -> str:
        """Reads a broken example again for its error message."""
        try:
            self._source[index]
        except DataError as error:
            return str(error)
        return f"{self._source.info(index).file_name} (it can be read now)"

    def _check_broken(self, last: str) -> None:
        limit = self.config.data.max_broken
        if self.config.data.on_broken == "skip" and len(self._broken) > limit:
            raise DataError(f"{len(self._broken)} broken images, more than config.data.max_broken = {limit}{last}")

    def _not_finite(self, step: int, scalars: Mapping[str, Array], images: Int[np.ndarray, " batch"]) -> None:
        train = self.config.train
        values = {key: float(value) for key, value in jax.device_get(dict(scalars)).items()}
        bad = sorted(key for key, value in values.items() if key.startswith("loss") and not np.isfinite(value))
        infos = [self._source.info(index) for index in images.tolist() if index != FILLER]
        names = ", ".join(f"{info.image_id} ({info.file_name})" for info in infos)
        text = f"step {step}: {', '.join(bad) or 'the gradient'} not finite; image ids {names}"
        if train.on_nonfinite == "stop":
            raise NonFiniteError(
                f"{text}\nThe step was not applied and is in no checkpoint. Lower the learning rate, check the "
                "images, or set --config.train.on_nonfinite=skip to leave such steps out."
            )
        if jax.process_index() == 0:
            print_lines(f"{text}; left out ({self._totals['skipped']} so far)")
        if self._totals["skipped"] > train.max_skipped:
            raise NonFiniteError(
                f"{text}; more than config.train.max_skipped = {train.max_skipped} steps were left out"
            )
