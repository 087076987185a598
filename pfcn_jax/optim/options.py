"""The settings of the optimizer."""

from __future__ import annotations

import dataclasses

from pfcn_jax.utils.settings import setting


@dataclasses.dataclass(frozen=True)
class OptimOptions:
    """The optimizer (paper section 4.1)."""

    name: str = "sgd"  # a rule of optim/optimizers.py ("sgd", "adamw"), or "module:name" for one outside of the package
    learning_rate: float = setting(0.01, above=0)  # for a batch of reference_batch; scaled linearly to the batch in use
    reference_batch: int = setting(16, at_least=1)
    momentum: float = setting(0.9, at_least=0, below=1)  # adamw: beta 1
    weight_decay: float = setting(1e-4, at_least=0)  # not on norm parameters
    clip_value: float = setting(35.0, above=0)  # each gradient element is clipped to +- this
    warmup_steps: int = setting(1000, at_least=0)
    warmup_factor: float = setting(0.001, at_least=0)
    poly_power: float = setting(0.9, at_least=0)
    # (path, factor) pairs: parameters below "backbone" or "backbone/res5_0" learn factor times as fast; the longest
    # path that fits counts
    lr_multipliers: tuple[tuple[str, float], ...] = ()
    frozen: tuple[str, ...] = ()  # paths below which nothing is trained, besides what model.freeze_at names
