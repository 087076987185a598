"""Checks of a config's values beyond their types: each field's bounds, and the combinations that work."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from pfcn_jax.data.registry import check_source
from pfcn_jax.errors import ConfigError
from pfcn_jax.models.backbones.registry import find_backbone
from pfcn_jax.optim.optimizers import find_optimizer
from pfcn_jax.utils.settings import bounds_of

if TYPE_CHECKING:  # the schema itself runs these checks
    from pfcn_jax.config.schema import Config
    from pfcn_jax.data.options import DataOptions
    from pfcn_jax.models.options import ModelOptions


_SMALLEST_SCENE = 32  # pixels of a side


def check_values(config: Config) -> None:
    """Raises ConfigError for the first value outside its field's bounds, or that does not go with another one."""
    _check_bounds(config, "config")
    for scale in config.tta.scales:
        if not 0.25 <= scale <= 4.0 or scale == 1.0:
            raise ConfigError(f"config.tta.scales: each from 0.25 to 4 and not 1 (the image itself), got {scale}")
    find_optimizer(config.optim.name)
    _check_levels(config.targets.level_ranges)
    _check_model(config.model)
    _check_data(config.data)


def _check_bounds(options: Any, path: str) -> None:
    for field in dataclasses.fields(options):
        value, name = getattr(options, field.name), f"{path}.{field.name}"
        if dataclasses.is_dataclass(value):
            _check_bounds(value, name)
        elif isinstance(value, (int, float)) and not bounds_of(field).hold(value):
            raise ConfigError(f"{name}: must be {bounds_of(field)}, got {value}")


def _check_levels(ranges: tuple[tuple[float, float], ...]) -> None:
    if len(ranges) != 5:
        raise ConfigError(f"config.targets.level_ranges: must have 5 ranges (p3..p7), got {ranges}")
    for low, high in ranges:
        if not 0.0 <= low <= high:
            raise ConfigError(f"config.targets.level_ranges: expected 0 <= low <= high, got {(low, high)}")


def _check_model(model: ModelOptions) -> None:
    find_backbone(model.backbone).check(model)
    if not min(model.pixel_std) > 0.0:
        raise ConfigError(f"config.model.pixel_std: each must be above 0, got {model.pixel_std}")


def _check_data(data: DataOptions) -> None:
    check_source(data.source)
    for section, name in ((data.canvases, "canvases"), (data.eval_canvases, "eval_canvases")):
        if not section:
            raise ConfigError(f"config.data.{name}: needs at least one canvas")
        for canvas in section:
            if canvas[0] % 32 or canvas[1] % 32 or min(canvas) <= 0:
                raise ConfigError(f"config.data.{name}: sides must be multiples of 32, got {canvas}")
    if not data.short_sides or min(data.short_sides) < 1:
        raise ConfigError(f"config.data.short_sides: needs at least one side in pixels, got {data.short_sides}")
    if min(data.scene_size) < _SMALLEST_SCENE:
        raise ConfigError(f"config.data.scene_size: sides of at least {_SMALLEST_SCENE} pixels, got {data.scene_size}")
    if data.jitter != (0.0, 0.0) and not 0.0 < data.jitter[0] <= data.jitter[1]:
        raise ConfigError(f"config.data.jitter: expected 0 < low <= high, or (0, 0) for none, got {data.jitter}")
    if data.crop != (0, 0) and min(data.crop) < 1:
        raise ConfigError(f"config.data.crop: must be a (height, width), or (0, 0) for none, got {data.crop}")
    if data.crop == (0, 0):
        for key, used in (("jitter", data.jitter != (0.0, 0.0)), ("crop_with_instance", data.crop_with_instance)):
            if used:
                raise ConfigError(f"config.data.{key}: needs config.data.crop, the size of the window")
