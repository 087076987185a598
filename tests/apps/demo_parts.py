"""A tiny network with random weights, for the tests of what comes after training."""

from __future__ import annotations

import dataclasses
import functools
import pathlib

import numpy as np

from pfcn_jax.checkpoints.loading import LoadedModel
from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.data.datasets.scenes import Scenes
from pfcn_jax.inference.two_stage import TwoStagePredictor
from pfcn_jax.models.build import build_model
from tests.support.tiny import TINY, tiny_variables

# Thresholds with which a network that has learned nothing finds something, and leaves something out.
EAGER = {"center_threshold": 0.02, "stuff_threshold": 0.0, "min_score": 0.0, "merge_score": 0.01, "min_stuff_area": 1}


@functools.cache
def tiny_predictor() -> TwoStagePredictor:
    """Shared by all tests of a process, so that it compiles once."""
    config = from_command_line(TINY)
    config = dataclasses.replace(config, inference=dataclasses.replace(config.inference, **EAGER))
    classes = Scenes("val", size=(64, 64)).classes
    model = build_model(config.model, *classes.counts)
    variables = tiny_variables(model, sharpness=5.0)
    loaded = LoadedModel(pathlib.Path("tiny"), config, classes, model, variables)
    return TwoStagePredictor(loaded)


def scene(index: int = 0) -> np.ndarray:
    return Scenes("val", size=(48, 40))[index].image
