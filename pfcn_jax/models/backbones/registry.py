"""Backbones by name. A backbone is one file that registers itself; nothing else in the package knows it.

A file in this folder is found by itself. One outside of the package is named as `module:name` in the config
(`model.backbone = "my_backbone:tiny"`): the module is imported, and registers `tiny`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Callable
from typing import Protocol

from jaxtyping import Array, Float, Int

from pfcn_jax.errors import ConfigError
from pfcn_jax.models import backbones
from pfcn_jax.models.options import ModelOptions

STAGES = (2, 3, 4, 5)  # features res2..res5, at stride 2**stage
PAPER_WIDTH = 64  # `model.backbone_width` of the published networks; other values scale every layer in proportion
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class Backbone(Protocol):
    """The Flax module that a backbone is.

    The result for an image must not depend on its canvas or its batch mates: every layer that reads neighbors or
    statistics gets a map that is zero beyond the positions in use (`layers.keep`, `layers.used_positions`).
    """

    def __call__(self, x: Float[Array, "B H W 3"], extent: Int[Array, "B 2"] | None) -> dict[str, Array]:
        """Features `res2`..`res5` at strides 4, 8, 16, 32, zero beyond the positions in use.

        Args:
          x: normalized image, zero beyond its size.
          extent: (height, width) in pixels that are in use, multiples of 32; None: the whole canvas.
        """
        ...

    def frozen_modules(self, freeze_at: int) -> tuple[str, ...]:
        """Top-level modules without a gradient: none (0), the stem (1), stem and res2 (2), ... all (5)."""
        ...


@dataclasses.dataclass(frozen=True)
class PixelStatistics:
    """Input normalization that a backbone's published weights expect; `mean` and `std` in `order`."""

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    order: str = "rgb"


@dataclasses.dataclass(frozen=True)
class BackboneSpec:
    """One registered backbone.

    Attributes:
      build: the module for the options (`dtype`, `remat`, `freeze_at`, ...).
      pixels: input normalization of its published weights, for the options.
      check: raises ConfigError for options that this backbone does not have.
    """

    build: Callable[[ModelOptions], Backbone]
    pixels: Callable[[ModelOptions], PixelStatistics] = lambda options: PixelStatistics()
    check: Callable[[ModelOptions], None] = lambda options: None


_SPECS: dict[str, BackboneSpec] = {}


def register(name: str, spec: BackboneSpec) -> None:
    """Makes a backbone known by a name.

    Raises:
      ValueError: another backbone has this name.
    """
    if name in _SPECS:
        raise ValueError(f"two backbones are called {name!r}")
    _SPECS[name] = spec


def known_backbones() -> tuple[str, ...]:
    """Names of all registered backbones, sorted."""
    for module in pkgutil.iter_modules(backbones.__path__):
        importlib.import_module(f"{backbones.__name__}.{module.name}")
    return tuple(sorted(_SPECS))


def find_backbone(name: str) -> BackboneSpec:
    """The backbone of a name, or of `module:name` for one outside of the package.

    Raises:
      ConfigError: the module cannot be imported, or no backbone has this name; it lists the known ones.
    """
    module, _, short = name.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(
                f"config.model.backbone: cannot import {module!r} of {name!r} ({error}); is its folder on PYTHONPATH?"
            ) from error
    known = known_backbones()
    if short not in _SPECS:
        near = difflib.get_close_matches(short, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"config.model.backbone: no backbone {short!r}{hint} (known: {', '.join(known)}; "
            "one outside of the package is named 'module:name')"
        )
    return _SPECS[short]


def refuse_options(options: ModelOptions, *keys: str) -> None:
    """Raises ConfigError for the first of `keys` that is not at its default: this backbone has no such option."""
    for key in keys:
        if getattr(options, key) != getattr(ModelOptions(), key):
            raise ConfigError(f"config.model.{key}: {options.backbone} has no such option; leave it at the default")
