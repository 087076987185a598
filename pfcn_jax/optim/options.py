"""The settings of the optimizer."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class OptimOptions:
    """The optimiser (paper section 4.1)."""

    name: Literal["sgd", "adamw"] = "sgd"  # "sgd" or "adamw"
    learning_rate: float = 0.01  # for a batch of reference_batch; scaled linearly to the batch in use
    reference_batch: int = 16
    momentum: float = 0.9  # adamw: beta 1
    weight_decay: float = 1e-4  # not on norm parameters
    clip_value: float = 35.0  # each gradient element is clipped to +- this
    warmup_steps: int = 1000
    warmup_factor: float = 0.001
    poly_power: float = 0.9
    # (path, factor) pairs: parameters below "backbone" or "backbone/res5_0" learn factor times as fast; the longest
    # path that fits counts
    lr_multipliers: tuple[tuple[str, float], ...] = ()
    frozen: tuple[str, ...] = ()  # paths below which nothing is trained, besides what model.freeze_at names
