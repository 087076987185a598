"""What a training step carries, and where it lives: replicated over a mesh whose one axis splits the batch."""

from __future__ import annotations

from typing import Any

from flax import struct
from jaxtyping import Array, Int

PyTree = Any


@struct.dataclass
class TrainState:
    """Everything that a step changes, and the frozen statistics that go with it."""

    step: Int[Array, ""]
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    average: PyTree | None = None  # moving average of `params`; None: config.train.ema_decay is 0

    @property
    def variables(self) -> dict[str, PyTree]:
        """What is trained, as the network takes it."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def model(self) -> dict[str, PyTree]:
        """What is evaluated, drawn and handed on: the variables, with averaged parameters where there are any."""
        return {"params": self.params if self.average is None else self.average, "batch_stats": self.batch_stats}

    @property
    def training(self) -> dict[str, PyTree]:
        """What a run needs besides `model` to go on."""
        rest = {"opt_state": self.opt_state, "step": self.step}
        return rest if self.average is None else {**rest, "params": self.params}

    @classmethod
    def from_items(cls, model: PyTree, training: PyTree) -> TrainState:
        """The state whose `model` and `training` these are."""
        average = model["params"] if "params" in training else None
        params = training.get("params", model["params"])
        return cls(training["step"], params, model["batch_stats"], training["opt_state"], average)
