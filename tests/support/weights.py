"""Descriptions of weights in the short form that tests need."""

from __future__ import annotations

from typing import Any

from pfcn_jax.interop.names import ModelFacts
from pfcn_jax.models.options import ModelOptions


def facts(depth: int = 50, *, num_things: int = 80, num_stuff: int = 53, **options: Any) -> ModelFacts:
    """The model with a ResNet of this depth, so many classes, and other options."""
    return ModelFacts(ModelOptions(backbone=f"resnet{depth}", **options), num_things, num_stuff)
