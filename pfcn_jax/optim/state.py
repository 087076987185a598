"""State that a training step carries, replicated over all devices."""

from __future__ import annotations

from typing import Any

from flax import struct
from jaxtyping import Array, Int

PyTree = Any


@struct.dataclass
class TrainState:
    """Parameters, optimizer state and step, with the frozen statistics of the norms."""

    step: Int[Array, ""]
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    average: PyTree | None = None  # moving average of `params`; None if train.ema_decay is 0

    @property
    def variables(self) -> dict[str, PyTree]:
        """Trained parameters and statistics, as arguments of the network."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def model(self) -> dict[str, PyTree]:
        """Variables to evaluate, export and keep: with averaged parameters if there are any."""
        return {"params": self.params if self.average is None else self.average, "batch_stats": self.batch_stats}

    @property
    def training(self) -> dict[str, PyTree]:
        """State besides `model` that a run needs to resume."""
        rest = {"opt_state": self.opt_state, "step": self.step}
        return rest if self.average is None else {**rest, "params": self.params}

    @classmethod
    def from_items(cls, model: PyTree, training: PyTree) -> TrainState:
        """Rebuilds a state from its `model` and `training`."""
        average = model["params"] if "params" in training else None
        params = training.get("params", model["params"])
        return cls(training["step"], params, model["batch_stats"], training["opt_state"], average)
